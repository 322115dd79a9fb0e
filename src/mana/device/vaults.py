"""The statements of a vault: whether one follows from another, and how the next is made.

Pure. What the hub says of a vault is believed only as far as a chain of signed statements leads to
it from what this device holds, and only if the newest of them names every part. Normative:
docs/protocol/vault.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, cast

import msgspec

from mana.crypto.identity import PrivateIdentity, certify_device
from mana.crypto.keys import key_check, new_key, wrap_master_key
from mana.crypto.passwords import PasswordKeys
from mana.crypto.primitives import Random, b64, unb64
from mana.crypto.signatures import VerifyKey
from mana.crypto.vaults import (
    VaultMode,
    VaultStatement,
    formers_hash,
    new_recovery_secret,
    recovery_keys,
    seal_former_master,
    sign_statement,
    text_hash,
    verify_statement,
)
from mana.device.vault import UNLOCK_KEY_ID, VaultKeys
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, CryptoFailed, Invalid
from mana.protocol.messages import (
    DeviceCertificate,
    FormerIdentity,
    FormerMaster,
    Formers,
    Identity,
    KdfParameters,
    NewRecovery,
    RecoveryWrap,
    SignedStatement,
    Vault,
    VaultChange,
)
from mana.protocol.replication import HubDistrusted

STANDARD: Final = "standard"
ZERO_KNOWLEDGE: Final = "zero-knowledge"
FORMERS_MAX: Final = 16


class FormersFull(Conflict):
    """The account holds as many former keys as it can."""

    code: ClassVar[str] = "FORMERS_FULL"
    advice: ClassVar[str] = "Let all devices and spaces follow first, then try again."


# What the hub says


@dataclass(frozen=True, slots=True)
class Head:
    """How far a device has seen the statements of its vault; revision 0: as it was signed up."""

    revision: int
    hash: str


def head_of(vault: Vault) -> Head:
    """Return the head of a vault; raise HubDistrusted unless it has one as its revision says."""
    if vault.statement is None:
        if vault.revision != 0:
            raise HubDistrusted("the hub withholds the statement of the vault")
        return Head(0, "")
    statement = _read(vault.statement)
    if statement.revision != vault.revision:
        raise HubDistrusted("the vault's statement is of another revision")
    return Head(statement.revision, statement.hash())


def statement_of(vault: Vault, *, previous: str, challenge: str, changed_at: str) -> VaultStatement:
    """Return the statement that names every part of a vault."""
    formers = vault.formers
    return VaultStatement(
        account_id=vault.account_id,
        revision=vault.revision,
        previous=previous,
        challenge=challenge,
        mode=cast("VaultMode", vault.mode),
        kdf=_wire(vault.kdf),
        master_check=vault.master_check,
        master_wrap=text_hash(vault.master_wrap),
        recovery=text_hash(vault.recovery.wrapped if vault.recovery is not None else ""),
        signing_key=vault.identity.signing_key,
        hpke_key=vault.identity.hpke_key,
        sealed_private=text_hash(vault.identity.sealed_private),
        formers=formers_hash(
            [_wire(one) for one in formers.masters], [_wire(one) for one in formers.identities]
        ),
        grants=vault.grants,
        changed_at=changed_at,
    )


def require_stated(vault: Vault) -> None:
    """Raise HubDistrusted unless the newest statement names every part of the vault."""
    head = head_of(vault)
    if vault.statement is None:
        if vault.recovery is not None or vault.formers != Formers():
            raise HubDistrusted("the vault has parts that nobody has stated")
        return
    stated = _read(vault.statement)
    named = statement_of(
        vault,
        previous=stated.previous,
        challenge=stated.challenge,
        changed_at=stated.changed_at,
    )
    if named != stated or head.revision != vault.revision:
        raise HubDistrusted("the vault is not the one that its statement names")


def require_following(standing: Vault, found: Vault, log: Sequence[SignedStatement]) -> None:
    """Raise HubDistrusted unless `found` is `standing`, or a chain of statements leads to it.

    `log`: the statements after the revision of `standing`, oldest first.
    """
    if found.account_id != standing.account_id:
        raise HubDistrusted("the hub gave the vault of another account")
    before, after = head_of(standing), head_of(found)
    if after.revision < before.revision:
        raise HubDistrusted("the hub shows an older vault than this device has seen")
    require_stated(found)
    if after.revision == before.revision:
        if after != before or (after.revision == 0 and _signed_up(found) != _signed_up(standing)):
            raise HubDistrusted("the hub shows another vault than this device has seen")
        return
    newest = _chained(
        _read(standing.statement) if standing.statement is not None else None,
        VerifyKey(unb64(standing.identity.signing_key)),
        log,
    )
    _require_newest(newest, found, after)


def require_alone(found: Vault, log: Sequence[SignedStatement]) -> None:
    """Raise HubDistrusted unless a vault's statements hold among themselves.

    This is all that a device can check that sees the account for the first time.
    """
    require_stated(found)
    after = head_of(found)
    if not log:
        if after.revision != 0:
            raise HubDistrusted("the hub withholds statements of the vault")
        return
    first = _read(log[0])
    key, signed = _first_key(found, log[0], first), log[0]
    if key is None and signed.own_signature is not None:
        # The identity of the beginning is not to be had any more: what it made speaks for itself.
        key = first.verify_key()
        signed = SignedStatement(statement=signed.statement, signature=signed.own_signature)
    newest = _chained(None, key or first.verify_key(), [signed, *log[1:]])
    _require_newest(newest, found, after)


def _require_newest(newest: VaultStatement | None, found: Vault, after: Head) -> None:
    if newest is None or newest.account_id != found.account_id or newest.hash() != after.hash:
        raise HubDistrusted("no chain of statements leads to the vault that the hub shows")


def _chained(
    before: VaultStatement | None, key: VerifyKey, log: Sequence[SignedStatement]
) -> VaultStatement | None:
    for signed in log:
        statement = _read(signed)
        try:
            own = unb64(signed.own_signature) if signed.own_signature is not None else None
            verify_statement(statement, unb64(signed.signature), own, before=before, key_before=key)
            before, key = statement, statement.verify_key()
        except CryptoFailed:
            raise HubDistrusted("a statement of the vault does not follow") from None
    return before


def _first_key(found: Vault, signed: SignedStatement, first: VaultStatement) -> VerifyKey | None:
    """Return the key that signed the first statement, if it is one that is still known."""
    known = [first.signing_key, *(one.signing_key for one in found.formers.identities)]
    for text in known:
        try:
            _chained(None, VerifyKey(unb64(text)), [signed])
        except (HubDistrusted, CryptoFailed):
            continue
        return VerifyKey(unb64(text))
    return None


def _read(signed: SignedStatement) -> VaultStatement:
    try:
        return VaultStatement.from_wire(signed.statement)
    except CryptoFailed:
        raise HubDistrusted("a statement of the vault is malformed") from None


def _signed_up(vault: Vault) -> tuple[object, ...]:
    """Return what of a vault cannot change without a statement."""
    return (vault.mode, vault.kdf, vault.master_wrap, vault.master_check, vault.identity)


def _wire(part: FormerMaster | FormerIdentity | KdfParameters) -> dict[str, Json]:
    return cast("dict[str, Json]", msgspec.to_builtins(part))


# What this device changes


@dataclass(frozen=True, slots=True)
class NewPassword:
    """Another password: its parameters and both of its keys."""

    kdf: KdfParameters
    keys: PasswordKeys


@dataclass(frozen=True, slots=True)
class Wish:
    """What of a vault is to be another; everything that is not named stays.

    `unlock_key`: that of the password as it is, for another master key. `code`: a new recovery
    code, or none any more. `devices`: the account's devices that count, for another identity.
    `still_named`: signing keys of the former identities on which something counts; others go.
    `spares_master`: the oldest former master key may go where there is no room for another.
    """

    password: NewPassword | None = None
    unlock_key: bytes | None = field(default=None, repr=False)
    master: bool = False
    identity: bool = False
    code: bool | None = None
    mode: str | None = None
    grants: bool | None = None
    devices: Sequence[DeviceCertificate] = ()
    still_named: frozenset[str] | None = None
    spares_master: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A change of a vault, before the hub has it; `code`: the secret of a new recovery code."""

    change: VaultChange = field(repr=False)
    vault: Vault = field(repr=False)
    keys: VaultKeys = field(repr=False)
    code: bytes | None = field(default=None, repr=False)


