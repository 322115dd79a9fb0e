"""Who may decide in a space, by signatures alone: the membership log, certificates, proofs.

The hub that stores these rows is not believed. A mission, an agent or a decision counts only if
every path of it stems from a change that a certified device of a member who may write has signed,
and nothing of such a change was withheld. Device and runner both ask here, so that they cannot
differ in what they obey. Normative: docs/protocol/sync.md, 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final, Protocol

from mana.crypto.errors import Malformed, SignatureRejected
from mana.crypto.hpke import HpkePublicKey
from mana.crypto.identity import (
    DeviceCertificate,
    DeviceRevocation,
    PublicIdentity,
    verify_certificate,
    verify_revocation,
)
from mana.crypto.primitives import unb64
from mana.crypto.signatures import (
    ChangeFacts,
    VerifyKey,
    entry_hash,
    value_hash,
    verify_change,
    verify_entry,
    verify_reseal,
)
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import CryptoFailed, Forbidden, Invalid
from mana.domain.records import Entry, Record
from mana.domain.spaces import (
    Member,
    MembershipEntry,
    can_write,
    entry_from_wire,
    require_first,
    require_next,
)
from mana.domain.tables import Table

_MOMENT: Final = 24
"""How many characters of a stamp are its moment."""


class SignedEntry(Protocol):
    """An entry of a membership log on the wire: its JSON, and the signature in base64."""

    @property
    def entry(self) -> Mapping[str, Json]: ...

    @property
    def signature(self) -> str: ...


class Certificate(Protocol):
    """A device's certificate on the wire; keys and signature in base64."""

    @property
    def version(self) -> str: ...

    @property
    def account_id(self) -> str: ...

    @property
    def device_id(self) -> str: ...

    @property
    def public_key(self) -> str: ...

    @property
    def created_at(self) -> str: ...

    @property
    def signature(self) -> str: ...


class Revocation(Protocol):
    """An account's word on the wire that a device counts no more; the signature in base64."""

    @property
    def version(self) -> str: ...

    @property
    def account_id(self) -> str: ...

    @property
    def device_id(self) -> str: ...

    @property
    def revoked_at(self) -> str: ...

    @property
    def signature(self) -> str: ...


class Signature(Protocol):
    """Who signed, and the signature in base64."""

    @property
    def signer(self) -> str: ...

    @property
    def value(self) -> str: ...


class Proof(Protocol):
    """A signature over one change, with stamp and hash of each of its paths."""

    @property
    def signature(self) -> Signature: ...

    @property
    def actor(self) -> Mapping[str, str]: ...

    @property
    def origin(self) -> str: ...

    @property
    def entries(self) -> Mapping[str, Sequence[str]]: ...

    @property
    def reseal(self) -> bool: ...


class Write(Protocol):
    """One path of a change on the wire."""

    @property
    def value(self) -> Json: ...

    @property
    def at(self) -> str: ...


class WrittenChange(Protocol):
    """A change on the wire, as far as its signature covers it."""

    @property
    def table(self) -> str: ...

    @property
    def id(self) -> str: ...

    @property
    def change_id(self) -> str: ...

    @property
    def author_id(self) -> str: ...

    @property
    def visibility(self) -> str: ...

    @property
    def actor(self) -> Mapping[str, str]: ...

    @property
    def origin(self) -> str: ...

    @property
    def fields(self) -> Mapping[str, Write]: ...


class Proven(Protocol):
    """A record, and by change id the proofs that its entries stem from."""

    @property
    def record(self) -> Record: ...

    @property
    def proofs(self) -> Mapping[str, Proof]: ...


class NotAMember(Forbidden):
    """The device belongs to no member of the space whose role may write."""

    code = "NOT_A_MEMBER"
    advice = "Ask an owner of the space for a role that may write."


class SignerUnknown(NotAMember):
    """No certificate of this device is known here yet."""

    code = "SIGNER_UNKNOWN"
    advice = "Connect to the hub, so that the certificate of the other device is fetched."


