"""What one run costs in its worker: CPU time, and which part of it goes where.

One process, no database and no network: the worker's own session over a channel that answers at
once, a model that needs no time, and missions of one account as devices seal and sign them, each
with an agent, its memory, five notes, three earlier runs, and one step that is proposed. What the
pipe costs the worker (packing, reading) is counted; the runner's side is not.
Aim: 2 ms of CPU time a run at most.

    python -m bench run [--runs=256] [--missions=16] [--top=25]
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import pstats
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from mana.crypto.envelope import RecordKey
from mana.crypto.grants import countersign_grant, seal_grant
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
from mana.hub.runner.dialogue import (
    AuditAsk,
    AuditDone,
    Finished,
    Granted,
    GrantMaterial,
    Job,
    Message,
    ModelSpec,
    OpeningKey,
    ReserveAsk,
    SettleAsk,
    Setup,
    Standing,
    Stopped,
    ToWorker,
    WorkerLost,
)
from mana.hub.runner.worker import work
from mana.modules.notes.manifest import MANIFEST as NOTES
from mana.planning.ports import ModelReply, ModelRequest
from mana.protocol.messages import ChangeMessage, Signature, StateField, StateRecord
from mana.protocol.replication import proof_of
from mana.testing.accounts import NewAccount, new_account, sealed_change
from mana.testing.models import calling, says

INPUTS: Final = 5
HISTORY: Final = 3
DAY_MS: Final = 86_400_000
NOTE: Final = next(table for table in NOTES.tables if table.name == "notes")
CONTENT: Final = "- [ ] call the plumber\n" + "The tap in the kitchen drips since Monday. " * 12


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
class Case:
    """An account with missions that wait, as a runner hands them to a worker."""

    account: NewAccount
    setup: list[Message]
    grants: list[GrantMaterial]
    records: list[list[StateRecord]]
    runner: RunnerPrivateKey
    now_ms: int
    history: list[deque[list[StateRecord]]] = field(default_factory=list)

    def job(self, run: int) -> Job:
        """Return the next job: missions take turns, and each one is due once a day."""
        which = run % len(self.grants)
        moment = self.now_ms + run // len(self.grants) * DAY_MS
        earlier = [record for records in self.history[which] for record in records]
        return Job(
            run=run,
            space_id=self.account.personal.space_id,
            mission_id=f"mission-{which}",
            agent_id="agent-1",
            account_id=self.account.account_id,
            scheduled_for=iso_ms(moment),
            fence=1,
            now_ms=moment,
            grant=self.grants[which],
            standing="digest",
            runner_key_id=self.runner.public().key_id(),
            records=msgspec.json.encode([*self.records[which], *earlier]),
        )

    def ran(self, run: int, done: Finished) -> None:
        """Keep what a run wrote, for the next one of its mission."""
        self.history[run % len(self.grants)].append([_stored(one) for one in done.changes])


def case(missions: int) -> Case:
    """Make an account with so many granted missions."""
    now_ms = time.time_ns() // 1_000_000
    account = new_account("ada", now_ms=now_ms)
    space, hub, runner = account.personal, SigningKey.generate(), RunnerPrivateKey.generate()

    def change(table: Any, record_id: str, values: dict[str, Json]) -> StateRecord:
        return _stored(sealed_change(account, table, record_id, values, now_ms=now_ms))

    support = [
        change(
            AGENTS,
            "agent-1",
            {
                "name": "Nora",
                "role": "helper",
                "systemPrompt": "You care for a house and its garden.",
                "policy": STANDARD.to_wire(),
                "state": "active",
                "maxConcurrentMissions": 4,
            },
        ),
        change(AGENT_MEMORY, "agent-1", {"agentId": "agent-1", "content": "likes short lists"}),
    ]
    notes = [
        change(NOTE, f"note-{place}", {"title": f"House {place}", "content": CONTENT})
        for place in range(INPUTS)
    ]
    grants: list[GrantMaterial] = []
    records: list[list[StateRecord]] = []
    for place in range(missions):
        header = GrantHeader(
            grant_id=str(uuid.uuid4()),
            account_id=account.account_id,
            space_id=space.space_id,
            mission_id=f"mission-{place}",
            agent_id="agent-1",
            tables=("notes",),
            record_ids=tuple(sorted(f"notes:{note.id}" for note in notes)),
            endpoints=(Instant.endpoint,),
            issued_at=iso_ms(now_ms),
            expires_at=iso_ms(now_ms + 7 * DAY_MS),
            suite="hpke-mlkem768-x25519",
            runner_key_id=runner.public().key_id(),
        )
        mission: dict[str, Json] = {
            "title": "Review",
            "objective": "Find what is to be done in the house.",
            "conceptMarkdown": "A house of 1920 with a garden.",
            "inputs": [{"module": "notes", "table": "notes", "id": note.id} for note in notes],
            "state": "active",
            "cadence": {"kind": "daily", "atHour": 7, "atMinute": 0},
            "timeZone": "Europe/Berlin",
            "agentId": "agent-1",
            "runsOn": "hub",
            "grantId": header.grant_id,
        }
        grants.append(_granted(account, header, runner, hub))
        records.append([change(MISSIONS, header.mission_id, mission), *support, *notes])
    setup = [
        Setup(hub_key=b64(hub.public().to_bytes()), model=ModelSpec()),
        OpeningKey(key_id=runner.public().key_id(), pem=runner.to_pem()),
        Standing(
            space_id=space.space_id,
            digest="digest",
            log=[space.new.first],
            certificates=[account.certificate],
            revocations=[],
        ),
    ]
    history: list[deque[list[StateRecord]]] = [deque(maxlen=HISTORY) for _ in range(missions)]
    return Case(account, setup, grants, records, runner, now_ms, history)


def _granted(
    account: NewAccount, header: GrantHeader, runner: RunnerPrivateKey, hub: SigningKey
) -> GrantMaterial:
    """Return a grant as its device makes it and the register keeps it."""
    key = account.personal.space_key

    def granted(name: str) -> dict[str, Json]:
        table, _, record = name.partition(":")
        return {"k": b64(RecordKey.derive(key, table, record).to_bytes()), "e": "s1"}

    support = [
        f"aiMissions:{header.mission_id}",
        f"agents:{header.agent_id}",
        f"agentMemory:{header.agent_id}",
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
        runner=runner.public().wrap_key(header.suite),
        device=account.device_key,
    )
    return GrantMaterial(
        header=raw.decode(),
        wrapped_key=b64(sealed.wrapped_key),
        sealed_keys=sealed.sealed_keys,
        signature=Signature(signer=account.device_id, value=b64(sealed.signature)),
        hub_signature=b64(countersign_grant(hub, raw, sealed)),
    )


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


class Answering:
    """The worker's end of a pipe on which a runner answers at once, one run after the other.

    `spent_s` is the worker's CPU time at the end of each run: what this class needs is left out.
    """

    def __init__(self, case: Case, runs: int, profile: cProfile.Profile, *, from_run: int) -> None:
        self._case = case
        self._runs = runs
        self._profile = profile
        self._from_run = from_run
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToWorker)
        self._waiting: asyncio.Queue[Message | None] = asyncio.Queue()
        self._apart_s = 0.0
        self.spent_s: list[float] = []
        self.stopped: list[Stopped] = []
        for message in case.setup:
            self._waiting.put_nowait(message)
        self._waiting.put_nowait(case.job(0))

    async def send(self, message: Message) -> None:
        """Send one message."""
        self.tell(message)

    def tell(self, message: Message) -> None:
        """Take one message of the worker's, and answer it."""
        assert msgspec.msgpack.encode(message)
        self._profile.disable()
        began = time.process_time()
        match message:
            case AuditAsk():
                self._waiting.put_nowait(AuditDone(message.run, 7, "0" * 64))
            case ReserveAsk():
                granted = Granted(message.run, "one", message.completion_tokens_max)
                self._waiting.put_nowait(granted)
            case SettleAsk():
                self._waiting.put_nowait(Granted(message.run, message.reservation))
            case Finished():
                self._case.ran(message.run, message)
                self._ended(message.run, began)
            case Stopped():
                self.stopped.append(message)
                self._ended(message.run, began)
        self._apart_s += time.process_time() - began
        if len(self.spent_s) >= self._from_run:
            self._profile.enable()

    def _ended(self, run: int, now_s: float) -> None:
        self.spent_s.append(now_s - self._apart_s)
        self._waiting.put_nowait(self._case.job(run + 1) if run + 1 < self._runs else None)

    async def receive(self) -> Message:
        """Return the next message of the runner; raise WorkerLost after the last run."""
        message = await self._waiting.get()
        if message is None:
            raise WorkerLost("that was all")
        began = time.process_time()
        raw = msgspec.msgpack.encode(message)
        self._apart_s += time.process_time() - began
        found: Message = self._decoder.decode(raw)
        return found

    async def close(self) -> None:
        """Close this end."""