def prepare(
    standing: Vault,
    keys: VaultKeys,
    wish: Wish,
    *,
    now_ms: int,
    random: Random = os.urandom,
) -> Prepared:
    """Return the next vault with its signed statement over the challenge of `standing`.

    Raises FormersFull, and Invalid where the wish lacks what it needs.
    """
    account_id = standing.account_id
    after = _next_keys(keys, wish, account_id, random)
    mode = after.mode
    secret = new_recovery_secret(random=random) if wish.code else None
    at = iso_ms(now_ms)
    made = None if secret is None else _new_recovery(standing, after, secret, random)
    recovery, recovery_set_at = standing.recovery, standing.recovery_set_at
    if made is not None:
        recovery, recovery_set_at = made.wrap, at
    elif wish.master or wish.code is False:
        recovery = recovery_set_at = None
    if mode == ZERO_KNOWLEDGE and recovery is None:
        raise Invalid("zero-knowledge mode has a recovery code")
    draft = msgspec.structs.replace(
        standing,
        mode=mode,
        kdf=wish.password.kdf if wish.password is not None else standing.kdf,
        master_wrap=_master_wrap(standing, after, wish, random),
        master_check=key_check(after.master_key, account_id, 1),
        identity=_identity(standing, after, wish, random),
        formers=_formers(standing, keys, after, wish, random),
        recovery=recovery,
        recovery_set_at=recovery_set_at,
        grants=standing.grants if wish.grants is None else wish.grants,
        revision=standing.revision + 1,
        statement=None,
    )
    statement = statement_of(
        draft, previous=head_of(standing).hash, challenge=standing.challenge, changed_at=at
    )
    own = sign_statement(after.identity.signing_key, statement) if wish.identity else None
    signed = SignedStatement(
        statement=statement.to_wire(),
        signature=b64(sign_statement(keys.identity.signing_key, statement)),
        own_signature=None if own is None else b64(own),
    )
    vault = msgspec.structs.replace(draft, statement=signed, challenge="")
    hub_lacks_it = wish.master or standing.mode != STANDARD
    change = VaultChange(
        signed=signed,
        kdf=vault.kdf,
        master_wrap=vault.master_wrap,
        sealed_private=vault.identity.sealed_private,
        formers=vault.formers,
        login_key=b64(wish.password.keys.login_key) if wish.password is not None else None,
        recovery=made,
        master_key=b64(after.master_key) if mode == STANDARD and hub_lacks_it else None,
        devices=[certified_anew(one, after.identity) for one in wish.devices]
        if wish.identity
        else [],
    )
    return Prepared(change, vault, after, secret)


