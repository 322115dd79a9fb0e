"""An account's keys: made at sign-up, opened with the password, dropped at lock.

Nothing of the hub is taken on trust: password parameters below the floor are refused, the master
key must match its check value, private halves their public ones, and every space its log.
"""

from __future__ import annotations

import contextlib
import os
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar, Final, cast

import msgspec

from mana.crypto.authority import VerifiedLog, verify_log
from mana.crypto.envelope import KeyClass, RecordKey
from mana.crypto.errors import Malformed, SignatureRejected, WrapRejected
from mana.crypto.hpke import HpkePublicKey
from mana.crypto.identity import PrivateIdentity, PublicIdentity, certify_device
from mana.crypto.keys import (
    KeyKind,
    RecordKeys,
    SpaceKeyName,
    key_check,
    mission_key,
    new_key,
    open_secret,
    private_key,
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
from mana.crypto.primitives import b64, require_key, unb64
from mana.crypto.signatures import SigningKey, VerifyKey, entry_hash, sign_entry
from mana.crypto.vaults import open_former_master
from mana.device.errors import PrivateKeyMissing, SpaceKeyMissing, WrongPassword
from mana.domain.clock import iso_ms
from mana.domain.errors import Conflict, CryptoFailed, NotFound
from mana.domain.ids import AccountId, DeviceId, SpaceId
from mana.domain.spaces import Member, MembershipEntry, Role, SpaceType
from mana.protocol.messages import (
    Departure,
    DeviceCertificate,
    FormerIdentity,
    Identity,
    KeyWrap,
    NewSpace,
    SignedEntry,
    SignUpRequest,
    SpaceInfo,
    SpacesAnswer,
    Vault,
)
from mana.protocol.messages import KdfParameters as WireKdf
from mana.protocol.replication import HubDistrusted

UNLOCK_KEY_ID: Final = "k1"
_RECORD_KEYS_MAX: Final = 50_000
_PARENTS_MAX: Final = 1_000


def random_id() -> str:
    """Return a random id."""
    return str(uuid.uuid4())


def folded_login(login: str) -> str:
    """Return a login name in the one form in which two spellings of it are compared."""
    return unicodedata.normalize("NFC", login.strip()).lower()


class SpaceStillHeld(Conflict):
    """The account is a member of the space, so this device keeps it."""

    code: ClassVar[str] = "SPACE_STILL_HELD"
    advice: ClassVar[str] = "Leave the space first."


@dataclass(frozen=True, slots=True)
class SpaceKeys:
    """The keys of one space by version, and its verified log, entry by entry.

    `former`: the account is no longer a member; the keys stay, so that what is here can be read.
    `outdated_private`: versions of the private key that stem from a former master key.
    """

    space_id: SpaceId
    type: SpaceType
    version: int
    space_keys: Mapping[int, bytes] = field(repr=False)
    private_keys: Mapping[int, bytes] = field(repr=False)
    verified: VerifiedLog = field(repr=False)
    role: Role | None
    former: bool = False
    outdated_private: frozenset[int] = frozenset()

    @property
    def log(self) -> tuple[SignedEntry, ...]:
        """Return the signed log."""
        return cast("tuple[SignedEntry, ...]", self.verified.log)

    @property
    def entries(self) -> tuple[MembershipEntry, ...]:
        """Return the entries of the log, in order."""
        return self.verified.entries

    @property
    def members(self) -> tuple[Member, ...]:
        """Return the members of the newest entry; none if the space is closed."""
        return self.entries[-1].members

    @property
    def closed(self) -> bool:
        """Say whether the space was closed for everybody."""
        return not self.members

    @property
    def shared(self) -> bool:
        """Say whether this type of space can have several members."""
        return self.type not in _FIRST_SPACES

    @property
    def spoiled(self) -> bool:
        """Say whether the key in use was never given to this account in a form that opens.

        Whoever changes the key wraps it for each member, so it is in their power to leave one out.
        """
        return not self.former and self.version not in self.space_keys

    @property
    def current_version(self) -> int:
        """Return the version of the key in use; raise SpaceKeyMissing if it is spoiled."""
        if self.spoiled:
            raise SpaceKeyMissing("the key in use was not given to this account")
        return self.version

    @property
    def private_version(self) -> int:
        """Return the newest version of the account's private key here; PrivateKeyMissing.

        One that stems from a former master key opens what is there, and seals nothing: whoever
        had that master key would read it.
        """
        if self.owes_private_key:
            raise PrivateKeyMissing("this account has no private key in the space yet")
        return max(self.private_keys)

    @property
    def owes_private_key(self) -> bool:
        """Say whether the account has yet to make a private key here under its master key."""
        return not self.private_keys.keys() - self.outdated_private


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """This device's id, signing key and certificate."""

    device_id: DeviceId
    key: SigningKey = field(repr=False)
    certificate: DeviceCertificate = field(repr=False)


@dataclass(frozen=True, slots=True)
class VaultKeys:
    """The keys of a vault as it stands, and what came before them, newest first.

    `login_key` is None where no password was typed: whoever needs it asks the person.
    """

    mode: str
    master_key: bytes = field(repr=False)
    identity: PrivateIdentity = field(repr=False)
    login_key: bytes | None = field(default=None, repr=False)
    former_masters: tuple[bytes, ...] = field(default=(), repr=False)
    former_identities: tuple[PrivateIdentity, ...] = field(default=(), repr=False)


class OpenedVault:
    """The keys of one unlocked account, in memory only.

    `typed`: the keys of the password that opened it, until the hub was asked once: the master key
    may have been changed while this device was locked, and nobody types it twice.
    """

    typed: PasswordKeys | None = None

    def __init__(
        self,
        *,
        account_id: AccountId,
        login: str,
        mode: str,
        login_key: bytes | None,
        master_key: bytes,
        identity: PrivateIdentity,
        former_masters: Sequence[bytes] = (),
        former_identities: Sequence[PrivateIdentity] = (),
    ) -> None:
        self.account_id: Final = account_id
        self.login: Final = login
        self.keys = VaultKeys(
            mode, master_key, identity, login_key, tuple(former_masters), tuple(former_identities)
        )
        self.spaces: dict[str, SpaceKeys] = {}
        self._infos: dict[str, SpaceInfo] = {}
        self._record_keys: dict[tuple[str, str, int, str, str, str], RecordKey] = {}
        self._parents: dict[bytes, RecordKeys] = {}

    def __repr__(self) -> str:
        return f"OpenedVault({self.account_id})"

    @property
    def mode(self) -> str:
        """Return the account's mode: standard or zero-knowledge."""
        return self.keys.mode

    @property
    def master_key(self) -> bytes:
        """Return the master key in force."""
        return self.keys.master_key

    @property
    def login_key(self) -> bytes | None:
        """Return the key that signs in; None where the vault was opened without the password."""
        return self.keys.login_key

    @property
    def identity(self) -> PrivateIdentity:
        """Return the identity in force."""
        return self.keys.identity

    @property
    def identities(self) -> tuple[PrivateIdentity, ...]:
        """Return the identity in force and the former ones that some space may name, newest first."""
        return (self.keys.identity, *self.keys.former_identities)

    def identity_for(self, signing_key: str) -> PrivateIdentity | None:
        """Return the identity of this account with a signing key (base64), former ones too."""
        for identity in self.identities:
            if b64(identity.signing_key.public().to_bytes()) == signing_key:
                return identity
        return None

    def adopt(self, keys: VaultKeys) -> None:
        """Take the keys of another revision of this vault, all at once; the spaces stay open."""
        self.keys = keys
        self.spaces = {
            name: replace(
                space, outdated_private=_outdated(self, space.space_id, space.private_keys)
            )
            for name, space in self.spaces.items()
        }

    def space_of_type(self, space_type: SpaceType) -> SpaceKeys:
        """Return the account's own space of a type of which there is one."""
        found = [space for space in self.spaces.values() if space.type == space_type]
        if len(found) != 1:
            raise HubDistrusted(f"the account has not one space of type {space_type}")
        return found[0]

    def space(self, space_id: str) -> SpaceKeys:
        """Return one space, former ones too; raise NotFound."""
        found = self.spaces.get(space_id)
        if found is None:
            raise NotFound("this account has no such space")
        return found

    def take_spaces(self, answer: SpacesAnswer) -> None:
        """Verify and open what the hub says of all spaces; nothing is taken if any of it is wrong.

        Raises HubDistrusted for a log that forgets entries, for a space that is merely missing,
        and for a departure that the signed log does not show.
        """
        taken = {info.space_id: self._opened(info) for info in answer.spaces}
        left = {
            one.space_id: self._departed(one)
            for one in answer.departed
            if one.space_id in self.spaces and one.space_id not in taken
        }
        here = {space_id for space_id, space in self.spaces.items() if not space.former}
        if not here <= taken.keys() | left.keys():
            raise HubDistrusted("the hub hides a space of this account")
        spaces = {**self.spaces, **left, **taken}
        for kind in _FIRST_SPACES:
            if sum(space.type == kind for space in spaces.values()) != 1:
                raise HubDistrusted(f"the account has not one space of type {kind}")
        self.spaces = spaces
        for info in answer.spaces:
            self._keep_info(info)

    def take_space(self, info: SpaceInfo) -> SpaceKeys:
        """Verify and open one space after a write of its membership; the others stay."""
        space = self._opened(info)
        if space.type in _FIRST_SPACES and space.space_id not in self.spaces:
            raise HubDistrusted("a second space of a type of which there is one")
        self.spaces = {**self.spaces, space.space_id: space}
        self._keep_info(info)
        return space

    def depart(self, space_id: str, log: Sequence[SignedEntry]) -> SpaceKeys:
        """Take that this account is out of a space, shown by its log; its keys are kept."""
        self.space(space_id)
        left = self._departed(Departure(space_id=space_id, log=list(log)))
        self.spaces = {**self.spaces, space_id: left}
        return left

    def forget_space(self, space_id: str) -> None:
        """Drop the keys of a former space; raise SpaceStillHeld for any other."""
        if not self.space(space_id).former:
            raise SpaceStillHeld("the account is a member of this space")
        self.spaces = {name: kept for name, kept in self.spaces.items() if name != space_id}
        self._infos.pop(space_id, None)
        self._record_keys.clear()
        self._parents.clear()

    def new_private_key(self, space_id: str) -> KeyWrap:
        """Return the next version of the account's private key in a space, wrapped for the hub.

        It counts here once the hub has it and gives it back with the space.
        """
        version = max(self.space(space_id).private_keys, default=0) + 1
        return _private_wrap(self.identity, self.master_key, space_id, version)

    def kept_spaces(self) -> bytes:
        """Return what a restart must know of the spaces, former ones too. To be sealed."""
        kept = _KeptSpaces(
            spaces=[
                msgspec.structs.replace(self._infos[space_id], log=list(space.log))
                for space_id, space in self.spaces.items()
            ],
            former=[space_id for space_id, space in self.spaces.items() if space.former],
            keys={
                space_id: {
                    f"{kind}{version}": b64(key)
                    for kind, keys in (("s", space.space_keys), ("p", space.private_keys))
                    for version, key in sorted(keys.items())
                }
                for space_id, space in self.spaces.items()
            },
        )
        return msgspec.json.encode(kept)

    def restore_spaces(self, raw: bytes) -> None:
        """Take what `kept_spaces` gave, here or in another process of this machine.

        Of each space the longer log counts; raises HubDistrusted where two do not agree.
        """
        kept = _decode_kept(raw)
        for info in kept.spaces:
            known = self.spaces.get(info.space_id)
            if known is not None and len(known.log) > len(info.log):
                if not verify_log(info.space_id, info.log).continued(known.log):
                    raise HubDistrusted("a space's log is not the one that was seen before")
                continue
            self.spaces[info.space_id] = self._opened(
                info, kept.keys.get(info.space_id, {}), former=info.space_id in kept.former
            )
            self._keep_info(info)
        for kind in _FIRST_SPACES:
            self.space_of_type(kind)

    def _keep_info(self, info: SpaceInfo) -> None:
        """Keep the wraps of a space, those of earlier answers too: a rejoin brings no old ones."""
        known = self._infos.get(info.space_id)
        named = {(wrap.kind, wrap.version) for wrap in info.wraps}
        older = known.wraps if known is not None else []
        wraps = [*(one for one in older if (one.kind, one.version) not in named), *info.wraps]
        self._infos[info.space_id] = msgspec.structs.replace(info, wraps=wraps)

    def _opened(
        self,
        info: SpaceInfo,
        held: Mapping[str, str] = MappingProxyType({}),
        *,
        former: bool = False,
    ) -> SpaceKeys:
        known = self.spaces.get(info.space_id)
        if known is not None and not known.verified.continued(info.log):
            raise HubDistrusted("a space's log is not the one that was seen before")
        return _open_space(self, info, known, held, former=former)

    def _departed(self, departure: Departure) -> SpaceKeys:
        """Return a space as a former one, if its log shows that the account is out of it."""
        known = self.spaces[departure.space_id]
        if not known.verified.continued(departure.log):
            raise HubDistrusted("a space's log is not the one that was seen before")
        verified = verify_log(known.space_id, departure.log, known.verified)
        if verified.newest.member(self.account_id) is not None:
            raise HubDistrusted("the hub says that the account left a space that it is in")
        return replace(known, verified=verified, role=None, former=True)

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
            found = RecordKey(self._keys_under(parent).of(table, record_id))
            if len(self._record_keys) >= _RECORD_KEYS_MAX:
                self._record_keys.clear()
            self._record_keys[name] = found
        return found

    def _keys_under(self, parent: bytes) -> RecordKeys:
        """Return what derives the record keys of a parent: a list has many of one."""
        found = self._parents.get(parent)
        if found is None:
            if len(self._parents) >= _PARENTS_MAX:
                self._parents.clear()
            found = self._parents[parent] = RecordKeys(parent)
        return found

    def parent_key(self, space_id: str, cls: KeyClass, version: int, mission_id: str = "") -> bytes:
        """Return the key from which the record keys of a class are derived."""
        space = self.space(space_id)
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
    device_name: str = "",
    now_ms: int,
    new_id: Callable[[], str] = random_id,
) -> NewAccount:
    """Draw every key of a new account and the request that signs it up."""
    account = AccountId(new_id())
    master_key = new_key()
    identity = PrivateIdentity.generate(account)
    public = identity.public()
    wire_identity = Identity(
        signing_key=b64(public.signing_key.to_bytes()),
        hpke_key=b64(public.hpke_key.to_bytes()),
        sealed_private=identity.seal(master_key),
    )
    master_wrap = wrap_master_key(master_key, keys.unlock_key, "unlock", account, UNLOCK_KEY_ID)
    check = key_check(master_key, account, 1)
    vault = OpenedVault(
        account_id=account,
        login=login,
        mode=mode,
        login_key=keys.login_key,
        master_key=master_key,
        identity=identity,
    )
    founded = [found_space(identity, master_key, kind, now_ms=now_ms) for kind in _FIRST_SPACES]
    vault.take_spaces(SpacesAnswer(spaces=[info for info, _ in founded]))
    device = new_device(vault, now_ms=now_ms, new_id=new_id)
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
        device_name=device_name,
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
    try:
        master_key = unwrap_master_key(
            wire.master_wrap, keys.unlock_key, "unlock", wire.account_id, UNLOCK_KEY_ID
        )
    except WrapRejected:
        raise WrongPassword("the password does not open this account") from None
    opened = open_with_master(wire, master_key, login_key=keys.login_key)
    opened.typed = keys
    return opened