class SignerRevoked(NotAMember):
    """The device was revoked by its account, and this bears no earlier stamp."""

    code = "SIGNER_REVOKED"
    advice = "Ask the member whose device it was; they can write it again on another."


class Withheld(SignatureRejected):
    """The record lacks something that one of its own signed changes wrote."""

    code = "RECORD_WITHHELD"


@dataclass(frozen=True, slots=True)
class Authority:
    """The verified members of a space, and the devices that they certified.

    `revoked`: by device the moment from which on it counts no more. `entries`: the verified log,
    which says who was what when. `former`: devices of members who have left; `until`: by account
    the moment from which on it may not write any more.
    """

    space_id: str
    members: Mapping[str, Member]
    devices: Mapping[str, tuple[str, VerifyKey]]
    revoked: Mapping[str, str] = field(default_factory=dict)
    entries: tuple[MembershipEntry, ...] = field(default=(), repr=False)
    former: Mapping[str, tuple[str, VerifyKey]] = field(default_factory=dict)
    until: Mapping[str, str] = field(default_factory=dict)

    def writer(self, device_id: str, *, newest: str | None = None) -> tuple[str, VerifyKey]:
        """Return account and key of a device whose owner may write here; raises as `signer`."""
        found = self.signer(device_id, newest=newest)
        self.require_writer(found[0])
        return found

    def signer(self, device_id: str, *, newest: str | None = None) -> tuple[str, VerifyKey]:
        """Return account and key of a device, for something whose newest stamp is `newest`.

        Without it, a revoked device signs nothing at all. Raises SignerUnknown, SignerRevoked.
        """
        return self._standing(device_id, self.devices.get(device_id), newest)

    def writer_then(
        self, device_id: str, *, newest: str | None, since: str
    ) -> tuple[str, VerifyKey]:
        """Return account and key of a device whose owner may write here, or could at `newest`.

        For what was done once and goes on by itself no more, as a decision. `since`: the moment of
        what was decided, for a stamp is the signer's own word. Raises as `signer`.
        """
        known = self.devices.get(device_id) or self.former.get(device_id)
        found = self._standing(device_id, known, newest)
        until = self.until.get(found[0])
        if until is None or newest is None or max(newest[:_MOMENT], since) >= until:
            self.require_writer(found[0])
        return found

    def _standing(
        self, device_id: str, found: tuple[str, VerifyKey] | None, newest: str | None
    ) -> tuple[str, VerifyKey]:
        """Return a device that is known here and was not revoked by then."""
        if found is None:
            raise SignerUnknown("no member of the space certified this device")
        revoked_at = self.revoked.get(device_id)
        if revoked_at is not None and (newest is None or newest[:_MOMENT] >= revoked_at):
            raise SignerRevoked("the device was revoked before this was signed")
        return found

    def require_writer(self, account_id: str) -> None:
        """Raise NotAMember unless this account is a member who may write."""
        member = self.members.get(account_id)
        if member is None or not can_write(member.role):
            raise NotAMember("the account may not write in this space")


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """A membership log of which every entry was verified; by entry its value and its hash."""

    space_id: str
    log: tuple[SignedEntry, ...] = field(repr=False)
    entries: tuple[MembershipEntry, ...] = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False)

    @property
    def newest(self) -> MembershipEntry:
        """Return the newest entry; that of a closed space has no members."""
        return self.entries[-1]

    @property
    def head(self) -> str:
        """Return the hash that the next entry has to name."""
        return self.hashes[-1]

    def continued(self, log: Sequence[SignedEntry]) -> bool:
        """Say whether a log begins with every entry of this one."""
        return len(log) >= len(self.log) and all(
            known is signed or (known.signature == signed.signature and known.entry == signed.entry)
            for known, signed in zip(self.log, log, strict=False)
        )


