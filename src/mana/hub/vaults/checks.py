"""What the hub checks of a change of a vault before it stores a byte. Pure.

The hub cannot open what it keeps, so it believes the one who can: a statement over every part,
signed with the key that only an opened vault gives. docs/protocol/vault.md, 2, has the rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NoReturn, TypeAlias

import msgspec

from mana.crypto.keys import key_check
from mana.crypto.passwords import KdfFloor, KdfParameters, token_hash
from mana.crypto.primitives import unb64
from mana.crypto.vaults import VaultStatement, formers_hash, text_hash, verify_statement
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import CryptoFailed, Invalid
from mana.domain.ids import AccountId
from mana.hub.accounts.founding import (
    check_certificate,
    check_sealed,
    check_short,
    identity_keys,
    key_bytes,
)
from mana.protocol.errors import (
    IdentityMoving,
    ProofRefused,
    RecoveryWrapMissing,
    VaultMoved,
    VaultRefused,
)
from mana.protocol.messages import (
    DeviceCertificate,
    Formers,
    Identity,
    RecoveryWrap,
    Vault,
    VaultChange,
)

Aspect: TypeAlias = Literal["mode", "identity", "master", "password", "recovery", "grants"]
ENDING_SESSIONS: Final[frozenset[Aspect]] = frozenset({"mode", "identity", "master", "password"})
"""After these every other session has to sign in with what is true now."""
_RECOVERY_ID: Final = re.compile(r"r-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Standing:
    """A vault as it stands, and all that a change of it is checked against.

    `devices`: those that are not revoked. `named`: the public keys (signing, HPKE) by which the
    newest entries of the account's spaces name it.
    """

    vault: Vault
    devices: tuple[DeviceCertificate, ...]
    named: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class CheckedChange:
    """A change that holds. Bytes that are None were not given: what stands stays.

    `recovery`: the wrap that stands afterwards. `keeps_kek_wrap`: the copy under the hub's KEK
    stays as it is; otherwise it is made from `master_key`, or erased without one.
    """

    statement: VaultStatement
    change: VaultChange
    identity: Identity
    recovery: RecoveryWrap | None
    recovery_hash: bytes | None = field(repr=False)
    login_key: bytes | None = field(repr=False)
    master_key: bytes | None = field(repr=False)
    keeps_kek_wrap: bool
    aspects: tuple[Aspect, ...]

    @property
    def ends_sessions(self) -> bool:
        """Say whether every other session of the account ends with this change."""
        return not ENDING_SESSIONS.isdisjoint(self.aspects)


def aspects_of(vault: Vault, statement: VaultStatement) -> tuple[Aspect, ...]:
    """Return what a statement would change."""
    recovery = "" if vault.recovery is None else text_hash(vault.recovery.wrapped)
    keys = (vault.identity.signing_key, vault.identity.hpke_key)
    pairs: tuple[tuple[Aspect, bool], ...] = (
        ("mode", statement.mode != vault.mode),
        ("identity", (statement.signing_key, statement.hpke_key) != keys),
        ("master", statement.master_check != vault.master_check),
        ("password", statement.kdf != msgspec.to_builtins(vault.kdf)),
        ("recovery", statement.recovery != recovery),
        ("grants", statement.grants != vault.grants),
    )
    return tuple(aspect for aspect, differs in pairs if differs)


def statement_of(wire: Mapping[str, Json]) -> VaultStatement:
    """Read the statement of a change; raise VaultRefused for any other form."""
    try:
        return VaultStatement.from_wire(wire)
    except CryptoFailed:
        _refuse("statement", "not the statement of a vault")


def check_change(standing: Standing, change: VaultChange, *, floor: KdfFloor) -> CheckedChange:
    """Return the change, checked; raise VaultMoved, ProofRefused, VaultRefused and their like."""
    vault, statement = standing.vault, statement_of(change.signed.statement)
    _check_place(vault, statement)
    _check_signatures(vault, change, statement)
    _check_parts(change, statement, floor)
    aspects = aspects_of(vault, statement)
    recovery = _checked_recovery(vault, change, statement, aspects)
    _check_mode(statement, aspects)
    identity = Identity(
        signing_key=statement.signing_key,
        hpke_key=statement.hpke_key,
        sealed_private=change.sealed_private,
    )
    _check_identity(standing, change, identity, aspects)
    master_key = _checked_master(vault, change, statement, aspects)
    return CheckedChange(
        statement=statement,
        change=change,
        identity=identity,
        recovery=recovery,
        recovery_hash=_recovery_hash(change),
        login_key=_checked_login_key(vault, change, aspects),
        master_key=master_key,
        keeps_kek_wrap=statement.mode == "standard" and master_key is None,
        aspects=aspects,
    )


def _check_place(vault: Vault, statement: VaultStatement) -> None:
    if statement.account_id != vault.account_id:
        _refuse("accountId", "the statement is of another account")
    before = "" if vault.statement is None else statement_of(vault.statement.statement).hash()
    place = (statement.revision, statement.previous, statement.challenge)
    if place != (vault.revision + 1, before, vault.challenge):
        raise VaultMoved("the vault is not as the statement says it was")


def _check_signatures(vault: Vault, change: VaultChange, statement: VaultStatement) -> None:
    try:
        identity_keys(_keys_of(statement))
    except CryptoFailed:
        _refuse("identity", "the identity has another form")
    own = change.signed.own_signature
    before = None if vault.statement is None else statement_of(vault.statement.statement)
    try:
        verify_statement(
            statement,
            unb64(change.signed.signature),
            None if own is None else unb64(own),
            before=before,
            key_before=identity_keys(vault.identity)[0],
        )
    except CryptoFailed:
        raise ProofRefused("the statement is not signed by the account's identity") from None


def _check_parts(change: VaultChange, statement: VaultStatement, floor: KdfFloor) -> None:
    """Require that every part has its form, and is the one that the statement names."""
    formers = msgspec.to_builtins(change.formers)
    kdf = msgspec.to_builtins(change.kdf)
    try:
        KdfParameters.from_wire(kdf).check_floor(floor=floor)
        check_sealed(change.master_wrap, "mk:1:", "the wrapped master key")
        check_sealed(change.sealed_private, "sec:1:", "the sealed identity")
        check_short(statement.master_check, "the check value of the master key")
        _check_formers(change.formers)
        parse_iso_ms(statement.changed_at)
    except (Invalid, CryptoFailed) as error:
        raise VaultRefused(str(error), detail={"cause": error.code}) from None
    named = {
        "kdf": canonical_json(dict(statement.kdf)) == canonical_json(kdf),
        "masterWrap": statement.master_wrap == text_hash(change.master_wrap),
        "sealedPrivate": statement.sealed_private == text_hash(change.sealed_private),
        "formers": statement.formers == formers_hash(formers["masters"], formers["identities"]),
    }
    for part, holds in named.items():
        if not holds:
            _refuse(part, f"the statement names another {part}")


def _check_formers(formers: Formers) -> None:
    for master in formers.masters:
        check_short(master.check, "the check value of a former master key")
        check_sealed(master.sealed, "sec:1:", "a former master key")
    for one in formers.identities:
        identity_keys(Identity(one.signing_key, one.hpke_key, one.sealed_private))
        check_sealed(one.sealed_private, "sec:1:", "a former identity")


def _checked_recovery(
    vault: Vault, change: VaultChange, statement: VaultStatement, aspects: tuple[Aspect, ...]
) -> RecoveryWrap | None:
    """Return the recovery wrap that stands afterwards."""
    given = None if change.recovery is None else change.recovery.wrap
    if not statement.recovery:
        if given is not None:
            _refuse("recovery", "the statement names no recovery code")
        return None
    wrap = given or vault.recovery
    if wrap is None or text_hash(wrap.wrapped) != statement.recovery:
        _refuse("recovery", "the statement names another recovery code")
    if given is not None:
        if "recovery" not in aspects:
            _refuse("recovery", "a recovery code that stands is not given again")
        if not _RECOVERY_ID.fullmatch(given.key_id):
            _refuse("recovery", "the name of the recovery code has another form")
        _check_form(given.wrapped, "mk:1:", "recovery")
    elif "master" in aspects:
        _refuse("recovery", "a recovery code ends with its master key")
    return wrap


def _check_mode(statement: VaultStatement, aspects: tuple[Aspect, ...]) -> None:
    if statement.mode != "zero-knowledge":
        return
    if not statement.recovery:
        raise RecoveryWrapMissing("zero-knowledge mode needs a recovery code")
    if "mode" in aspects and not {"identity", "master"} <= set(aspects):
        # The hub could have kept the master key that it held until now.
        _refuse("mode", "zero-knowledge mode begins with new keys")


def _check_identity(
    standing: Standing, change: VaultChange, identity: Identity, aspects: tuple[Aspect, ...]
) -> None:
    """Require that nobody who still counts on an identity is left behind."""
    held = standing.vault.identity
    now = {(one.signing_key, one.hpke_key) for one in change.formers.identities}
    before = {(one.signing_key, one.hpke_key) for one in standing.vault.formers.identities}
    is_new = "identity" in aspects
    if (before - now) & standing.named or (
        is_new and standing.named - {(held.signing_key, held.hpke_key)}
    ):
        raise IdentityMoving("spaces still name an identity before this one")
    if not is_new:
        if change.devices:
            _refuse("devices", "devices are certified anew by another identity only")
        return
    if (held.signing_key, held.hpke_key) not in now:
        _refuse("formers", "the identity that stood is not among the former ones")
    if change.sealed_private == held.sealed_private:
        _refuse("sealedPrivate", "another identity is sealed anew")
    _check_devices(standing, change, identity)


def _check_devices(standing: Standing, change: VaultChange, identity: Identity) -> None:
    signing_key, _ = identity_keys(identity)
    account = AccountId(standing.vault.account_id)
    try:
        for certificate in change.devices:
            check_certificate(certificate, account, signing_key)
    except (Invalid, CryptoFailed):
        _refuse("devices", "a device is not certified by the new identity")
    wanted = sorted(map(_device_facts, standing.devices))
    if sorted(map(_device_facts, change.devices)) != wanted:
        _refuse("devices", "these are not the devices that stand")


def _device_facts(certificate: DeviceCertificate) -> tuple[str, str, str]:
    return certificate.device_id, certificate.public_key, certificate.created_at


def _checked_master(
    vault: Vault, change: VaultChange, statement: VaultStatement, aspects: tuple[Aspect, ...]
) -> bytes | None:
    """Return the master key if it was given; require what another one needs."""
    if "master" in aspects:
        if change.master_wrap == vault.master_wrap:
            _refuse("masterWrap", "another master key is wrapped anew")
        if change.sealed_private == vault.identity.sealed_private:
            _refuse("sealedPrivate", "another master key seals the identity anew")
        if vault.master_check not in {one.check for one in change.formers.masters}:
            _refuse("formers", "the master key that stood is not among the former ones")
    if change.master_key is None:
        if statement.mode == "standard" and not {"master", "mode"}.isdisjoint(aspects):
            _refuse("masterKey", "standard mode needs the master key")
        return None
    if statement.mode != "standard":
        _refuse("masterKey", "in zero-knowledge mode the master key is never sent")
    master_key = _key(change.master_key, "masterKey")
    if key_check(master_key, vault.account_id, 1) != statement.master_check:
        _refuse("masterKey", "the master key has another check value")
    return master_key


def _checked_login_key(
    vault: Vault, change: VaultChange, aspects: tuple[Aspect, ...]
) -> bytes | None:
    if ("password" in aspects) != (change.login_key is not None):
        _refuse("loginKey", "the login key is sent with other password parameters only")
    if change.login_key is None:
        return None
    if change.master_wrap == vault.master_wrap:
        _refuse("masterWrap", "another password wraps the master key anew")
    return _key(change.login_key, "loginKey")


def _recovery_hash(change: VaultChange) -> bytes | None:
    if change.recovery is None:
        return None
    return token_hash(_key(change.recovery.login_key, "recovery"))


def _keys_of(statement: VaultStatement) -> Identity:
    return Identity(statement.signing_key, statement.hpke_key, "")


def _key(text: str, part: str) -> bytes:
    try:
        return key_bytes(text, part)
    except Invalid:
        _refuse(part, f"{part} is not 32 bytes in Base64")


def _check_form(text: str, prefix: str, part: str) -> None:
    try:
        check_sealed(text, prefix, part)
    except Invalid:
        _refuse(part, f"{part} has another form")


def _refuse(part: str, why: str) -> NoReturn:
    raise VaultRefused(why, detail={"part": part})