def open_with_master(
    wire: Vault, master_key: bytes, *, login_key: bytes | None = None
) -> OpenedVault:
    """Open a vault with its master key; raise HubDistrusted if that is another one.

    Every former key is opened too, so that a vault that lacks one is refused as a whole.
    """
    account = AccountId(wire.account_id)
    if key_check(master_key, account, 1) != wire.master_check:
        raise HubDistrusted("the master key is not the one that the account was made with")
    formers = wire.formers
    return OpenedVault(
        account_id=account,
        login=wire.login,
        mode=wire.mode,
        login_key=login_key,
        master_key=master_key,
        identity=_open_identity(master_key, account, wire.identity),
        former_masters=[
            open_former_master(master_key, one.check, one.sealed, account)
            for one in formers.masters
        ],
        former_identities=[_open_identity(master_key, account, one) for one in formers.identities],
    )


def _open_identity(
    master_key: bytes, account: AccountId, wire: Identity | FormerIdentity
) -> PrivateIdentity:
    public = PublicIdentity(
        account, HpkePublicKey(unb64(wire.hpke_key)), VerifyKey(unb64(wire.signing_key))
    )
    return PrivateIdentity.open(master_key, wire.sealed_private, public)


def _open_space(
    vault: OpenedVault,
    info: SpaceInfo,
    known: SpaceKeys | None,
    held: Mapping[str, str],
    *,
    former: bool,
) -> SpaceKeys:
    """Return the keys of a space after its log, its id and its key checks were verified.

    Keys of versions that were known and are not given again stay; so do those `held` in what was
    kept here, by their names, whichever identity they were once wrapped to. `former`: the log must show
    that the account is out of it; then not every key of it is to be had.
    """
    verified = verify_log(info.space_id, info.log, known.verified if known is not None else None)
    newest = verified.newest
    memberships = [entry.member(vault.account_id) for entry in verified.entries]
    own = next((one for one in reversed(memberships) if one is not None), None)
    is_in = memberships[-1] is not None
    if own is None or is_in is former or newest.space_type != info.type:
        raise HubDistrusted("the space is not one of this account")
    # A space names a former identity until its log has followed.
    identity = vault.identity_for(own.signing_key)
    if identity is not None and own.hpke_key != b64(identity.public().hpke_key.to_bytes()):
        identity = None
    if identity is None and not held:
        # What was kept here may be older than the account's last look at a former identity.
        raise HubDistrusted("the space names other keys for this account")
    if newest.space_type in _FIRST_SPACES and newest.members != (own,):
        raise HubDistrusted("a space of one person has other members")
    held_keys, held_private = _held_keys(held)
    space_keys, private_keys = dict(held_keys), dict(held_private)
    if known is not None:
        space_keys |= known.space_keys
        private_keys |= known.private_keys
    for wrap in info.wraps:
        kind: KeyKind = "s" if wrap.kind == "s" else "p"
        name = SpaceKeyName(kind, info.space_id, wrap.version, vault.account_id)
        try:
            key = _unwrapped(vault, identity, wrap.wrapped, name)
            if kind == "s":
                _check_key(verified.entries, wrap.version, key)
        except CryptoFailed:
            if wrap.version in (held_keys if kind == "s" else held_private):
                continue  # kept with the key, wrapped to an identity that may be gone by now
            # Another member made it. It must not stand in the way of this space's log, by which
            # that member is put out, and of no other space.
            if kind == "p" or newest.space_type in _FIRST_SPACES:
                raise
            continue
        keys = space_keys if kind == "s" else private_keys
        if keys.setdefault(wrap.version, key) != key:
            raise HubDistrusted("the hub gives another key for a version that was seen before")
    private_keys = _known_private(vault, newest.space_type, info.space_id, private_keys)
    given = space_keys.keys() | {wrap.version for wrap in info.wraps if wrap.kind == "s"}
    if not former and newest.key_version not in given:
        raise HubDistrusted("the hub withholds a key of the space")
    if newest.space_type in _FIRST_SPACES and not private_keys:
        raise HubDistrusted("the hub withholds a key of the space")
    return SpaceKeys(
        space_id=SpaceId(info.space_id),
        type=newest.space_type,
        version=newest.key_version,
        space_keys=space_keys,
        private_keys=private_keys,
        verified=verified,
        role=None if former else own.role,
        former=former,
        outdated_private=_outdated(vault, info.space_id, private_keys),
    )


