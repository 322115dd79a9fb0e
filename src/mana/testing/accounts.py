"""Accounts as a device makes them, without a device: for tests of the hub and the runner.

Everything is real (keys, wraps, certificates, signatures); only the password's cost is cheap.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from mana.crypto.authority import facts_of
from mana.crypto.envelope import Binding, KeyClass, RecordKey, seal_field
from mana.crypto.identity import PrivateIdentity, certify_device
from mana.crypto.keys import (
    SpaceKeyName,
    key_check,
    mission_key,
    new_key,
    wrap_master_key,
    wrap_space_key,
)
from mana.crypto.passwords import (
    KdfFloor,
    KdfParameters,
    derive_password_keys,
)
from mana.crypto.primitives import b64
from mana.crypto.signatures import (
    SigningKey,
    entry_hash,
    sign_change,
    sign_entry,
)
from mana.domain.actors import Actor, origin_of, person
from mana.domain.clock import Stamp, iso_ms
from mana.domain.encoding import Json
from mana.domain.ids import AccountId, DeviceId, RecordId, SpaceId
from mana.domain.spaces import Member, MembershipEntry, SpaceType
from mana.domain.tables import Sealing, Table
from mana.protocol.messages import (
    ChangeMessage,
    DeviceCertificate,
    FieldWrite,
    Identity,
    KeyWrap,
    NewSpace,
    Signature,
    SignedEntry,
    SignUpRequest,
)
from mana.protocol.messages import KdfParameters as WireKdf

CHEAP: Final = KdfFloor(t=1, m_kib=8, p=1)
"""A password cost for tests; the hub's settings must inject it as the floor."""
PASSWORD: Final = "correct horse battery staple"


@dataclass(frozen=True, slots=True)
class FoundedSpace:
    """A space of a new account with its keys."""

    space_id: SpaceId
    type: SpaceType
    space_key: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    new: NewSpace = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewAccount:
    """A person with one device; `request` signs them up."""

    account_id: AccountId
    login: str
    login_key: bytes = field(repr=False)
    unlock_key: bytes = field(repr=False)
    master_key: bytes = field(repr=False)
    identity: PrivateIdentity = field(repr=False)
    device_id: DeviceId
    device_key: SigningKey = field(repr=False)
    certificate: DeviceCertificate = field(repr=False)
    personal: FoundedSpace
    user: FoundedSpace
    request: SignUpRequest = field(repr=False)

    @property
    def actor(self) -> Actor:
        """Return the person as the actor of a change."""
        return person(self.account_id)


def new_account(
    login: str,
    *,
    now_ms: int,
    demo: bool = False,
    invite: str | None = None,
    account_id: str | None = None,
) -> NewAccount:
    """Make a person, a device, both first spaces and the request that signs them up."""
    account = AccountId(account_id or str(uuid.uuid4()))
    kdf = KdfParameters.new(floor=CHEAP)
    passwords = derive_password_keys(PASSWORD, login, kdf, floor=CHEAP)
    master_key = new_key()
    identity = PrivateIdentity.generate(account)
    device_id, device_key, certificate = new_device(identity, now_ms=now_ms)
    personal = found_space(identity, "personal", now_ms=now_ms)
    user = found_space(identity, "user", now_ms=now_ms)
    public = identity.public()
    request = SignUpRequest(
        account_id=account,
        login=login,
        mode="standard",
        kdf=msgspec.convert(kdf.to_wire(), WireKdf),
        login_key=b64(passwords.login_key),
        master_wrap=wrap_master_key(master_key, passwords.unlock_key, "unlock", account, "k1"),
        master_check=key_check(master_key, account, 1),
        identity=Identity(
            signing_key=b64(public.signing_key.to_bytes()),
            hpke_key=b64(public.hpke_key.to_bytes()),
            sealed_private=identity.seal(master_key),
        ),
        device=certificate,
        spaces=[personal.new, user.new],
        master_key=b64(master_key),
        invite=invite,
        demo=demo,
    )
    return NewAccount(
        account,
        login,
        passwords.login_key,
        passwords.unlock_key,
        master_key,
        identity,
        device_id,
        device_key,
        certificate,
        personal,
        user,
        request,
    )


def new_device(
    identity: PrivateIdentity, *, now_ms: int
) -> tuple[DeviceId, SigningKey, DeviceCertificate]:
    """Make a device of an account: its id, its key, and the certificate to register."""
    device_id = DeviceId(str(uuid.uuid4()))
    key = SigningKey.generate()
    certificate = certify_device(
        identity.signing_key, identity.account_id, device_id, key.public(), iso_ms(now_ms)
    )
    return device_id, key, msgspec.convert(certificate.to_wire(), DeviceCertificate)


