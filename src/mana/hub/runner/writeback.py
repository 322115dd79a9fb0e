"""Sealing and signing what a run produced: one iteration and its steps, nothing else.

Each change carries the same signature, which also stands in the iteration's `proof`, so that a
device can check a whole iteration from its records. Bytes: docs/protocol/grants.md, 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mana.crypto.envelope import Binding, KeyClass, RecordKey, seal_field
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
from mana.hub.runner.opening import GrantedKey
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
    iteration_key: GrantedKey,
    runner: RunnerPrivateKey,
) -> list[ChangeMessage]:
    """Return the signed changes of a run: the iteration first, then its steps in order."""
    key_id = runner.public().key_id()
    drafts = (iteration, *steps)
    sealed = [_seal(facts, draft, iteration_key, key_id) for draft in drafts]
    digest = run_digest(sealed)
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
        "keyId": key_id,
        "grantId": facts.grant_id,
        "fence": facts.fence,
        "scheduledFor": facts.scheduled_for,
        "digest": digest,
        "signature": value,
        "auditSeq": facts.audit_seq,
        "auditHash": facts.audit_hash,
    }
    at = _stamp(facts, key_id)
    signature = Signature(signer=f"runner:{key_id}", value=value)
    changes: list[ChangeMessage] = []
    for draft, fields in zip(drafts, (fields for _, _, fields in sealed), strict=True):
        written = {path: FieldWrite(value=wire, at=at) for path, wire in fields.items()}
        if draft is iteration:
            written[PROOF_PATH] = FieldWrite(value=proof, at=at)
        changes.append(_change(facts, draft, written, signature))
    return changes


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


def _stamp(facts: RunFacts, key_id: str) -> str:
    return str(Stamp(facts.now_ms, 0, runner_device_id(key_id)))


def _seal(
    facts: RunFacts, draft: Draft, granted: GrantedKey, key_id: str
) -> tuple[str, str, dict[str, Json]]:
    """Return the record with sealed values. A value is checked, so that devices accept it."""
    cls, version = _class_of(granted)
    key = RecordKey.derive(granted.key, draft.table.name, draft.record_id)
    actor = agent_at_work(facts.agent_id, facts.mission_id, facts.iteration_id).to_wire()
    at = _stamp(facts, key_id)
    fields: dict[str, Json] = {}
    for path, value in draft.values.items():
        draft.table.check(path, value)
        if value is None:
            continue
        wire = value
        if draft.table.field_at(path).sealed:
            binding = Binding(facts.space_id, draft.table.name, draft.record_id, path, at, actor)
            wire = seal_field(key, cls=cls, version=version, binding=binding, value=value)
        fields[path] = wire
    return draft.table.name, draft.record_id, fields


def _change(
    facts: RunFacts, draft: Draft, fields: dict[str, FieldWrite], signature: Signature
) -> ChangeMessage:
    actor = agent_at_work(facts.agent_id, facts.mission_id, facts.iteration_id).to_wire()
    guards = {path: None for path in fields if draft.table.field_at(path).guarded}
    return ChangeMessage(
        change_id=derived_id("change", draft.record_id, str(facts.fence), "run"),
        table=draft.table.name,
        id=draft.record_id,
        op="insert",
        fields=fields,
        actor={name: str(member) for name, member in actor.items()},
        origin="agent",
        author_id=facts.account_id,
        group=derived_id("group", facts.iteration_id, str(facts.fence)),
        guards=dict(guards),
        signature=signature,
    )


def _class_of(granted: GrantedKey) -> tuple[KeyClass, int]:
    if not granted.opens.startswith("m") or not granted.opens[1:].isdigit():
        raise Malformed("the iteration key is of class m")
    return "m", int(granted.opens[1:])
