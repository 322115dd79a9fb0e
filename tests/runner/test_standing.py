"""What a worker verified once counts for exactly that, and what it opens is what it reads."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from mana.crypto.authority import SignerRevoked
from mana.crypto.errors import Malformed, SealRejected, SignatureRejected
from mana.crypto.identity import revoke_device
from mana.crypto.keys import mission_key
from mana.crypto.primitives import b64
from mana.domain.agents import AGENTS
from mana.domain.clock import iso_ms
from mana.domain.iterations import ITERATIONS, STEPS
from mana.hub.runner import standing
from mana.hub.runner.dialogue import Finished, Message, Standing, WorkerLost
from mana.hub.runner.opening import GrantedKey, KeyRotated, MissionKey, open_record
from mana.hub.runner.standing import Space
from mana.hub.runner.worker import work
from mana.planning.past import PAST_FIELDS
from mana.protocol.messages import DeviceRevocation, StateRecord
from mana.registry.catalogue import load_catalogue
from mana.testing.runs import Instant, Missions, answer

pytestmark = pytest.mark.anyio


def told(missions: Missions) -> Standing:
    return next(one for one in missions.setup if isinstance(one, Standing))


def agent_of(missions: Missions) -> StateRecord:
    return next(one for one in missions.records[0] if one.table == AGENTS.name)


def with_state(record: StateRecord, state: str) -> StateRecord:
    """Return the record with another plain state, as a hub that lies would give it."""
    field = msgspec.structs.replace(record.fields["state"], value=state)
    return msgspec.structs.replace(record, fields={**record.fields, "state": field})


def test_a_record_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same agent under the same log is verified for the first run and not for the others."""
    missions = Missions.made(1)
    verified: list[str] = []
    verify = standing.verify_record

    def counting(*given: object) -> None:
        verified.append("once")
        verify(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(standing, "verify_record", counting)
    space = Space(told(missions))
    for _ in range(3):
        # Each run reads its records from bytes of its own.
        again = msgspec.json.decode(msgspec.json.encode(agent_of(missions)), type=StateRecord)
        space.require_obeyed(again, AGENTS)
    assert verified == ["once"]


def test_another_byte_is_verified_anew() -> None:
    """A record that was verified vouches for no other one of its name, and none that failed counts
    later."""
    missions = Missions.made(1)
    space, record = Space(told(missions)), agent_of(missions)
    space.require_obeyed(record, AGENTS)
    for _ in range(2):
        with pytest.raises(SignatureRejected):
            space.require_obeyed(with_state(record, "paused"), AGENTS)
        with pytest.raises(SignatureRejected):
            space.require_obeyed(msgspec.structs.replace(record, proofs={}), AGENTS)
    space.require_obeyed(record, AGENTS)


def test_another_log_is_verified_anew() -> None:
    """What was verified under one standing counts nothing under the next, which revokes its signer."""
    missions = Missions.made(1)
    record, account = agent_of(missions), missions.account
    Space(told(missions)).require_obeyed(record, AGENTS)
    revoked_at = iso_ms(missions.now_ms - 1)
    word = revoke_device(
        account.identity.signing_key, account.account_id, account.device_id, revoked_at
    )
    revocation = DeviceRevocation(
        version="v1",
        account_id=account.account_id,
        device_id=account.device_id,
        revoked_at=revoked_at,
        signature=b64(word.signature),
    )
    later = msgspec.structs.replace(told(missions), digest="other", revocations=[revocation])
    with pytest.raises(SignerRevoked):
        Space(later).require_obeyed(record, AGENTS)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that meets ever other records remembers some, and verifies all."""
    missions = Missions.made(1)
    monkeypatch.setattr(standing, "OBEYED_MAX", 2)
    space = Space(told(missions))
    for record in missions.records[0][:3] * 2:
        space.require_obeyed(record, load_catalogue().table(record.table))
    with pytest.raises(SignatureRejected):
        space.require_obeyed(with_state(agent_of(missions), "paused"), AGENTS)


class OneRun:
    """The runner's side of one run, in this process; `done` is what it wrote."""

    def __init__(self, missions: Missions) -> None:
        self._said: list[Message] = [*missions.setup, missions.job(0)]
        self._came = asyncio.Event()
        self.done: Finished | None = None

    async def send(self, message: Message) -> None:
        self.tell(message)

    def tell(self, message: Message) -> None:
        reply = answer(message)
        if isinstance(message, Finished):
            self.done = message
        elif reply is not None:
            self._said.append(reply)
        self._came.set()

    async def receive(self) -> Message:
        while not self._said:
            if self.done is not None:
                raise WorkerLost("that was all")
            self._came.clear()
            await self._came.wait()
        return self._said.pop(0)

    async def close(self) -> None:
        return


def broken(record: StateRecord, path: str) -> StateRecord:
    """Return the record with the sealed value of another path in the place of this one."""
    value = record.fields["summary" if path != "summary" else "model"].value
    field = msgspec.structs.replace(record.fields[path], value=value)
    return msgspec.structs.replace(record, fields={**record.fields, path: field})


async def test_of_history_only_what_is_told_is_opened() -> None:
    """Of an earlier run nothing is plain but what the next prompt tells; and of that, every value
    has to open in its own place."""
    missions = Missions.made(1)
    channel = OneRun(missions)
    with pytest.raises(WorkerLost):
        await work(channel, model=Instant)
    assert channel.done is not None
    missions.ran(channel.done)
    iteration, step = missions.history[0][0]
    mission = MissionKey.of(
        GrantedKey(mission_key(missions.account.personal.space_key, "mission-0"), "m1")
    )
    space = missions.account.personal.space_id

    def opened(record: StateRecord) -> set[str]:
        table = {one.name: one for one in (ITERATIONS, STEPS)}[record.table]
        key = mission.for_record(record.table, record.id)
        fields = PAST_FIELDS[record.table]
        return set(open_record(space, record, table, key, fields=fields).values)

    assert "rationale" in step.fields
    assert "preview" in step.fields
    assert opened(step) <= PAST_FIELDS[STEPS.name]
    assert {"intent", "sentence", "status", "index"} <= opened(step)
    assert opened(iteration) == {"missionId", "scheduledFor", "startedAt", "summary"}
    assert opened(broken(iteration, "refusals")) == opened(iteration)
    with pytest.raises(SealRejected):
        opened(broken(iteration, "summary"))


def test_only_the_key_of_a_record_opens_it() -> None:
    """Another key, another version and a value that is no envelope are refused, each by its name."""
    missions = Missions.made(1)
    record = agent_of(missions)
    key = GrantedKey(bytes(32), "s1")
    with pytest.raises(SealRejected):
        open_record(missions.account.personal.space_id, record, AGENTS, key)
    with pytest.raises(KeyRotated):
        open_record(missions.account.personal.space_id, record, AGENTS, GrantedKey(bytes(32), "s2"))
    for value in ({"not": "an envelope"}, "not an envelope"):
        plain = msgspec.structs.replace(record.fields["name"], value=value)
        with pytest.raises(Malformed):
            open_record(
                missions.account.personal.space_id,
                msgspec.structs.replace(record, fields={**record.fields, "name": plain}),
                AGENTS,
                key,
            )