def _held_keys(held: Mapping[str, str]) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Return the keys of a space and the private ones by version, from what was kept."""
    found: dict[str, dict[int, bytes]] = {"s": {}, "p": {}}
    for name, key in held.items():
        found[name[0]][int(name[1:])] = require_key(unb64(key))
    return found["s"], found["p"]


def _unwrapped(
    vault: OpenedVault, named: PrivateIdentity | None, wrapped: str, name: SpaceKeyName
) -> bytes:
    """Return a key that was wrapped to the identity that the log names, or to another of ours.

    While a space follows to a new identity, wraps that are kept here may be older than its log.
    """
    for identity in (one for one in vault.identities if one is not named):
        with contextlib.suppress(WrapRejected):
            return unwrap_space_key(wrapped, identity.hpke_key, name)
    if named is None:
        raise WrapRejected("the identity that this was wrapped to is not kept any more")
    return unwrap_space_key(wrapped, named.hpke_key, name)


def _origin(vault: OpenedVault, space_id: str, version: int, key: bytes) -> int | None:
    """Return from which master key a private key stems: 0 is the one in force; None for none."""
    masters = (vault.keys.master_key, *vault.keys.former_masters)
    return next(
        (at for at, one in enumerate(masters) if private_key(one, space_id, version) == key), None
    )


def _known_private(
    vault: OpenedVault, space_type: SpaceType, space_id: str, keys: Mapping[int, bytes]
) -> dict[int, bytes]:
    """Return the private keys that this account made; raise HubDistrusted for any other.

    Anybody can wrap a key to a public one, and no log names private keys: the hub could hand out
    one of its own. So each stems from a master key, and no later one from an earlier master key:
    who knew that one could choose what is sealed under. What is older than all that is known is
    left out, because its master key may have been dropped. The first ones of an account's own
    two spaces may be older than this rule; nobody else can be kept out of those.
    """
    found: dict[int, bytes] = {}
    before: int | None = None
    for version in sorted(keys):
        at = _origin(vault, space_id, version, keys[version])
        if at is None and (space_type not in _FIRST_SPACES or version > 1):
            if found and before is not None:
                raise HubDistrusted("a private key that this account did not make")
            continue
        if at is not None:
            if before is not None and at > before:
                raise HubDistrusted("a private key that a former master key came back with")
            before = at
        found[version] = keys[version]
    if len(found) < len(keys) and before is None:
        raise HubDistrusted("a private key that this account did not make")
    return found


def _outdated(vault: OpenedVault, space_id: str, keys: Mapping[int, bytes]) -> frozenset[int]:
    """Return the versions that do not stem from the master key in force, once there was another."""
    if not vault.keys.former_masters:
        return frozenset()
    return frozenset(
        version for version, key in keys.items() if _origin(vault, space_id, version, key) != 0
    )


def new_device(
    vault: OpenedVault, *, now_ms: int, new_id: Callable[[], str] = random_id
) -> DeviceKey:
    """Mint an id and a key for this device, certified by the account."""
    device_id = DeviceId(new_id())
    key = SigningKey.generate()
    certificate = certify_device(
        vault.identity.signing_key, vault.account_id, device_id, key.public(), iso_ms(now_ms)
    )
    message = msgspec.convert(certificate.to_wire(), DeviceCertificate)
    return DeviceKey(device_id, key, message)


def found_space(
    identity: PrivateIdentity, master_key: bytes, space_type: SpaceType, *, now_ms: int
) -> tuple[SpaceInfo, NewSpace]:
    """Found a space with the account as its only owner."""
    public = identity.public()
    space_key = new_key()
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
    name = SpaceKeyName("s", space_id, 1, identity.account_id)
    wraps = [
        KeyWrap(kind="s", version=1, wrapped=wrap_space_key(space_key, public.hpke_key, name)),
        _private_wrap(identity, master_key, space_id, 1),
    ]
    first = SignedEntry(entry=entry, signature=b64(signature))
    info = SpaceInfo(space_id=space_id, type=space_type, role="owner", log=[first], wraps=wraps)
    return info, NewSpace(first=first, wraps=wraps)


_FIRST_SPACES: Final[tuple[SpaceType, ...]] = ("personal", "user")


class _KeptSpaces(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The spaces as they are kept: `former` names those that the account is out of.

    `keys`: by space the keys themselves (base64) under their names in envelopes, because a wrap
    opens only as long as the identity that it was made for is kept. All of it is sealed.
    """

    spaces: list[SpaceInfo]
    former: list[str] = msgspec.field(default_factory=list)
    keys: dict[str, dict[str, str]] = msgspec.field(default_factory=dict)


def _decode_kept(raw: bytes) -> _KeptSpaces:
    """Return the spaces that were kept; an older version kept a list of them."""
    try:
        if raw.lstrip()[:1] == b"[":
            return _KeptSpaces(spaces=msgspec.json.decode(raw, type=list[SpaceInfo]))
        return msgspec.json.decode(raw, type=_KeptSpaces)
    except msgspec.MsgspecError:
        raise Malformed("not the spaces that were kept") from None


def _private_wrap(
    identity: PrivateIdentity, master_key: bytes, space_id: str, version: int
) -> KeyWrap:
    name = SpaceKeyName("p", space_id, version, identity.account_id)
    key = private_key(master_key, space_id, version)
    wrapped = wrap_space_key(key, identity.public().hpke_key, name)
    return KeyWrap(kind="p", version=version, wrapped=wrapped)


def _check_key(entries: Iterable[MembershipEntry], version: int, key: bytes) -> None:
    """Compare a version of the space's key with the check value that its log commits to."""
    named = next((entry for entry in entries if entry.key_version == version), None)
    if named is None:
        raise HubDistrusted("a key of the space that its log does not know")
    if key_check(key, named.nonce, version) != named.key_check:
        raise SignatureRejected("a key of the space is not the one that its log commits to")