def found_space(identity: PrivateIdentity, space_type: SpaceType, *, now_ms: int) -> FoundedSpace:
    """Found a space with the account as its only owner."""
    public = identity.public()
    space_key, private_key = new_key(), new_key()
    nonce = os.urandom(16).hex()
    entry = MembershipEntry(
        previous="",
        space_type=space_type,
        members=(
            Member(
                identity.account_id,
                "owner",
                b64(public.signing_key.to_bytes()),
                b64(public.hpke_key.to_bytes()),
            ),
        ),
        key_version=1,
        key_check=key_check(space_key, nonce, 1),
        created_at=iso_ms(now_ms),
        author_id=identity.account_id,
        nonce=nonce,
    ).to_wire()
    signature = sign_entry(identity.signing_key, entry)
    space_id = SpaceId(entry_hash(entry, signature))

    def wrapped(key: bytes, kind: str) -> KeyWrap:
        name = SpaceKeyName("s" if kind == "s" else "p", space_id, 1, identity.account_id)
        return KeyWrap(kind=kind, version=1, wrapped=wrap_space_key(key, public.hpke_key, name))

    new = NewSpace(
        first=SignedEntry(entry=entry, signature=b64(signature)),
        wraps=[wrapped(space_key, "s"), wrapped(private_key, "p")],
    )
    return FoundedSpace(space_id, space_type, space_key, private_key, new)


def sealed_change(
    account: NewAccount,
    table: Table,
    record_id: str,
    values: Mapping[str, Json],
    *,
    now_ms: int,
    space: FoundedSpace | None = None,
    op: str = "insert",
    actor: Actor | None = None,
    counter: int = 0,
    visibility: str = "space",
    context: Mapping[str, Json] | None = None,
    group: str | None = None,
    guards: Mapping[str, Json] | None = None,
    change_id: str | None = None,
    author_id: str | None = None,
) -> ChangeMessage:
    """Return opened values by path as the change that the account's device would push.

    Sealed fields are sealed, `None` is left plain, and changes of tables that decide are
    signed. `context` holds plain fields that choose the key and are not written here.
    """
    where = space or account.personal
    writer = actor or account.actor
    at = str(Stamp(now_ms, counter, account.device_id))
    chosen = {**(context or {}), **values}
    cls, key = _record_key(where, table, record_id, chosen, visibility)
    fields: dict[str, FieldWrite] = {}
    for path, value in values.items():
        wire = value
        if table.field_at(path).sealed and value is not None:
            binding = Binding(
                where.space_id, table.name, RecordId(record_id), path, at, writer.to_wire()
            )
            wire = seal_field(key, cls=cls, version=1, binding=binding, value=value)
        fields[path] = FieldWrite(value=wire, at=at)
    change = ChangeMessage(
        change_id=change_id or str(uuid.uuid4()),
        table=table.name,
        id=record_id,
        op=op,
        fields=fields,
        actor={name: str(member) for name, member in writer.to_wire().items()},
        origin=origin_of(writer),
        author_id=author_id or account.account_id,
        visibility=visibility,
        group=group,
        guards=dict(guards or {}),
    )
    signs = table.authority or op == "flip"
    return signed(account, where.space_id, change) if signs else change


def signed(account: NewAccount, space_id: str, change: ChangeMessage) -> ChangeMessage:
    """Return the change with the signature of the account's device."""
    facts = facts_of(space_id, change)
    signature = Signature(
        signer=account.device_id, value=b64(sign_change(account.device_key, facts))
    )
    return msgspec.structs.replace(change, signature=signature)


def _record_key(
    space: FoundedSpace,
    table: Table,
    record_id: str,
    values: Mapping[str, Json],
    visibility: str,
) -> tuple[KeyClass, RecordKey]:
    cls: KeyClass = "p" if visibility == "private" else "s"
    parent = space.private_key if cls == "p" else space.space_key
    if table.sealing is Sealing.MISSION:
        own = mission_key(space.space_key, str(values["missionId"]))
        return "m", RecordKey.derive(own, table.name, RecordId(record_id))
    if table.sealing is Sealing.TARGET:
        target = RecordId(str(values["targetId"]))
        return cls, RecordKey.derive(parent, str(values["targetTable"]), target)
    return cls, RecordKey.derive(parent, table.name, RecordId(record_id))