def verify_log(
    space_id: str, log: Sequence[SignedEntry], known: VerifiedLog | None = None
) -> VerifiedLog:
    """Return a membership log, verified from the space id on.

    What `known` verified before is not verified again. Raises SignatureRejected,
    MembershipRefused or Malformed.
    """
    entries: list[MembershipEntry] = []
    hashes: list[str] = []
    if known is not None and known.space_id == space_id and known.continued(log):
        entries, hashes = list(known.entries), list(known.hashes)
    for signed in log[len(entries) :]:
        entry, found = verify_next(space_id, entries[-1] if entries else None, hashes, signed)
        entries.append(entry)
        hashes.append(found)
    if not entries:
        raise Malformed("a membership log has a first entry")
    return VerifiedLog(space_id, tuple(log), tuple(entries), tuple(hashes))


def verify_next(
    space_id: str,
    newest: MembershipEntry | None,
    hashes: Sequence[str],
    signed: SignedEntry,
) -> tuple[MembershipEntry, str]:
    """Return the entry that follows `newest` and its hash; `hashes` ends with that of `newest`.

    None stands for the beginning: the entry is the first one. Raises as `verify_log`.
    """
    entry, signature = entry_from_wire(signed.entry), unb64(signed.signature)
    found_hash = entry_hash(signed.entry, signature)
    if newest is None:
        author = entry.member(entry.author_id)
        if found_hash != space_id or entry.previous:
            raise SignatureRejected("the first entry is not the one that names the space")
        require_first(entry)
    else:
        author = newest.member(entry.author_id)
        if entry.previous != hashes[-1]:
            raise SignatureRejected("the membership log is not a chain")
        require_next(newest, entry)
    if author is None:
        raise SignatureRejected("an entry of the log is by nobody who may change it")
    verify_entry(VerifyKey(unb64(author.signing_key)), signed.entry, signature)
    for member in entry.members:
        known = newest.member(member.account_id) if newest is not None else None
        if known is None or known.keys != member.keys:
            # Nobody could wrap a key to them, so none could be changed while they are here.
            public_identity(member)
    return entry, found_hash


def public_identity(member: Member) -> PublicIdentity:
    """Return a member's public keys; raise Malformed for what is none."""
    return PublicIdentity(
        member.account_id,
        HpkePublicKey(unb64(member.hpke_key)),
        VerifyKey(unb64(member.signing_key)),
    )


def read_revocation(wire: Revocation) -> DeviceRevocation:
    """Return a revocation as it is signed; it proves nothing until `verify_revocation`.

    Raises Malformed. The version is the caller's to look at.
    """
    return DeviceRevocation(wire.account_id, wire.device_id, wire.revoked_at, unb64(wire.signature))


def authority_of(
    space_id: str,
    log: Sequence[SignedEntry],
    certificates: Sequence[Certificate],
    revocations: Sequence[Revocation] = (),
) -> Authority:
    """Return who may decide by a log; certificates that no member signed are left out."""
    verified = verify_log(space_id, log)
    return authority_among(
        space_id, verified.newest.members, certificates, revocations, entries=verified.entries
    )


