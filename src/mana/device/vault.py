"""An account's keys: made at sign-up, opened with the password, dropped at lock.

Nothing of the hub is taken on trust: password parameters below the floor are refused, the master
key must match its check value, private halves their public ones, and every space its log.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from mana.crypto.authority import read_log
from mana.crypto.envelope import KeyClass, RecordKey
from mana.crypto.errors import Malformed, SignatureRejected, WrapRejected
from mana.crypto.hpke import HpkePublicKey
from mana.crypto.identity import PrivateIdentity, PublicIdentity, certify_device
from mana.crypto.keys import (
    SpaceKeyName,
    key_check,
    mission_key,
    new_key,
    open_secret,
    seal_secret,
    unwrap_master_key,
    unwrap_space_key,
    wrap_master_key,
    wrap_space_key,
)
from mana.crypto.passwords import (
    KdfFloor,
    KdfParameters,
    PasswordKeys,
    derive_password_keys,
)
from mana.crypto.primitives import b64, unb64
from mana.crypto.signatures import SigningKey, VerifyKey, entry_hash, sign_entry
from mana.device.errors import WrongPassword
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.ids import AccountId, DeviceId, SpaceId
from mana.domain.spaces import Member, MembershipEntry, SpaceType, entry_from_wire
from mana.protocol.messages import (
    DeviceCertificate,
    Identity,
    KeyWrap,
    NewSpace,
    SignedEntry,
    SignUpRequest,
    SpaceInfo,
    Vault,
)
from mana.protocol.messages import KdfParameters as WireKdf
from mana.protocol.replication import HubDistrusted

_UNLOCK_KEY_ID: Final = "k1"
_RECORD_KEYS_MAX: Final = 50_000


@dataclass(frozen=True, slots=True)
class SpaceKeys:
    """The keys of one space by version, and its verified log."""

    space_id: SpaceId
    type: SpaceType
    version: int
    space_keys: Mapping[int, bytes] = field(repr=False)
    private_keys: Mapping[int, bytes] = field(repr=False)
    log: tuple[SignedEntry, ...] = field(repr=False)

    @property
    def private_version(self) -> int:
        """Return the newest version of the account's private key in this space."""
        return max(self.private_keys)


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """This device's id, signing key and certificate."""

    device_id: DeviceId
    key: SigningKey = field(repr=False)
    certificate: DeviceCertificate = field(repr=False)


