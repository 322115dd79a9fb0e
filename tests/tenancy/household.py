"""Five people on a real hub: a shared space with three roles, one who left it, and an outsider.

Everything that an endpoint can name stands: records, a private one, a mission with its agent,
grants, devices, invitations, an audit. `secrets_of` collects what the outsider must never read.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from mana.crypto.primitives import b64
from mana.domain.spaces import Role
from mana.protocol.messages import ChangeMessage, Tokens
from mana.testing.accounts import FoundedSpace, new_device, sealed_change
from mana.testing.postgres import Database, connected
from mana.testing.spaces import (
    MadeInvitation,
    MadeSpace,
    Step,
    adding,
    invitation,
    leaving,
    shared_space,
)
from tests.faults.load import TASKS
from tests.hub.client import Person, Served, codes, served_hub
from tests.hub.proofs import proof
from tests.runner.world import World, leave_runner_key, now_ms

NAMES = ("ada", "bob", "vic", "rem", "out")
MISSION, AGENT, NOTE_ID = "mission-1", "agent-1", "note-1"
SHARED_TASK, PRIVATE_TASK, HOME_TASK = "canary-shared", "canary-private", "canary-home"
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@dataclass
class Household:
    """The hub, the people by name, and the ids of what stands."""

    database: Database
    served: Served
    home: Path
    people: dict[str, Person]
    space: MadeSpace
    invitation: MadeInvitation
    grant_id: str
    pending_id: str
    session_id: str = ""
    device_id: str = ""
    factor_id: str = ""
    link_id: str = "5" * 32
    reservation_id: str = ""
    """Ada's: a session that nobody uses, its device, a second factor and a link that wait, and
    tokens that a device of hers holds."""

    def in_space(self, name: str) -> World:
        """Return a person who acts in the shared space as if it were their own."""
        person = self.people[name]
        account = replace(person.account, personal=founded(self.space))
        return World(
            self.database, self.served, Person(self.served, account, person.tokens), self.home
        )

    def task(self, name: str, record_id: str, **options: object) -> ChangeMessage:
        """Return a person's new task in the shared space."""
        return sealed_change(
            self.people[name].account,
            TASKS,
            record_id,
            {"title": "canary"},
            now_ms=now_ms(),
            space=founded(self.space),
            **options,  # type: ignore[arg-type]
        )

    async def take(self, name: str, step: Step) -> None:
        """Append to the membership log."""
        path = f"/api/v1/spaces/{self.space.space_id}/members"
        answer = await self.people[name].call("POST", path, step.append)
        assert answer.status_code == 200, answer.text
        self.space = step.after

    async def join(self, name: str, role: Role) -> None:
        """Invite somebody, let them accept, and let them in."""
        joiner = self.people[name]
        made = await self.new_invitation(role)
        path = f"/api/v1/invitations/{made.new.invitation_id}"
        answer = await joiner.call("POST", path, made.accepted_by(joiner.account))
        assert answer.status_code == 200, answer.text
        ada = self.people["ada"].account
        await self.take("ada", adding(self.space, ada, joiner.account, role, now_ms=now_ms()))

    async def new_invitation(self, role: Role = "member") -> MadeInvitation:
        """Make an invitation that nobody accepted yet."""
        made = invitation(self.space, role, now_ms=self.served.clock.now_ms)
        path = f"/api/v1/spaces/{self.space.space_id}/invitations"
        answer = await self.people["ada"].call("POST", path, made.new)
        assert answer.status_code == 201, answer.text
        return made


def founded(space: MadeSpace) -> FoundedSpace:
    """Return a shared space as one whose keys are at hand."""
    return replace(space.founded, space_key=space.keys[max(space.keys)])


@contextlib.asynccontextmanager
async def household(database: Database, home: Path) -> AsyncIterator[Household]:
    """Lend the five people, their space, and everything in it; `home` keeps the hub's secrets."""
    async with served_hub(database, home=home) as served:
        served.clock.now_ms = now_ms()
        people = {name: await served.sign_up(f"{name}-canary") for name in NAMES}
        yield await furnished(database, served, home, people)


