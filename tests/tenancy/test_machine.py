"""Two accounts that share a space and one that does not, in any order, with anything forged.

The model knows who is in the space and what was accepted. Whatever is tried, the hub takes only
what this account may write, shows each account exactly what it may see, never fails, and its
state is the replay of its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from mana.crypto.primitives import b64
from mana.domain.actors import actor_from_wire
from mana.domain.clock import DRIFT_MS_MAX, Stamp, parse_stamp
from mana.domain.ids import DeviceId
from mana.domain.merge import merge_entries
from mana.domain.records import Entry
from mana.protocol.messages import (
    ChangeMessage,
    FieldWrite,
    MembershipAppend,
    PullAnswer,
    PushAnswer,
    PushRequest,
    SpacesAnswer,
    StateAnswer,
)
from mana.testing.accounts import signed
from mana.testing.postgres import Cluster, connected
from mana.testing.spaces import (
    MadeSpace,
    adding,
    invitation,
    leaving,
    member_of,
    next_entry,
    removing,
    reroling,
    shared_space,
    signed_by,
)
from tests.hub.client import START_MS, Person, Served, served_hub

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.postgres, pytest.mark.slow]

NAMES = ("ada", "bob", "eve")
RECORDS = ("r0", "r1", "r2")
PATHS = ("title", "description")
UNKNOWN = "00000000-0000-4000-8000-000000000000"
FORGED = ("device", "stamped", "author", "late", "version", "id", "visibility", "seen")
EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "8"))

people = st.sampled_from(NAMES)
seeds = st.integers(0, 2**32 - 1)


def drawn(dice: random.Random) -> dict[str, Any]:
    """Return a push: who, where, what, and up to two parts of it that are forged."""
    return {
        "name": dice.choice(NAMES),
        "owner": dice.choice(["shared", "shared", "shared", *NAMES]),
        "forged": set(dice.sample(FORGED, dice.choice([0, 0, 0, 1, 1, 2]))),
        "device": dice.choice([*NAMES, "unknown"]),
        "stamped": dice.choice(NAMES),
        "author": dice.choice(NAMES),
        "record": dice.choice(RECORDS),
        "op": dice.choice(["insert", "update", "update", "delete", "flip", "flip", "reseal"]),
        "visibility": dice.choice(["space", "private"]),
        "late_ms": dice.choice([-3_600_000, DRIFT_MS_MAX, DRIFT_MS_MAX + 1]),
        "version": dice.choice([-1, 1]),
        "known_id": dice.randrange(1_000),
        "paths": set(dice.sample(PATHS, dice.randint(1, 2))),
    }


@dataclass
class Log:
    """What a space holds by the hub's own words: who wrote what, in order."""

    changes: list[tuple[str, ChangeMessage]] = field(default_factory=list)

    def author_of(self, record: str) -> str | None:
        return next((one.author_id for _, one in self.changes if one.id == record), None)

    def visibility_of(self, record: str) -> str | None:
        found = None
        for _, one in self.changes:
            if one.id == record and (found is None or one.op == "flip"):
                found = one.visibility
        return found

    def shown_to(self, account: str) -> list[ChangeMessage]:
        """Return what a member is shown: nothing of another's record while it is private."""
        return [
            one
            for _, one in self.changes
            if one.author_id == account
            or (one.visibility == "space" and self.visibility_of(one.id) == "space")
        ]

    def merged(self, account: str) -> dict[str, dict[str, Entry]]:
        """Return the records that a member may see, by the law of merging alone."""
        found: dict[str, dict[str, Entry]] = {}
        for one in self.shown_to(account):
            actor = actor_from_wire(one.actor)
            written = {
                path: Entry(write.value, write.at, actor, one.origin, one.change_id)
                for path, write in one.fields.items()
            }
            found[one.id] = merge_entries(found.get(one.id, {}), written)
        return found


