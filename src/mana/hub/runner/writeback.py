"""Sealing and signing what a run produced: one iteration and its steps, nothing else.

Each change carries the same signature, which also stands in the iteration's `proof`, so that a
device can check a whole iteration from its records. Bytes: docs/protocol/grants.md, 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mana.crypto.envelope import (
    KeyClass,
    RecordBinding,
    RecordKey,
    actor_bytes,
    seal_value,
)
from mana.crypto.errors import Malformed
from mana.crypto.primitives import b64
from mana.crypto.runners import RunnerPrivateKey
from mana.crypto.signatures import RunnerWrite, sign_runner_write
from mana.domain.actors import agent_at_work
from mana.domain.clock import Stamp
from mana.domain.encoding import Json, canonical_json, sha256
from mana.domain.ids import derived_id
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.tables import Table
from mana.hub.runner.keys import runner_device_id
from mana.hub.runner.opening import GrantedKey, MissionKey
from mana.hub.runner.warm import key_id
from mana.protocol.messages import ChangeMessage, FieldWrite, Signature

PROOF_PATH = "proof"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Which run this is, and under what it was allowed."""

    space_id: str
    mission_id: str
    agent_id: str
    account_id: str
    iteration_id: str
    scheduled_for: str
    grant_id: str
    fence: int
    now_ms: int
    audit_seq: int
    audit_hash: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An opened record that the run wrote, by path."""

    table: Table
    record_id: str
    values: Mapping[str, Json] = field(repr=False)


def seal_run(
    facts: RunFacts,
    iteration: Draft,
    steps: Sequence[Draft],
    *,
    iteration_key: MissionKey,
    runner: RunnerPrivateKey,
) -> list[ChangeMessage]:
    """Return the signed changes of a run: the iteration first, then its steps in order."""
    hand = _Hand.of(facts, key_id(runner))
    sealed = [_Sealed.of(facts, draft, iteration_key, hand) for draft in (iteration, *steps)]
    digest = run_digest([(one.table, one.record_id, one.values()) for one in sealed])
    write = RunnerWrite(
        mission=facts.mission_id,
        scheduled_for=facts.scheduled_for,
        grant=facts.grant_id,
        fence=facts.fence,
        digest=digest,
        audit_seq=facts.audit_seq,
        audit_hash=facts.audit_hash,
    )
    value = b64(sign_runner_write(runner.signing_key, write))
    proof: dict[str, Json] = {
        "keyId": hand.key_id,
        "grantId": facts.grant_id,
        "fence": facts.fence,
        "scheduledFor": facts.scheduled_for,
        "digest": digest,
        "signature": value,
        "auditSeq": facts.audit_seq,
        "auditHash": facts.audit_hash,
    }
    signature = Signature(signer=f"runner:{hand.key_id}", value=value)
    sealed[0].written[PROOF_PATH] = FieldWrite(value=proof, at=hand.at)
    group = derived_id("group", facts.iteration_id, str(facts.fence))
    return [_change(facts, one, signature, hand, group) for one in sealed]


@dataclass(frozen=True, slots=True)
class _Hand:
    """By whose hand a run writes, and when: the same for each of its fields."""

    key_id: str
    at: str
    actor: Mapping[str, str]
    bound: bytes

    @classmethod
    def of(cls, facts: RunFacts, key_id: str) -> _Hand:
        actor = agent_at_work(facts.agent_id, facts.mission_id, facts.iteration_id).to_wire()
        return cls(
            key_id,
            str(Stamp(facts.now_ms, 0, runner_device_id(key_id))),
            {name: str(member) for name, member in actor.items()},
            actor_bytes(actor),
        )


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A record as it will be written, and which of its paths are guarded."""

    table: str
    record_id: str
    written: dict[str, FieldWrite]
    guarded: tuple[str, ...]

    @classmethod
    def of(cls, facts: RunFacts, draft: Draft, mission: MissionKey, hand: _Hand) -> _Sealed:
        """Seal a record. Each value is checked, so that devices accept it."""
        table, record_id = draft.table, draft.record_id
        granted = mission.for_record(table.name, record_id)
        key_class, version = _class_of(granted)
        key = RecordKey(granted.key)
        place = RecordBinding(facts.space_id, table.name, record_id)
        written: dict[str, FieldWrite] = {}
        guarded: list[str] = []
        for path, value in draft.values.items():
            declared = table.field_at(path)
            declared.check(value)
            if value is None:
                continue
            wire = value
            if declared.sealed:
                bound = place.associated_data(path, hand.at, hand.bound)
                wire = seal_value(
                    key, cls=key_class, version=version, associated_data=bound, value=value
                )
            elif declared.guarded:
                guarded.append(path)
            written[path] = FieldWrite(value=wire, at=hand.at)
        return cls(table.name, record_id, written, tuple(guarded))

    def values(self) -> dict[str, Json]:
        """Return the wire values by path."""
        return {path: one.value for path, one in self.written.items()}


def run_digest(records: Sequence[tuple[str, str, Mapping[str, Json]]]) -> str:
    """Return the digest of `(table, id, {path: wire value})`, without proof and guarded paths."""
    tables = {ITERATIONS.name: ITERATIONS, STEPS.name: STEPS}
    listed: list[Json] = []
    for name, record_id, fields in sorted(records, key=lambda record: (record[0], record[1])):
        table = tables[name]
        kept: dict[str, Json] = {
            path: value
            for path, value in fields.items()
            if path != PROOF_PATH and not table.field_at(path).guarded
        }
        listed.append([name, record_id, kept])
    return sha256(canonical_json(listed)).hex()


def _change(
    facts: RunFacts, sealed: _Sealed, signature: Signature, hand: _Hand, group: str
) -> ChangeMessage:
    return ChangeMessage(
        change_id=derived_id("change", sealed.record_id, str(facts.fence), "run"),
        table=sealed.table,
        id=sealed.record_id,
        op="insert",
        fields=sealed.written,
        actor=dict(hand.actor),
        origin="agent",
        author_id=facts.account_id,
        group=group,
        guards=dict.fromkeys(sealed.guarded),
        signature=signature,
    )


def _class_of(granted: GrantedKey) -> tuple[KeyClass, int]:
    if not granted.opens.startswith("m") or not granted.opens[1:].isdigit():
        raise Malformed("the iteration key is of class m")
    return "m", int(granted.opens[1:])
