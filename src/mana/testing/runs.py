"""Runs without a runner: granted missions of one account, sealed and signed as devices do it.

No database and no process: whoever plays the runner hands `Missions.job` to a worker, answers what
it asks by `answer`, and gives back what it wrote by `ran`, which later runs read as history.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import msgspec

from mana.crypto.envelope import RecordKey
from mana.crypto.grants import countersign_grant, seal_grant
from mana.crypto.hpke import SUITE
from mana.crypto.keys import mission_key
from mana.crypto.primitives import b64
from mana.crypto.runners import RunnerPrivateKey
from mana.crypto.signatures import SigningKey
from mana.domain.agents import AGENT_MEMORY, AGENTS
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.grants import GrantHeader
from mana.domain.missions import MISSIONS
from mana.domain.policy import STANDARD
from mana.domain.tables import Table
from mana.hub.runner.dialogue import (
    AuditAsk,
    AuditDone,
    Finished,
    Granted,
    GrantMaterial,
    Job,
    Message,
    OpeningKey,
    ReserveAsk,
    SettleAsk,
    Setup,
    Standing,
)
from mana.models.settings import OFFLINE
from mana.modules.notes.manifest import MANIFEST as NOTES
from mana.planning.ports import ModelReply, ModelRequest
from mana.protocol.messages import ChangeMessage, Signature, StateField, StateRecord
from mana.protocol.replication import proof_of
from mana.testing.accounts import NewAccount, new_account, sealed_change
from mana.testing.models import calling, says

INPUTS: Final = 5
HISTORY: Final = 3
DAY_MS: Final = 86_400_000
CONTENT: Final = "- [ ] call the plumber\n" + "The tap in the kitchen drips since Monday. " * 12
AGENT: Final = "agent-1"
DIGEST: Final = "standing-1"
_NOTE: Final = next(table for table in NOTES.tables if table.name == "notes")


class Instant:
    """A model that proposes one task and ends, without a moment's thought."""

    endpoint = "rules:offline"
    name = "instant"
    description = "instant: proposes one task"
    metered = False

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Return one call, then a closing reply."""
        if request.messages[-1].role == "tool":
            return says("One task is proposed.")
        return says(
            "", calling("create_task", {"title": "Call the plumber", "rationale": "It drips."})
        )


@dataclass
class Missions:
    """An account with missions that wait, as a runner hands them to a worker.

    `setup`: what a worker is told before the first job. Mission n takes every n-th run.
    """

    account: NewAccount
    runner: RunnerPrivateKey
    hub: SigningKey
    now_ms: int
    setup: list[Message] = field(default_factory=list)
    grants: list[GrantMaterial] = field(default_factory=list)
    records: list[list[StateRecord]] = field(default_factory=list)
    history: list[deque[list[StateRecord]]] = field(default_factory=list)

    @classmethod
    def made(cls, count: int, *, content: str = CONTENT) -> Missions:
        """Make an account with so many granted missions, each over five notes of this content."""
        now_ms = time.time_ns() // 1_000_000
        account = new_account("ada", now_ms=now_ms)
        runner = RunnerPrivateKey.generate()
        made = cls(account, runner, SigningKey.generate(), now_ms)
        made.setup = made._setup()
        support = made._support()
        for place in range(count):
            made._add(f"mission-{place}", support, f"{content} {place}")
        return made

    def job(self, run: int) -> Job:
        """Return the job of a run: a mission is due once a day."""
        which = run % len(self.grants)
        moment = self.now_ms + run // len(self.grants) * DAY_MS
        earlier = [record for records in self.history[which] for record in records]
        return Job(
            run=run,
            space_id=self.account.personal.space_id,
            mission_id=f"mission-{which}",
            agent_id=AGENT,
            account_id=self.account.account_id,
            scheduled_for=iso_ms(moment),
            fence=1,
            now_ms=moment,
            grant=self.grants[which],
            standing=DIGEST,
            runner_key_id=self.runner.public().key_id(),
            records=msgspec.json.encode(self.records[which]),
            earlier=msgspec.json.encode(earlier),
        )

    def ran(self, done: Finished) -> None:
        """Keep what a run wrote, for the next one of its mission."""
        history = self.history[done.run % len(self.grants)]
        history.append([_stored(one) for one in done.changes])

    def _setup(self) -> list[Message]:
        space = self.account.personal
        return [
            Setup(hub_key=b64(self.hub.public().to_bytes()), models=OFFLINE),
            OpeningKey(key_id=self.runner.public().key_id(), pem=self.runner.to_pem()),
            Standing(
                space_id=space.space_id,
                digest=DIGEST,
                log=[space.new.first],
                certificates=[self.account.certificate],
                revocations=[],
            ),
        ]

    def _support(self) -> list[StateRecord]:
        agent: dict[str, Json] = {
            "name": "Nora",
            "role": "helper",
            "systemPrompt": "You care for a house and its garden.",
            "policy": STANDARD.to_wire(),
            "state": "active",
            "maxConcurrentMissions": 4,
        }
        memory: dict[str, Json] = {"agentId": AGENT, "content": "likes short lists"}
        return [self._record(AGENTS, AGENT, agent), self._record(AGENT_MEMORY, AGENT, memory)]

    def _add(self, mission: str, support: list[StateRecord], content: str) -> None:
        """Add a mission, its notes and its grant."""
        names = [f"{mission}-note-{place}" for place in range(INPUTS)]
        notes = [self._record(_NOTE, name, {"title": name, "content": content}) for name in names]
        header = GrantHeader(
            grant_id=str(uuid.uuid4()),
            account_id=self.account.account_id,
            space_id=self.account.personal.space_id,
            mission_id=mission,
            agent_id=AGENT,
            tables=(_NOTE.name,),
            record_ids=tuple(sorted(f"{_NOTE.name}:{name}" for name in names)),
            endpoints=(Instant.endpoint,),
            issued_at=iso_ms(self.now_ms),
            expires_at=iso_ms(self.now_ms + 7 * DAY_MS),
            suite=SUITE,
            runner_key_id=self.runner.public().key_id(),
        )
        values: dict[str, Json] = {
            "title": "Review",
            "objective": "Find what is to be done in the house.",
            "conceptMarkdown": "A house of 1920 with a garden.",
            "inputs": [{"module": "notes", "table": _NOTE.name, "id": name} for name in names],
            "state": "active",
            "cadence": {"kind": "daily", "atHour": 7, "atMinute": 0},
            "timeZone": "Europe/Berlin",
            "agentId": AGENT,
            "runsOn": "hub",
            "grantId": header.grant_id,
        }
        self.grants.append(self._granted(header))
        self.records.append([self._record(MISSIONS, mission, values), *support, *notes])
        self.history.append(deque(maxlen=HISTORY))

    def _record(self, table: Table, record_id: str, values: dict[str, Json]) -> StateRecord:
        return _stored(sealed_change(self.account, table, record_id, values, now_ms=self.now_ms))

    def _granted(self, header: GrantHeader) -> GrantMaterial:
        """Return a grant as its device makes it and the register keeps it."""
        key = self.account.personal.space_key

        def granted(name: str) -> dict[str, Json]:
            table, _, record = name.partition(":")
            return {"k": b64(RecordKey.derive(key, table, record).to_bytes()), "e": "s1"}

        support = [
            f"{MISSIONS.name}:{header.mission_id}",
            f"{AGENTS.name}:{AGENT}",
            f"{AGENT_MEMORY.name}:{AGENT}",
        ]
        payload: dict[str, Json] = {
            "records": {name: granted(name) for name in header.record_ids},
            "support": {name: granted(name) for name in support},
            "iterationKey": {"k": b64(mission_key(key, header.mission_id)), "e": "m1"},
        }
        raw = header.canonical()
        sealed = seal_grant(
            raw,
            header.mission_id,
            payload,
            runner=self.runner.public().wrap_key(header.suite),
            device=self.account.device_key,
        )
        return GrantMaterial(
            header=raw.decode(),
            wrapped_key=b64(sealed.wrapped_key),
            sealed_keys=sealed.sealed_keys,
            signature=Signature(signer=self.account.device_id, value=b64(sealed.signature)),
            hub_signature=b64(countersign_grant(self.hub, raw, sealed)),
        )


def answer(message: Message) -> Message | None:
    """Return what a runner says that allows everything; None to what asks nothing."""
    match message:
        case AuditAsk():
            return AuditDone(message.run, 7, "0" * 64)
        case ReserveAsk():
            return Granted(message.run, str(uuid.uuid4()), message.completion_tokens_max)
        case SettleAsk():
            return Granted(message.run, message.reservation)
        case _:
            return None


def _stored(change: ChangeMessage) -> StateRecord:
    """Return the record that a change founds, as a database gives it."""
    signature = change.signature if change.origin == "user" else None
    return StateRecord(
        table=change.table,
        id=change.id,
        author_id=change.author_id,
        visibility=change.visibility,
        seq=1,
        fields={
            path: StateField(
                value=write.value,
                at=write.at,
                actor=change.actor,
                origin=change.origin,
                change_id=change.change_id,
            )
            for path, write in change.fields.items()
        },
        proofs={} if signature is None else {change.change_id: proof_of(change, signature)},
    )