class Tenants(RuleBasedStateMachine):
    """`cluster` is set by the fixture below."""

    cluster: Cluster

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        self.sync_stack = contextlib.ExitStack()
        self.moment = 0
        self.made = 0
        self.private_number = 0

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.sync_stack.close()
        self.runner.close()

    # What everybody uses

    def call(self, name: str, method: str, path: str, body: object = None) -> httpx.Response:
        answer: httpx.Response = self.runner.run(self.who[name].call(method, path, body))
        assert answer.status_code < 500, (method, path, answer.text)
        return answer

    def account(self, name: str) -> str:
        return self.who[name].account.account_id

    @property
    def role(self) -> dict[str, str]:
        """Who is in the shared space, by name."""
        found = {}
        for name in NAMES:
            member = self.space.newest.member(self.account(name))
            if member is not None:
                found[name] = member.role
        return found

    def members(self, space: str) -> dict[str, str]:
        if space == self.space.space_id:
            return self.role
        return {name: "owner" for name in NAMES if self.who[name].space == space}

    @initialize()
    def begin(self) -> None:
        database = self.sync_stack.enter_context(self.cluster.database())
        home = self.sync_stack.enter_context(tempfile.TemporaryDirectory())

        async def started() -> tuple[Served, dict[str, Person]]:
            served = await self.stack.enter_async_context(served_hub(database, home=Path(home)))
            self.owner = await self.stack.enter_async_context(connected(database.owner_url))
            return served, {name: await served.sign_up(name) for name in NAMES}

        self.served, self.who = self.runner.run(started())
        self.space: MadeSpace = shared_space(self.who["ada"].account, "team", now_ms=START_MS)
        founded = self.call("ada", "POST", "/api/v1/spaces", self.space.founded.new)
        assert founded.status_code == 201
        self.logs = {self.space.space_id: Log()}
        self.logs |= {self.who[name].space: Log() for name in NAMES}
        self.admit("member")

    # Membership

    @rule(role=st.sampled_from(["member", "viewer", "admin"]), seed=seeds)
    def join(self, role: Any, seed: int) -> None:
        """Bob joins, and all go on."""
        self.admit(role)
        self.push_much(seed)

    def admit(self, role: Any) -> None:
        """Bob joins, by an invitation that he accepts."""
        if "bob" in self.role:
            return
        made = invitation(self.space, role, now_ms=START_MS)
        where = f"/api/v1/spaces/{self.space.space_id}/invitations"
        assert self.call("ada", "POST", where, made.new).status_code == 201
        bob = self.who["bob"].account
        path = f"/api/v1/invitations/{made.new.invitation_id}"
        assert self.call("bob", "POST", path, made.accepted_by(bob)).status_code == 200
        self.append("ada", adding(self.space, self.who["ada"].account, bob, role, now_ms=START_MS))

    @rule(role=st.sampled_from(["member", "viewer", "admin"]), seed=seeds)
    def rerole(self, role: Any, seed: int) -> None:
        """Bob's role changes, and all go on."""
        if self.role.get("bob") not in (None, role):
            ada, bob = self.who["ada"].account, self.who["bob"].account
            self.append("ada", reroling(self.space, ada, bob, role, now_ms=START_MS))
        self.push_much(seed)

    @rule(by_self=st.booleans(), seed=seeds)
    def part(self, by_self: bool, seed: int) -> None:
        """Bob goes, and all go on."""
        if "bob" in self.role:
            self.let_go(by_self)
        self.push_much(seed)

    def let_go(self, by_self: bool) -> None:
        """Bob leaves, or is removed under a new key."""
        ada, bob = self.who["ada"].account, self.who["bob"].account
        if by_self:
            self.append("bob", leaving(self.space, bob, now_ms=START_MS))
        else:
            self.append("ada", removing(self.space, ada, bob, [ada], now_ms=START_MS))

    def append(self, name: str, step: Any) -> None:
        path = f"/api/v1/spaces/{self.space.space_id}/members"
        answer = self.call(name, "POST", path, step.append)
        assert answer.status_code == 200, answer.text
        self.space = step.after

    @rule(name=st.sampled_from(["bob", "eve"]), role=st.sampled_from(["owner", "admin", "member"]))
    def seize(self, name: str, role: Any) -> None:
        """Somebody who may not write an entry that gives them a role."""
        account = self.who[name].account
        if self.role.get(name) == "admin":
            role = "owner"
        others = [one for one in self.space.newest.members if one.account_id != account.account_id]
        entry = next_entry(
            self.space, account, [*others, member_of(account, role)], now_ms=START_MS
        )
        path = f"/api/v1/spaces/{self.space.space_id}/members"
        answer = self.call(
            name, "POST", path, MembershipAppend(entry=signed_by(account, entry), wraps=[])
        )
        if self.role.get(name) == role:
            assert answer.status_code in (400, 403), answer.text  # it would change nothing
        else:
            assert answer.status_code == (403 if name in self.role else 404), answer.text

    # Writing

    def push(
        self,
        name: str,
        owner: str,
        forged: set[str],
        device: str,
        stamped: str,
        author: str,
        record: str,
        op: str,
        visibility: str,
        late_ms: int,
        version: int,
        known_id: int,
        paths: set[str],
    ) -> None:
        """Push one change, of which up to two parts are forged."""
        device = device if "device" in forged else "own"
        stamped = stamped if "stamped" in forged else "own"
        late_ms = late_ms if "late" in forged else 0
        version = version if "version" in forged else 0
        seen = 1 if "seen" in forged else 0
        space = self.space.space_id if owner == "shared" else self.who[owner].space
        log = self.logs[space]
        own = self.who[name].account
        device_id = self.device(name, device)
        self.moment += 1
        at = Stamp(START_MS + late_ms, self.moment % 0xFFFF, DeviceId(self.device(name, stamped)))
        standing = log.author_of(record)
        author_id = standing or own.account_id
        if "author" in forged:
            author_id = self.account(author)
        if "visibility" not in forged and op != "flip":
            visibility = log.visibility_of(record) or visibility
        if op == "flip":
            standing_paths = log.merged(own.account_id).get(record, {})
            paths = set(standing_paths) or paths
        current = self.space.newest.key_version if owner == "shared" else 1
        change = ChangeMessage(
            change_id=self.change_id(known_id if "id" in forged else None),
            table="tasks",
            id=record,
            op=op,
            fields={
                path: FieldWrite(self.envelope(visibility, max(1, current + version)), str(at))
                for path in sorted(paths)
            },
            actor={"kind": "user", "principalId": own.account_id},
            origin="user",
            author_id=author_id,
            visibility=visibility,
        )
        if op == "flip":
            change = signed(own, space, change)
        heads = {space: len(log.changes) + seen} if seen else {}
        request = PushRequest(device_id=device_id, changes=[change], heads=heads)
        answer = self.call(name, "POST", f"/api/v1/spaces/{space}/changes", request)
        role = self.members(space).get(name)
        if role is None:
            # Whose device it is is asked after whose space it is, or before: both say nothing.
            assert answer.status_code in (403, 404), answer.text
            return
        if device_id != own.device_id and not seen:
            assert answer.status_code == 403
            return
        if seen:
            assert answer.status_code == 409
            return
        assert answer.status_code == 200, answer.text
        (result,) = msgspec.json.decode(answer.content, type=PushAnswer).results
        if result.status == "accepted":
            self.accepted(name, space, role, change, result.seq, current)
        elif result.status == "duplicate":
            assert result.seq is not None
            writer, there = log.changes[result.seq - 1]
            assert (writer, there.change_id, there.id) == (name, change.change_id, record)

    @rule(seed=seeds)
    def push_much(self, seed: int) -> None:
        """Push a dozen times. One number draws them all: Hypothesis stops an example that asks
        for many, and most of what happens to a hub are pushes."""
        dice = random.Random(seed)
        for _ in range(12):
            self.push(**drawn(dice))

    def accepted(
        self,
        name: str,
        space: str,
        role: str,
        change: ChangeMessage,
        seq: int | None,
        current: int,
    ) -> None:
        """Check that the hub was right to take a change, and take it into the model."""
        log, own = self.logs[space], self.who[name].account
        assert role != "viewer"
        standing = log.author_of(change.id)
        assert change.author_id == (standing or own.account_id)
        if standing is not None and change.op != "flip":
            assert change.visibility == log.visibility_of(change.id)
        if change.visibility == "private" or change.op == "flip":
            assert change.author_id == own.account_id
        for write in change.fields.values():
            stamp = parse_stamp(write.at)
            assert stamp.wall_ms <= START_MS + DRIFT_MS_MAX
            if change.op != "reseal":
                assert stamp.device == own.device_id
            if change.visibility == "space":
                assert f":s{current}:" in write.value
        taken = {(writer, one.change_id) for writer, one in log.changes}
        assert (name, change.change_id) not in taken
        assert seq == len(log.changes) + 1
        log.changes.append((name, change))

    def device(self, name: str, which: str) -> str:
        if which == "unknown":
            return UNKNOWN
        return self.who[name if which == "own" else which].account.device_id

    def change_id(self, known: int | None) -> str:
        logged = [one.change_id for log in self.logs.values() for _, one in log.changes]
        if known is not None and logged:
            return logged[known % len(logged)]
        self.made += 1
        return str(uuid.UUID(int=self.made))

    def envelope(self, visibility: str, version: int) -> str:
        self.made += 1
        cls = "p" if visibility == "private" else "s"
        unique = self.made.to_bytes(12, "big")
        return f"enc:2:{cls}{version}:{b64(unique)}.{b64(unique * 4)}"

    # Reading

    @rule(
        name=people,
        owner=st.sampled_from(["shared", "shared", *NAMES]),
        after=st.integers(0, 6),
        limit=st.sampled_from([1, 2, 1_000]),
    )
    def pull(self, name: str, owner: str, after: int, limit: int) -> None:
        """Read a log on from anywhere, beyond its end too."""
        space = self.space.space_id if owner == "shared" else self.who[owner].space
        log = self.logs[space]
        query = f"after={after}&limit={limit}"
        answer = self.call(name, "GET", f"/api/v1/spaces/{space}/changes?{query}")
        if name not in self.members(space):
            assert answer.status_code == 404
            return
        if after > len(log.changes):
            assert answer.status_code == 409
            return
        page = msgspec.json.decode(answer.content, type=PullAnswer)
        shown = {one.change_id for one in log.shown_to(self.account(name))}
        expected = [
            seq
            for seq, (_, one) in enumerate(log.changes, start=1)
            if after < seq <= page.cursor and one.change_id in shown
        ]
        assert [one.seq for one in page.changes] == expected
        for one in page.changes:
            assert one.change == log.changes[one.seq - 1][1]
        assert page.more or page.cursor == len(log.changes)
        for hidden in page.hidden:
            assert log.visibility_of(hidden.id) == "private"
            assert log.author_of(hidden.id) != self.account(name)

    @rule(name=people, owner=st.sampled_from(["shared", "shared", *NAMES]))
    def read_state(self, name: str, owner: str) -> None:
        """Read the merged records, all and one by one."""
        space = self.space.space_id if owner == "shared" else self.who[owner].space
        answer = self.call(name, "GET", f"/api/v1/spaces/{space}/records")
        if name not in self.members(space):
            assert answer.status_code == 404
            return
        state = msgspec.json.decode(answer.content, type=StateAnswer)
        found = {
            one.id: {path: (entry.value, entry.at) for path, entry in one.fields.items()}
            for one in state.records
        }
        merged = self.logs[space].merged(self.account(name))
        assert found == {
            record: {path: (entry.value, entry.at) for path, entry in entries.items()}
            for record, entries in merged.items()
        }
        assert state.head == len(self.logs[space].changes)
        for record in RECORDS:
            raw = self.call(name, "GET", f"/api/v1/spaces/{space}/records/tasks/{record}")
            alone = msgspec.json.decode(raw.content, type=StateAnswer).records
            assert [one.id for one in alone] == ([record] if record in merged else [])

    @rule(name=people, space=st.sampled_from(["shared", *NAMES]))
    def ask_for_a_grant(self, name: str, space: str) -> None:
        """Ask for keys over what is in a space, and end a grant that is nobody's."""
        space_id = self.space.space_id if space == "shared" else self.who[space].space
        body = {
            "missionId": "r0",
            "tables": ["tasks"],
            "recordIds": ["tasks:r0"],
            "endpoints": ["rules:offline"],
            "spaceId": space_id,
        }
        answer = self.runner.run(self.who[name].call("POST", "/api/v1/me/ai-mission-grant", body))
        # No runner has left its key here: that is all that a member is told.
        role = self.members(space_id).get(name)
        wanted = {None: 404, "viewer": 403}.get(role, 503)
        assert answer.status_code == wanted, answer.text
        assert (
            self.call(name, "DELETE", f"/api/v1/me/ai-mission-grant/{UNKNOWN}").status_code == 404
        )

    # What always holds

    @rule(name=people)
    def list_spaces(self, name: str) -> None:
        """Everybody's list of spaces is theirs."""
        raw = self.call(name, "GET", "/api/v1/spaces").content
        answer = msgspec.json.decode(raw, type=SpacesAnswer)
        account = self.who[name].account
        wanted = {account.personal.space_id, account.user.space_id}
        if name in self.role:
            wanted.add(self.space.space_id)
        assert {one.space_id for one in answer.spaces} == wanted
        for one in answer.departed:
            assert (one.space_id, name) == (self.space.space_id, "bob")

    @invariant()
    def logs_are_gap_free(self) -> None:
        """The log in the database is the model's, numbered from 1 without a gap."""
        if not hasattr(self, "logs"):
            return
        query = "select space_id, seq, change_id from mana.sync_changes order by 1, 2"
        found: dict[str, list[tuple[int, str]]] = {}
        for row in self.runner.run(self.owner.fetch(query)):
            found.setdefault(row["space_id"], []).append((row["seq"], row["change_id"]))
        for space, log in self.logs.items():
            assert found.get(space, []) == [
                (seq, one.change_id) for seq, (_, one) in enumerate(log.changes, start=1)
            ]


@pytest.fixture
def machine(postgres: Cluster) -> type[Tenants]:
    Tenants.cluster = postgres
    return Tenants


@pytest.mark.timeout(300)
def test_tenants(machine: type[Tenants]) -> None:
    """In whatever order two members and an outsider write, read, come and go, with whatever they
    forge, nobody writes or reads what is not theirs and the hub never fails."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            database=None,
            # The steps are printed as they are; a shorter way to the same failure is not worth
            # the minutes that every run of it takes.
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
