"""What is to be obeyed, by signatures alone: the membership log, certificates and proofs.

The hub that stores these rows is not believed. A mission, an agent or a decision counts only if
every path of it stems from a change that a certified device of a member who may write has signed,
and nothing of such a change was withheld. Normative: docs/protocol/sync.md 3, grants.md 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from mana.crypto.errors import Malformed, SignatureRejected
from mana.crypto.identity import DeviceCertificate, verify_certificate
from mana.crypto.primitives import unb64
from mana.crypto.runners import RunnerPublicKey
from mana.crypto.signatures import (
    ChangeFacts,
    RunnerWrite,
    VerifyKey,
    entry_hash,
    value_hash,
    verify_change,
    verify_entry,
    verify_runner_write,
)
from mana.domain.encoding import Json, canonical_json, sha256
from mana.domain.errors import CryptoFailed, Forbidden, Invalid, ManaError
from mana.domain.grants import GrantHeader
from mana.domain.ids import IterationId, MissionId, iteration_id, step_id
from mana.domain.iterations import ITERATIONS, STEPS, STEPS_MAX
from mana.domain.records import Entry
from mana.domain.spaces import Member, MembershipEntry, can_write, entry_from_wire
from mana.domain.tables import Table
from mana.protocol.messages import DeviceCertificate as CertificateMessage
from mana.protocol.messages import Proof, SignedEntry
from mana.protocol.replication import Held

_PROOF: Final = "proof"
_RUNNER: Final = "runner:"


class NotAMember(Forbidden):
    """The device belongs to no member of the space whose role may write."""

    code = "NOT_A_MEMBER"
    advice = "Ask an owner of the space for a role that may write."


class SignerUnknown(NotAMember):
    """No certificate of this device is known here yet."""

    code = "SIGNER_UNKNOWN"
    advice = "Connect to the hub, so that the certificate of the other device is fetched."


class Withheld(SignatureRejected):
    """The record lacks something that one of its own signed changes wrote."""

    code = "RECORD_WITHHELD"


@dataclass(frozen=True, slots=True)
class Authority:
    """The verified members of a space, and the devices that they certified."""

    space_id: str
    members: Mapping[str, Member]
    devices: Mapping[str, tuple[str, VerifyKey]]

    def writer(self, device_id: str) -> tuple[str, VerifyKey]:
        """Return account and key of a device whose owner may write here."""
        found = self.devices.get(device_id)
        if found is None:
            raise SignerUnknown("no member of the space certified this device")
        member = self.members.get(found[0])
        if member is None or not can_write(member.role):
            raise NotAMember("the account may not write in this space")
        return found


def read_log(space_id: str, log: Sequence[SignedEntry]) -> MembershipEntry:
    """Return the newest entry of a membership log, verified from the space id on."""
    newest: MembershipEntry | None = None
    last_hash = ""
    for signed in log:
        entry, signature = entry_from_wire(signed.entry), unb64(signed.signature)
        found_hash = entry_hash(signed.entry, signature)
        if newest is None:
            author = entry.member(entry.author_id)
            if found_hash != space_id or entry.previous:
                raise SignatureRejected("the first entry is not the one that names the space")
        else:
            author = newest.member(entry.author_id)
            if entry.previous != last_hash or entry.space_type != newest.space_type:
                raise SignatureRejected("the membership log is not a chain")
            if entry.key_version < newest.key_version:
                raise SignatureRejected("a membership entry goes back to an older key")
        if author is None or author.role not in ("owner", "admin"):
            raise SignatureRejected("an entry of the log is by nobody who may change it")
        verify_entry(VerifyKey(unb64(author.signing_key)), signed.entry, signature)
        newest, last_hash = entry, found_hash
    if newest is None:
        raise Malformed("a membership log has a first entry")
    return newest


def authority_of(
    space_id: str, log: Sequence[SignedEntry], certificates: Sequence[CertificateMessage]
) -> Authority:
    """Return who may decide; certificates that no member signed are left out."""
    members = {member.account_id: member for member in read_log(space_id, log).members}
    devices: dict[str, tuple[str, VerifyKey]] = {}
    for message in certificates:
        member = members.get(message.account_id)
        if member is None:
            continue
        try:
            certificate = DeviceCertificate.from_wire(msgspec.to_builtins(message))
            key = verify_certificate(
                certificate, VerifyKey(unb64(member.signing_key)), member.account_id
            )
        except (CryptoFailed, Invalid):
            continue
        devices[certificate.device_id] = (member.account_id, key)
    return Authority(space_id, members, devices)


def verify_record(authority: Authority, held: Held, table: Table) -> None:
    """Raise unless every path of the record stems from a change that is to be obeyed."""
    for path, entry in held.record.entries.items():
        _require_covered(path, entry, held.proofs.get(entry.change_id))
    for change_id, proof in held.proofs.items():
        _verify_proof(authority, held, change_id, proof, table)


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
        _written_by_runner(authority, held, table, signer, header, this)
        for table, held in ((ITERATIONS, iteration), *((STEPS, step) for step in steps))
    ]
    listed.sort(key=lambda record: (record[0], record[1]))
    digest = sha256(canonical_json([list(record) for record in listed])).hex()
    if digest != write.digest:
        raise SignatureRejected("the iteration or a step is not what the runner wrote")
    verify_runner_write(runner.signing_key, write, unb64(str(proof.get("signature"))))


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
) -> tuple[str, str, dict[str, Json]]:
    """Return what the runner wrote of a record; raise unless devices signed the rest."""
    written: dict[str, Json] = {}
    for path, entry in held.record.entries.items():
        proof = held.proofs.get(entry.change_id)
        if proof is None or proof.signature.signer != signer:
            _require_covered(path, entry, proof)
            continue
        actor = entry.actor
        if (
            actor.kind != "ai"
            or actor.principal_id != header.agent_id
            or actor.mission_id != header.mission_id
            or actor.iteration_id != this
        ):
            raise SignatureRejected("the runner wrote in another's name")
        if path != _PROOF and not _is_guarded(table, path):
            written[path] = entry.value
    for change_id, proof in held.proofs.items():
        if proof.signature.signer != signer:
            _verify_proof(authority, held, change_id, proof, table)
    return table.name, held.record.id, written


def _require_covered(path: str, entry: Entry, proof: Proof | None) -> None:
    if proof is None or proof.entries.get(path) != [entry.at, value_hash(entry.value)]:
        raise SignatureRejected("a path of the record is covered by no proof")
    if entry.actor.to_wire() != dict(proof.actor) or entry.origin != proof.origin:
        raise SignatureRejected("a path names another actor than its proof")


def _verify_proof(
    authority: Authority, held: Held, change_id: str, proof: Proof, table: Table
) -> None:
    for path, (at, _) in proof.entries.items():
        standing = held.record.entries.get(path)
        # Guarded paths follow the hub's order, so a later value may bear an older stamp.
        if standing is None or (standing.at < at and not _is_guarded(table, path)):
            raise Withheld("something that a change wrote is missing")
    account, key = authority.writer(proof.signature.signer)
    if proof.actor.get("kind") == "user" and proof.actor.get("principalId") != account:
        raise SignatureRejected("a person's change is signed by another account's device")
    facts = ChangeFacts(
        space=authority.space_id,
        table=held.record.table,
        record=held.record.id,
        change=change_id,
        author=held.record.author_id,
        visibility=held.record.visibility,
        actor=dict(proof.actor),
        origin=proof.origin,
        entries={path: (at, digest) for path, (at, digest) in proof.entries.items()},
    )
    verify_change(key, facts, unb64(proof.signature.value))


def _is_guarded(table: Table, path: str) -> bool:
    found = table.by_name.get(path.partition("/")[0])
    return found is not None and found.guarded