class _Unseen(cProfile.Profile):
    """A profile that looks at nothing: what it measures costs a half more."""

    def enable(self, subcalls: bool = True, builtins: bool = True) -> None:
        """Do nothing."""


def measured(runs: int, missions: int, profile: cProfile.Profile) -> list[float]:
    """Return the CPU seconds of each run, the first ones without history left out."""
    made = case(missions)
    first = missions * (HISTORY + 1)
    channel = Answering(made, first + runs, profile, from_run=first)

    async def session() -> None:
        try:
            await work(channel, model=Instant)
        except WorkerLost:
            return

    # As in the warm parent: what is loaded is no collector's any more.
    gc.collect()
    gc.freeze()
    asyncio.run(session())
    gc.unfreeze()
    profile.disable()
    if channel.stopped:
        raise RuntimeError(f"runs ended otherwise: {channel.stopped[0]}")
    spent = channel.spent_s
    return [
        after - before for before, after in zip(spent[first - 1 :], spent[first:], strict=False)
    ]


PARTS: Final = (
    ("read the job", "dialogue.py", "records_of"),
    ("read and check the header", "gates.py", "read_header"),
    ("verify the grant", "grants.py", "verify_grant"),
    ("verify the hub's word", "grants.py", "verify_countersignature"),
    ("verify log and certificates", "authority.py", "authority_of"),
    ("merge what decides", "replication.py", "apply_state"),
    ("verify what decides", "authority.py", "verify_record"),
    ("open the grant's keys", "opening.py", "open_keys"),
    ("open records", "opening.py", "open_record"),
    ("plan", "loop.py", "run"),
    ("seal and sign", "writeback.py", "seal_run"),
    ("of all, Ed25519 verified", "~", "'verify' of"),
    ("of all, Ed25519 signed", "~", "'sign' of"),
    ("of all, HPKE", "~", "'decrypt' of 'cryptography.hazmat.bindings._rust.openssl.hpke"),
    ("of all, AES", "~", "AESGCM"),
    ("of all, canonical JSON", "encoding.py", "canonical_json"),
    ("of all, key derivation", "primitives.py", "hkdf"),
)
"""Parts of a run: a name, and the file and function that it is in."""