class OpenedVault:
    """The keys of one unlocked account, in memory only."""

    def __init__(
        self,
        *,
        account_id: AccountId,
        login: str,
        mode: str,
        login_key: bytes,
        master_key: bytes,
        identity: PrivateIdentity,
    ) -> None:
        self.account_id: Final = account_id
        self.login: Final = login
        self.mode: Final = mode
        self.login_key: Final = login_key
        self.master_key: Final = master_key
        self.identity: Final = identity
        self.spaces: dict[str, SpaceKeys] = {}
        self._record_keys: dict[tuple[str, str, int, str, str, str], RecordKey] = {}

    def __repr__(self) -> str:
        return f"OpenedVault({self.account_id})"

    def space_of_type(self, space_type: SpaceType) -> SpaceKeys:
        """Return the account's own space of a type of which there is one."""
        found = [space for space in self.spaces.values() if space.type == space_type]
        if len(found) != 1:
            raise HubDistrusted(f"the account has not one space of type {space_type}")
        return found[0]

    def take_spaces(self, spaces: Sequence[SpaceInfo]) -> None:
        """Verify and open the spaces that the hub names; refuse a log that forgets entries."""
        opened: dict[str, SpaceKeys] = {}
        for info in spaces:
            space = open_space(self.identity, info)
            known = self.spaces.get(space.space_id)
            if known is not None and space.log[: len(known.log)] != known.log:
                raise HubDistrusted("a space's log is not the one that was seen before")
            opened[space.space_id] = space
        if not set(self.spaces) <= set(opened):
            raise HubDistrusted("the hub hides a space of this account")
        self.spaces = opened
        self.space_of_type("personal")
        self.space_of_type("user")

    def record_key(
        self,
        space_id: str,
        cls: KeyClass,
        version: int,
        table: str,
        record_id: str,
        mission_id: str = "",
    ) -> RecordKey:
        """Return the key of one record, kept while the account is unlocked."""
        name = (space_id, cls, version, table, record_id, mission_id)
        found = self._record_keys.get(name)
        if found is None:
            parent = self.parent_key(space_id, cls, version, mission_id)
            found = RecordKey.derive(parent, table, record_id)
            if len(self._record_keys) >= _RECORD_KEYS_MAX:
                self._record_keys.clear()
            self._record_keys[name] = found
        return found

    def parent_key(self, space_id: str, cls: KeyClass, version: int, mission_id: str = "") -> bytes:
        """Return the key from which the record keys of a class are derived."""
        space = self.spaces[space_id]
        keys = space.private_keys if cls == "p" else space.space_keys
        found = keys.get(version)
        if found is None:
            raise WrapRejected("the key of this version is not held here")
        return mission_key(found, mission_id) if cls == "m" else found

    def seal(self, plaintext: bytes, purpose: str, *context: str) -> str:
        """Seal a secret of this account for the local database."""
        return seal_secret(self.master_key, plaintext, purpose, self.account_id, *context)

    def open(self, sealed: str, purpose: str, *context: str) -> bytes:
        """Open what was sealed for the local database."""
        return open_secret(self.master_key, sealed, purpose, self.account_id, *context)


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account before the hub has it."""

    vault: OpenedVault
    wire: Vault
    device: DeviceKey
    request: SignUpRequest = field(repr=False)


def derive(password: str, login: str, kdf: WireKdf, *, floor: KdfFloor) -> PasswordKeys:
    """Derive both keys of a password; refuse parameters below the floor. Takes a second."""
    parameters = KdfParameters.from_wire(msgspec.to_builtins(kdf))
    return derive_password_keys(password, login, parameters, floor=floor)


def new_kdf(floor: KdfFloor) -> WireKdf:
    """Return the parameters of a new password."""
    return msgspec.convert(KdfParameters.new(floor=floor).to_wire(), WireKdf)


def new_account(
    login: str,
    keys: PasswordKeys,
    kdf: WireKdf,
    *,
    mode: str,
    demo: bool,
    invite: str | None,
    now_ms: int,
) -> NewAccount:
    """Draw every key of a new account and the request that signs it up."""
    account = AccountId(str(uuid.uuid4()))
    master_key = new_key()
    identity = PrivateIdentity.generate(account)
    public = identity.public()
    wire_identity = Identity(
        signing_key=b64(public.signing_key.to_bytes()),
        hpke_key=b64(public.hpke_key.to_bytes()),
        sealed_private=identity.seal(master_key),
    )
    master_wrap = wrap_master_key(master_key, keys.unlock_key, "unlock", account, _UNLOCK_KEY_ID)
    check = key_check(master_key, account, 1)
    vault = OpenedVault(
        account_id=account,
        login=login,
        mode=mode,
        login_key=keys.login_key,
        master_key=master_key,
        identity=identity,
    )
    founded = [found_space(identity, kind, now_ms=now_ms) for kind in _FIRST_SPACES]
    vault.take_spaces([info for info, _ in founded])
    device = new_device(vault, now_ms=now_ms)
    request = SignUpRequest(
        account_id=account,
        login=login,
        mode=mode,
        kdf=kdf,
        login_key=b64(keys.login_key),
        master_wrap=master_wrap,
        master_check=check,
        identity=wire_identity,
        device=device.certificate,
        spaces=[new for _, new in founded],
        master_key=b64(master_key) if mode == "standard" else None,
        invite=invite,
        demo=demo,
    )
    wire = Vault(
        account_id=account,
        login=login,
        mode=mode,
        role="member",
        kdf=kdf,
        master_wrap=master_wrap,
        master_check=check,
        identity=wire_identity,
    )
    return NewAccount(vault, wire, device, request)


def open_vault(wire: Vault, keys: PasswordKeys) -> OpenedVault:
    """Open a vault with the password's keys; raise WrongPassword if they do not fit."""
    account = AccountId(wire.account_id)
    try:
        master_key = unwrap_master_key(
            wire.master_wrap, keys.unlock_key, "unlock", account, _UNLOCK_KEY_ID
        )
    except WrapRejected:
        raise WrongPassword("the password does not open this account") from None
    if key_check(master_key, account, 1) != wire.master_check:
        raise HubDistrusted("the master key is not the one that the account was made with")
    public = PublicIdentity(
        account,
        HpkePublicKey(unb64(wire.identity.hpke_key)),
        VerifyKey(unb64(wire.identity.signing_key)),
    )
    return OpenedVault(
        account_id=account,
        login=wire.login,
        mode=wire.mode,
        login_key=keys.login_key,
        master_key=master_key,
        identity=PrivateIdentity.open(master_key, wire.identity.sealed_private, public),
    )