def authority_among(
    space_id: str,
    members: Sequence[Member],
    certificates: Sequence[Certificate],
    revocations: Sequence[Revocation] = (),
    *,
    entries: Iterable[MembershipEntry] = (),
) -> Authority:
    """Return who may decide among these members, who are known from a verified log.

    A device may have a certificate by each identity while its account moves from one to another:
    that by the one which the log names counts. `entries` are those of the log. By them an identity
    that an account had before still takes devices off, and never puts one on, except for what a
    device said before the account, by its identity of now, revoked it: that stays said. Devices of
    who has left count for what they said before, by the identity that the log named last.
    """
    present = {member.account_id: member for member in members}
    log = tuple(entries)
    ended_writers = _former_writers(log)
    known = {name: member for name, (member, _) in ended_writers.items()} | present
    former = _former_keys(known, log)
    # By account too: whoever is in the space could else take off somebody else's device.
    revoked: dict[tuple[str, str], str] = {}
    vouched: set[tuple[str, str]] = set()
    for read, by_newest in _revocations(revocations, known, former):
        name = (read.account_id, read.device_id)
        revoked[name] = min(read.revoked_at, revoked.get(name, read.revoked_at))
        if by_newest:
            vouched.add(name)
    devices: dict[str, tuple[str, VerifyKey]] = {}
    for certificate in certificates:
        name = (certificate.account_id, certificate.device_id)
        member = known.get(certificate.account_id)
        if member is None:
            continue
        keys = [member.signing_key, *(former[member.account_id] if name in vouched else ())]
        key = _certified(certificate, keys)
        if key is not None:
            devices[certificate.device_id] = (member.account_id, key)
    ended = {
        device: revoked[account, device]
        for device, (account, _) in devices.items()
        if (account, device) in revoked
    }
    return Authority(
        space_id,
        present,
        {device: one for device, one in devices.items() if one[0] in present},
        ended,
        log,
        {device: one for device, one in devices.items() if one[0] not in present},
        {name: until for name, (_, until) in ended_writers.items()},
    )


def _former_writers(entries: Iterable[MembershipEntry]) -> dict[str, tuple[Member, str]]:
    """Return by account who could write and may not any more: as they were, and until when."""
    found: dict[str, tuple[Member, str]] = {}
    before: dict[str, Member] = {}
    log = tuple(entries)
    for entry, after in zip_longest(log, log[1:]):
        now = {one.account_id: one for one in entry.members if can_write(one.role)}
        until = _moment_of(entry)
        for name in before.keys() - now:
            # When somebody leaves is their own word; whoever stays says the next one.
            own = entry.author_id == name and after is not None
            found[name] = (before[name], min(until, _moment_of(after)) if own else until)
        before = now
    return {name: one for name, one in found.items() if name not in before}


def _moment_of(entry: MembershipEntry) -> str:
    """Return when an entry was made, by its author; what is no moment is before all others."""
    try:
        parse_iso_ms(entry.created_at)
    except Invalid:
        return ""
    return entry.created_at


def _former_keys(
    members: Mapping[str, Member], entries: Iterable[MembershipEntry]
) -> dict[str, list[str]]:
    """Return by member the signing keys that they had in a log and have no more."""
    found: dict[str, list[str]] = {name: [] for name in members}
    for entry in entries:
        for one in entry.members:
            keys = found.get(one.account_id)
            if keys is not None and one.signing_key not in (
                members[one.account_id].signing_key,
                *keys,
            ):
                keys.append(one.signing_key)
    return found


def _revocations(
    revocations: Sequence[Revocation],
    members: Mapping[str, Member],
    former: Mapping[str, Sequence[str]],
) -> Iterator[tuple[DeviceRevocation, bool]]:
    """Yield the revocations that hold, and whether the account's identity of now signed them."""
    for revocation in revocations:
        member = members.get(revocation.account_id)
        if member is None or revocation.version != "v1":
            continue
        for key in (member.signing_key, *former[member.account_id]):
            try:
                parse_iso_ms(revocation.revoked_at)
                read = read_revocation(revocation)
                verify_revocation(read, VerifyKey(unb64(key)), member.account_id)
            except (CryptoFailed, Invalid):
                continue
            yield read, key == member.signing_key
            break


def _certified(certificate: Certificate, keys: Iterable[str]) -> VerifyKey | None:
    """Return the device's key if one of these signed for it."""
    for key in keys:
        try:
            read = DeviceCertificate.from_wire(
                {
                    "version": certificate.version,
                    "accountId": certificate.account_id,
                    "deviceId": certificate.device_id,
                    "publicKey": certificate.public_key,
                    "createdAt": certificate.created_at,
                    "signature": certificate.signature,
                }
            )
            return verify_certificate(read, VerifyKey(unb64(key)), read.account_id)
        except (CryptoFailed, Invalid):
            continue
    return None