def main(options: Sequence[str] = ()) -> None:
    """Measure and print two tables."""
    numbers = dict(option.lstrip("-").split("=") for option in options)
    runs, missions = int(numbers.get("runs", 256)), int(numbers.get("missions", 16))
    spent = sorted(measured(runs, missions, _Unseen()))
    print(f"{'a run in its worker':<28}{'ms of CPU':>10}")
    for name, place in (
        ("1 of 10", runs // 10),
        ("median", runs // 2),
        ("9 of 10", runs * 9 // 10),
        ("worst", runs - 1),
    ):
        print(f"{name:<28}{spent[place] * 1_000:>10.2f}")
    print(f"{'mean':<28}{sum(spent) / runs * 1_000:>10.2f}\n")
    profile = cProfile.Profile(time.process_time)
    measured(runs, missions, profile)
    stats = pstats.Stats(profile)
    total_s = stats.total_tt  # type: ignore[attr-defined]
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (file, _, name), (_, calls, _, inside_s, _) in stats.stats.items():  # type: ignore[attr-defined]
        for part, where, what in PARTS:
            if Path(file).name == where and (name == what if where != "~" else what in name):
                found[part][0] += inside_s
                found[part][1] += calls
    print(f"{'part (profiled)':<32}{'share':>8}{'calls a run':>14}")
    for part, _, _ in PARTS:
        share, calls = found[part]
        print(f"{part:<32}{share / total_s:>8.1%}{calls / runs:>14.1f}")
    top = int(numbers.get("top", 0))
    if top:
        print()
        stats.sort_stats("tottime").print_stats(top)