def open_space(identity: PrivateIdentity, info: SpaceInfo) -> SpaceKeys:
    """Return the keys of a space after its log, its id and its key checks were verified."""
    newest = read_log(info.space_id, info.log)
    own = newest.member(identity.account_id)
    public = identity.public()
    if own is None or newest.space_type != info.type:
        raise HubDistrusted("the space is not one of this account")
    if own.signing_key != b64(public.signing_key.to_bytes()) or own.hpke_key != b64(
        public.hpke_key.to_bytes()
    ):
        raise HubDistrusted("the space names other keys for this account")
    if newest.space_type in _FIRST_SPACES and newest.members != (own,):
        raise HubDistrusted("a space of one person has other members")
    space_keys: dict[int, bytes] = {}
    private_keys: dict[int, bytes] = {}
    for wrap in info.wraps:
        kind = "s" if wrap.kind == "s" else "p"
        name = SpaceKeyName(
            "s" if kind == "s" else "p", info.space_id, wrap.version, identity.account_id
        )
        key = unwrap_space_key(wrap.wrapped, identity.hpke_key, name)
        (space_keys if kind == "s" else private_keys)[wrap.version] = key
    _check_keys(info, space_keys)
    if newest.key_version not in space_keys or not private_keys:
        raise HubDistrusted("the hub withholds a key of the space")
    return SpaceKeys(
        SpaceId(info.space_id),
        newest.space_type,
        newest.key_version,
        space_keys,
        private_keys,
        tuple(info.log),
    )


def new_device(vault: OpenedVault, *, now_ms: int) -> DeviceKey:
    """Mint an id and a key for this device, certified by the account."""
    device_id = DeviceId(str(uuid.uuid4()))
    key = SigningKey.generate()
    certificate = certify_device(
        vault.identity.signing_key, vault.account_id, device_id, key.public(), iso_ms(now_ms)
    )
    message = msgspec.convert(certificate.to_wire(), DeviceCertificate)
    return DeviceKey(device_id, key, message)


def found_space(
    identity: PrivateIdentity, space_type: SpaceType, *, now_ms: int
) -> tuple[SpaceInfo, NewSpace]:
    """Found a space with the account as its only owner."""
    public = identity.public()
    space_key, private_key = new_key(), new_key()
    nonce = os.urandom(16).hex()
    owner = Member(
        identity.account_id,
        "owner",
        b64(public.signing_key.to_bytes()),
        b64(public.hpke_key.to_bytes()),
    )
    entry = MembershipEntry(
        previous="",
        space_type=space_type,
        members=(owner,),
        key_version=1,
        key_check=key_check(space_key, nonce, 1),
        created_at=iso_ms(now_ms),
        author_id=identity.account_id,
        nonce=nonce,
    ).to_wire()
    signature = sign_entry(identity.signing_key, entry)
    space_id = entry_hash(entry, signature)
    wraps = [
        KeyWrap(
            kind=kind,
            version=1,
            wrapped=wrap_space_key(
                key,
                public.hpke_key,
                SpaceKeyName("s" if kind == "s" else "p", space_id, 1, identity.account_id),
            ),
        )
        for kind, key in (("s", space_key), ("p", private_key))
    ]
    first = SignedEntry(entry=entry, signature=b64(signature))
    info = SpaceInfo(space_id=space_id, type=space_type, role="owner", log=[first], wraps=wraps)
    return info, NewSpace(first=first, wraps=wraps)


def encode_spaces(spaces: Sequence[SpaceInfo]) -> bytes:
    """Return the bytes under which verified spaces are kept, to be sealed."""
    return msgspec.json.encode(list(spaces))


def decode_spaces(raw: bytes) -> list[SpaceInfo]:
    """Return the spaces that were kept."""
    try:
        return msgspec.json.decode(raw, type=list[SpaceInfo])
    except msgspec.MsgspecError:
        raise Malformed("not the spaces that were kept") from None


_FIRST_SPACES: Final[tuple[SpaceType, ...]] = ("personal", "user")


def _check_keys(info: SpaceInfo, space_keys: Mapping[int, bytes]) -> None:
    """Compare each version of the space's key with the check value that its log commits to."""
    checks: dict[int, tuple[str, str]] = {}
    for signed in info.log:
        wire: dict[str, Json] = signed.entry
        entry = entry_from_wire(wire)
        checks.setdefault(entry.key_version, (entry.nonce, entry.key_check))
    for version, key in space_keys.items():
        if version not in checks:
            raise HubDistrusted("a key of the space that its log does not know")
        label, check = checks[version]
        if key_check(key, label, version) != check:
            raise SignatureRejected("a key of the space is not the one that its log commits to")