def _new_recovery(standing: Vault, after: VaultKeys, secret: bytes, random: Random) -> NewRecovery:
    """Return the master key under a new recovery code, and the key by which that signs in."""
    keys = recovery_keys(secret, standing.login)
    wrapped = wrap_master_key(
        after.master_key,
        keys.wrap_key,
        "recovery",
        standing.account_id,
        keys.key_id,
        random=random,
    )
    wrap = RecoveryWrap(key_id=keys.key_id, wrapped=wrapped)
    return NewRecovery(wrap=wrap, login_key=b64(keys.login_key))


def signing_key(identity: PrivateIdentity) -> str:
    """Return the public signing key by which logs name an identity (base64)."""
    return b64(identity.signing_key.public().to_bytes())


def certified_anew(certificate: DeviceCertificate, identity: PrivateIdentity) -> DeviceCertificate:
    """Return the certificate of a device by another identity; the same each time it is made."""
    made = certify_device(
        identity.signing_key,
        identity.account_id,
        certificate.device_id,
        VerifyKey(unb64(certificate.public_key)),
        certificate.created_at,
    )
    return msgspec.convert(made.to_wire(), DeviceCertificate)


def _next_keys(keys: VaultKeys, wish: Wish, account_id: str, random: Random) -> VaultKeys:
    after = replace(keys, mode=wish.mode or keys.mode)
    if wish.password is not None:
        after = replace(after, login_key=wish.password.keys.login_key)
    if wish.still_named is not None:
        named = [one for one in keys.former_identities if signing_key(one) in wish.still_named]
        after = replace(after, former_identities=tuple(named))
    if wish.master:
        room = FORMERS_MAX - 1 if wish.spares_master else FORMERS_MAX
        after = replace(
            after,
            master_key=new_key(random=random),
            former_masters=(keys.master_key, *keys.former_masters[:room]),
        )
    if wish.identity:
        after = replace(
            after,
            identity=PrivateIdentity.generate(account_id, random=random),
            former_identities=(keys.identity, *after.former_identities),
        )
    if max(len(after.former_masters), len(after.former_identities)) > FORMERS_MAX:
        raise FormersFull("no more former keys can be kept")
    return after


def _master_wrap(standing: Vault, after: VaultKeys, wish: Wish, random: Random) -> str:
    if wish.password is None and not wish.master:
        return standing.master_wrap
    unlock_key = wish.password.keys.unlock_key if wish.password is not None else wish.unlock_key
    if unlock_key is None:
        raise Invalid("another master key needs the password")
    return wrap_master_key(
        after.master_key, unlock_key, "unlock", standing.account_id, UNLOCK_KEY_ID, random=random
    )


def _identity(standing: Vault, after: VaultKeys, wish: Wish, random: Random) -> Identity:
    if not (wish.master or wish.identity):
        return standing.identity
    public = after.identity.public()
    return Identity(
        signing_key=b64(public.signing_key.to_bytes()),
        hpke_key=b64(public.hpke_key.to_bytes()),
        sealed_private=after.identity.seal(after.master_key, random=random),
    )


def _formers(
    standing: Vault, keys: VaultKeys, after: VaultKeys, wish: Wish, random: Random
) -> Formers:
    """Return what came before, sealed under the master key that comes."""
    if not wish.master:
        named = {signing_key(one) for one in after.former_identities}
        identities = [one for one in standing.formers.identities if one.signing_key in named]
        if wish.identity:
            identities.insert(0, _former_identity(keys.identity, standing.identity.sealed_private))
        return Formers(masters=standing.formers.masters, identities=identities)
    masters = [
        FormerMaster(*seal_former_master(after.master_key, one, standing.account_id, random=random))
        for one in after.former_masters
    ]
    return Formers(
        masters=masters,
        identities=[
            _former_identity(one, one.seal(after.master_key, random=random))
            for one in after.former_identities
        ],
    )


def _former_identity(identity: PrivateIdentity, sealed: str) -> FormerIdentity:
    public = identity.public()
    return FormerIdentity(
        signing_key=b64(public.signing_key.to_bytes()),
        hpke_key=b64(public.hpke_key.to_bytes()),
        sealed_private=sealed,
    )
