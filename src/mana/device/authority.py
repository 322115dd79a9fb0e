"""Whether a run of the hub is to be obeyed: the granted runner wrote exactly this, and all of it.

What devices decide is verified by `mana.crypto.authority`; here is what the runner signs, and
where both meet in one record. Normative: docs/protocol/grants.md, 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from mana.crypto.authority import (
    Authority,
    Withheld,
    is_guarded,
    require_covered,
    verify_proof,
)
from mana.crypto.errors import SignatureRejected
from mana.crypto.primitives import unb64
from mana.crypto.runners import RunnerPublicKey
from mana.crypto.signatures import RunnerWrite, verify_runner_write
from mana.domain.encoding import Json, canonical_json, sha256
from mana.domain.errors import ManaError
from mana.domain.grants import GrantHeader
from mana.domain.ids import IterationId, MissionId, iteration_id, step_id
from mana.domain.iterations import ITERATIONS, STEPS, STEPS_MAX
from mana.domain.tables import Table
from mana.protocol.replication import Held

_PROOF: Final = "proof"
_FEEDBACK: Final = "feedback"
_RUNNER: Final = "runner:"


def verify_run(
    authority: Authority,
    iteration: Held,
    steps: Sequence[Held],
    *,
    header: GrantHeader,
    runner: RunnerPublicKey,
) -> None:
    """Raise unless the runner of this grant wrote exactly this iteration and these steps.

    What devices added to a step since (a decision, its result) stems from signed changes too.
    It stays decided though whoever decided has left since: else a run would lose its proof with
    them. What was due after they left they decide nothing of, whatever their stamps say.
    Guarded paths stand outside the runner's signature: what a step may do follows from its sealed
    `decision` and from policy, not from `status` alone.
    """
    plain = {path: entry.value for path, entry in iteration.record.entries.items()}
    proof = plain.get(_PROOF)
    if not isinstance(proof, dict) or runner.key_id() != header.runner_key_id:
        raise SignatureRejected("the iteration is not proven by the grant's runner")
    mission, scheduled_for = str(plain.get("missionId")), str(plain.get("scheduledFor"))
    this = iteration.record.id
    named = str(iteration_id(MissionId(mission), scheduled_for))
    if named != str(this) or mission != header.mission_id:
        raise SignatureRejected("the iteration is of another mission or moment")
    if header.space_id != authority.space_id:
        raise SignatureRejected("the grant is of another space")
    _verify_steps_complete(this, plain.get("stepIds"), steps)
    write = _runner_write(proof, mission, scheduled_for, header)
    signer = f"{_RUNNER}{header.runner_key_id}"
    listed = [
        _written_by_runner(authority, held, table, signer, header, this, scheduled_for)
        for table, held in ((ITERATIONS, iteration), *((STEPS, step) for step in steps))
    ]
    listed.sort(key=lambda record: (record[0], record[1]))
    digest = sha256(canonical_json([list(record) for record in listed])).hex()
    if digest != write.digest:
        raise SignatureRejected("the iteration or a step is not what the runner wrote")
    verify_runner_write(runner.signing_key, write, unb64(str(proof.get("signature"))))


def uncommented(iteration: Held) -> Held:
    """Return a run without what members said of it, which decides nothing.

    Else a run would lose its proof with whoever said something of it and left the space.
    """
    entries = iteration.record.entries
    entry = entries.get(_FEEDBACK)
    proof = iteration.proofs.get(entry.change_id) if entry is not None else None
    if entry is None or proof is None or set(proof.entries) != {_FEEDBACK}:
        return iteration
    kept = {path: one for path, one in entries.items() if path != _FEEDBACK}
    proofs = {name: one for name, one in iteration.proofs.items() if name != entry.change_id}
    return replace(iteration, record=replace(iteration.record, entries=kept), proofs=proofs)


def reason_of(error: ManaError) -> str:
    """Return the word by which a verification's failure is shown."""
    return error.code.lower().replace("_", "-")


def _runner_write(
    proof: Mapping[str, Json], mission: str, scheduled_for: str, header: GrantHeader
) -> RunnerWrite:
    fence, audit_seq = proof.get("fence"), proof.get("auditSeq")
    if (
        proof.get("keyId") != header.runner_key_id
        or proof.get("grantId") != header.grant_id
        or proof.get("scheduledFor") != scheduled_for
        or not isinstance(fence, int)
        or not isinstance(audit_seq, int)
    ):
        raise SignatureRejected("the proof is of another grant or moment")
    return RunnerWrite(
        mission=mission,
        scheduled_for=scheduled_for,
        grant=header.grant_id,
        fence=fence,
        digest=str(proof.get("digest")),
        audit_seq=audit_seq,
        audit_hash=str(proof.get("auditHash")),
    )


def _verify_steps_complete(this: str, named: Json, steps: Sequence[Held]) -> None:
    if not isinstance(named, list) or len(named) > STEPS_MAX:
        raise SignatureRejected("the iteration names no steps")
    expected = [str(step_id(IterationId(this), index)) for index in range(len(named))]
    if named != expected or [str(step.record.id) for step in steps] != expected:
        raise Withheld("a step of the iteration is missing")
    for step in steps:
        entry = step.record.entries.get("iterationId")
        if entry is None or entry.value != this:
            raise SignatureRejected("a step of another iteration")


def _written_by_runner(
    authority: Authority,
    held: Held,
    table: Table,
    signer: str,
    header: GrantHeader,
    this: str,
    scheduled_for: str,
) -> tuple[str, str, dict[str, Json]]:
    """Return what the runner wrote of a record; raise unless devices signed the rest."""
    written: dict[str, Json] = {}
    for path, entry in held.record.entries.items():
        proof = held.proofs.get(entry.change_id)
        if proof is None or proof.signature.signer != signer:
            require_covered(path, entry, proof)
            continue
        actor = entry.actor
        if (
            actor.kind != "ai"
            or actor.principal_id != header.agent_id
            or actor.mission_id != header.mission_id
            or actor.iteration_id != this
        ):
            raise SignatureRejected("the runner wrote in another's name")
        if path != _PROOF and not is_guarded(table, path):
            written[path] = entry.value
    for change_id, proof in held.proofs.items():
        if proof.signature.signer != signer:
            verify_proof(authority, held, change_id, proof, table, since=scheduled_for)
    return table.name, held.record.id, written