def facts_of(space_id: str, change: WrittenChange) -> ChangeFacts:
    """Return what a signature over this change states."""
    return ChangeFacts(
        space=space_id,
        table=change.table,
        record=change.id,
        change=change.change_id,
        author=change.author_id,
        visibility=change.visibility,
        actor=dict(change.actor),
        origin=change.origin,
        entries={
            path: (write.at, value_hash(write.value)) for path, write in change.fields.items()
        },
    )


def verify_record(authority: Authority, held: Proven, table: Table) -> None:
    """Raise unless every path of the record stems from a change that is to be obeyed."""
    for path, entry in held.record.entries.items():
        require_covered(path, entry, held.proofs.get(entry.change_id))
    for change_id, proof in held.proofs.items():
        verify_proof(authority, held, change_id, proof, table)


def require_covered(path: str, entry: Entry, proof: Proof | None) -> None:
    """Raise unless this proof is of exactly this entry."""
    stated = () if proof is None else proof.entries.get(path, ())
    if proof is None or tuple(stated) != (entry.at, value_hash(entry.value)):
        raise SignatureRejected("a path of the record is covered by no proof")
    if entry.actor.to_wire() != dict(proof.actor) or entry.origin != proof.origin:
        raise SignatureRejected("a path names another actor than its proof")
    if proof.reseal and not isinstance(entry.value, str):
        raise SignatureRejected("a re-seal brings something that is not sealed")


def signed_by(authority: Authority, held: Proven, path: str, table: Table) -> str | None:
    """Return the account whose person wrote a path by a signed change; None if nobody did so."""
    entry = held.record.entries.get(path)
    proof = None if entry is None else held.proofs.get(entry.change_id)
    if entry is None or proof is None or entry.actor.kind != "user":
        return None
    try:
        require_covered(path, entry, proof)
        verify_proof(authority, held, entry.change_id, proof, table)
        return authority.signer(proof.signature.signer, newest=entry.at)[0]
    except (CryptoFailed, Forbidden, Invalid):
        return None


def verify_proof(
    authority: Authority,
    held: Proven,
    change_id: str,
    proof: Proof,
    table: Table,
    *,
    since: str | None = None,
) -> None:
    """Raise unless a writer of this space signed the change, and all of it is there.

    `since`: the moment of what was decided by it; whoever could write from then until it was signed
    is enough.
    """
    if any(len(stated) != 2 for stated in proof.entries.values()):
        raise SignatureRejected("a proof states a stamp and a hash for each path")
    for path, (at, _) in proof.entries.items():
        standing = held.record.entries.get(path)
        # Guarded paths follow the hub's order, so a later value may bear an older stamp.
        if standing is None or (standing.at < at and not is_guarded(table, path)):
            raise Withheld("something that a change wrote is missing")
    newest = max((at for at, _ in proof.entries.values()), default=None)
    signer = proof.signature.signer
    if since is None:
        account, key = authority.writer(signer, newest=newest)
    else:
        account, key = authority.writer_then(signer, newest=newest, since=since)
    if proof.reseal:
        _require_sealed(table, proof)
    elif proof.actor.get("kind") == "user" and proof.actor.get("principalId") != account:
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
    verify = verify_reseal if proof.reseal else verify_change
    verify(key, facts, unb64(proof.signature.value))


def _require_sealed(table: Table, proof: Proof) -> None:
    """Raise unless every path is one that can be re-sealed.

    A re-seal bears the words of others under the hand of any member, so it must never carry what
    is plain: a state, or a decision.
    """
    for path in proof.entries:
        found = table.by_name.get(path.partition("/")[0])
        if found is None or not found.sealed:
            raise SignatureRejected("a re-seal brings something that is not sealed")


def is_guarded(table: Table, path: str) -> bool:
    """Say whether the hub's order decides this path, and not its stamp."""
    found = table.by_name.get(path.partition("/")[0])
    return found is not None and found.guarded
