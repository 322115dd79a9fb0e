"""Who may decide in a space, by signatures alone: the membership log, certificates, proofs.

The hub that stores these rows is not believed: a record that decides is obeyed only if every
path stems from a change that a certified device of a member who may write has signed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from mana.crypto.errors import Malformed, SignatureRejected
from mana.crypto.identity import DeviceCertificate, verify_certificate
from mana.crypto.primitives import unb64
from mana.crypto.signatures import (
    ChangeFacts,
    VerifyKey,
    entry_hash,
    value_hash,
    verify_change,
    verify_entry,
)
from mana.domain.errors import CryptoFailed, Forbidden, Invalid
from mana.domain.spaces import Member, MembershipEntry, can_write, entry_from_wire
from mana.protocol.messages import DeviceCertificate as CertificateMessage
from mana.protocol.messages import SignedEntry, StateRecord


class NotAMember(Forbidden):
    """The account is not, or not any more, a member whose role may write."""

    code = "NOT_A_MEMBER"
    advice = "Ask an owner of the space for a role that may write."


class Withheld(SignatureRejected):
    """The record lacks something that one of its own signed changes wrote."""

    code = "RECORD_WITHHELD"


@dataclass(frozen=True, slots=True)
class Authority:
    """The verified members of a space and the devices that they certified."""

    members: Mapping[str, Member]
    devices: Mapping[str, tuple[str, VerifyKey]]

    def writer(self, device_id: str) -> tuple[str, VerifyKey]:
        """Return account and key of a device whose owner may write here."""
        found = self.devices.get(device_id)
        if found is None:
            raise NotAMember("the device belongs to no member of the space")
        self.require_writer(found[0])
        return found

    def require_writer(self, account_id: str) -> None:
        """Raise NotAMember unless this account is a member who may write."""
        member = self.members.get(account_id)
        if member is None or not can_write(member.role):
            raise NotAMember("the account may not write in this space")


def read_log(space_id: str, log: Sequence[SignedEntry]) -> MembershipEntry:
    """Return the newest entry of a membership log, verified from the space id on."""
    if not log:
        raise Malformed("a membership log has a first entry")
    newest: MembershipEntry | None = None
    last_hash = ""
    for place, signed in enumerate(log):
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
            raise SignatureRejected(f"entry {place} of the log is by nobody who may change it")
        verify_entry(VerifyKey(unb64(author.signing_key)), signed.entry, signature)
        newest, last_hash = entry, found_hash
    if newest is None:
        raise Malformed("a membership log has a first entry")
    return newest


def authority_of(
    space_id: str, log: Sequence[SignedEntry], certificates: Sequence[CertificateMessage]
) -> Authority:
    """Return who may decide; certificates that no member signed are left out."""
    newest = read_log(space_id, log)
    members = {member.account_id: member for member in newest.members}
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
    return Authority(members, devices)


def verify_record(authority: Authority, space_id: str, record: StateRecord) -> None:
    """Raise SignatureRejected or NotAMember unless this record is to be obeyed."""
    for path, entry in record.fields.items():
        proof = record.proofs.get(entry.change_id)
        if proof is None or proof.entries.get(path) != [entry.at, value_hash(entry.value)]:
            raise SignatureRejected("a path of the record is covered by no proof")
        if dict(entry.actor) != dict(proof.actor) or entry.origin != proof.origin:
            raise SignatureRejected("a path names another actor than its proof")
    for change_id, proof in record.proofs.items():
        for path, (at, _) in proof.entries.items():
            standing = record.fields.get(path)
            if standing is None or standing.at < at:
                raise Withheld("something that a change wrote is missing")
        account, key = authority.writer(proof.signature.signer)
        if proof.actor.get("kind") == "user" and proof.actor.get("principalId") != account:
            raise SignatureRejected("a person's change is signed by another account's device")
        facts = ChangeFacts(
            space=space_id,
            table=record.table,
            record=record.id,
            change=change_id,
            author=record.author_id,
            visibility=record.visibility,
            actor=dict(proof.actor),
            origin=proof.origin,
            entries={path: (at, digest) for path, (at, digest) in proof.entries.items()},
        )
        verify_change(key, facts, unb64(proof.signature.value))