async def furnished(
    database: Database, served: Served, home: Path, people: dict[str, Person]
) -> Household:
    ada = people["ada"]
    space = shared_space(ada.account, "team", now_ms=served.clock.now_ms)
    answer = await ada.call("POST", "/api/v1/spaces", space.founded.new)
    assert answer.status_code == 201, answer.text
    made = Household(
        database, served, home, people, space, invitation(space, "member", now_ms=1), "", ""
    )
    await made.join("bob", "member")
    await made.join("vic", "viewer")
    await made.join("rem", "member")
    answer = await people["rem"].push([made.task("rem", "by-rem")], space=space.space_id)
    assert codes(answer) == ["accepted"]
    left = leaving(made.space, people["rem"].account, now_ms=now_ms())
    path = f"/api/v1/spaces/{space.space_id}/members"
    assert (await people["rem"].call("POST", path, left.append)).status_code == 200
    made.space = left.after
    made.invitation = await made.new_invitation()
    for name, person in people.items():
        home_task = sealed_change(
            person.account, TASKS, f"{HOME_TASK}-{name}", {"title": "x"}, now_ms=now_ms()
        )
        assert codes(await person.push([home_task])) == ["accepted"]
    changes = [
        made.task("ada", SHARED_TASK),
        made.task("ada", PRIVATE_TASK, visibility="private"),
    ]
    assert set(codes(await ada.push(changes, space=space.space_id))) == {"accepted"}
    await working(made)
    await guarded(made)
    return made


async def guarded(made: Household) -> None:
    """Let Ada have a second session with a device, and a factor and a link that are not finished."""
    ada = made.people["ada"]
    answer = await ada.log_in()
    there = Person(made.served, ada.account, msgspec.json.decode(answer.content, type=Tokens))
    made.session_id = there.session_id
    device_id, _, certificate = new_device(ada.account.identity, now_ms=now_ms())
    made.device_id = device_id
    answer = await there.call("POST", "/api/v1/me/devices", certificate)
    assert answer.status_code == 201, answer.text
    body = {"kind": "totp", "name": "canary"}
    signed = await proof(ada, "factor-begin", body)
    answer = await ada.call("POST", "/api/v1/me/factors", {**body, "proof": signed})
    assert answer.status_code == 201, answer.text
    made.factor_id = answer.json()["factorId"]
    request = {
        "linkId": made.link_id,
        "login": ada.account.login,
        "name": "canary",
        "commitment": b64(bytes(32)),
    }
    answer = await made.served.call("POST", "/api/v1/auth/links", request)
    assert answer.status_code == 201, answer.text


async def working(made: Household) -> None:
    """Let a mission of the space run once under a grant; leave one grant unfinished."""
    world = made.in_space("ada")
    leave_runner_key(world.settings())
    await world.agent(AGENT)
    await world.note(NOTE_ID)
    await world.mission(MISSION)
    header = await world.complete(await world.header(space_id=made.space.space_id))
    made.grant_id = header.grant_id
    made.pending_id = (await world.header(space_id=made.space.space_id)).grant_id
    await world.run_now(MISSION)
    async with world.runner() as runner:
        stats = await runner.scheduler.tick()
    assert (stats.errors, stats.plans_written_back) == ([], 1)
    path = f"/api/v1/spaces/{made.space.space_id}/missions/{MISSION}/reservations"
    body = {"agentId": AGENT, "tokens": 10, "tokensMin": 10}
    answer = await made.people["ada"].call("POST", path, body)
    assert answer.status_code == 201, answer.text
    made.reservation_id = answer.json()["reservationId"]


async def secrets_of(made: Household, name: str) -> set[str]:
    """Return every id and text of the hub that stands in no row of this person's own."""
    person = made.people[name].account
    own = {person.account_id, person.device_id, person.personal.space_id, person.user.space_id}
    found: set[str] = set()
    async with connected(made.database.owner_url) as owner:
        for query in (
            "select account_id from mana.accounts",
            "select login from mana.accounts",
            "select device_id from mana.devices where account_id <> $1",
            "select space_id from mana.spaces",
            "select change_id from mana.sync_changes where user_id <> $1",
            "select record_id from mana.records where author_id <> $1 and record_id like 'canary%'",
            "select grant_id from mana_ai.grants where account_id <> $1",
            """select invitation_id from mana.invitations
                where created_by <> $1 and account_id is distinct from $1""",
            """select occurrence_id from mana_ai.occurrences o where not exists
                (select from mana.memberships m where m.space_id = o.space_id
                    and m.account_id = $1)""",
            "select wrapped from mana.space_keys where account_id <> $1",
            "select session_id from mana.sessions where account_id <> $1",
            "select factor_id from mana.second_factors where account_id <> $1",
            "select link_id from mana.links where account_id <> $1",
            "select usage_id from mana_ai.token_usage where account_id <> $1",
        ):
            asked = (person.account_id,) if "$1" in query else ()
            found |= {str(row[0]) for row in await owner.fetch(query, *asked)}
    return found - own - {person.login}
