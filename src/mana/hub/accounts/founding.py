"""What the hub checks of a sign-up before it stores a byte. Pure.

The hub cannot read an account, but it can refuse one whose parts do not fit: a certificate by
another identity, a space whose id is not the hash of its entry, a password cost below the floor.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from mana.crypto.errors import Malformed
from mana.crypto.hpke import HpkePublicKey
from mana.crypto.identity import DeviceCertificate as Certificate
from mana.crypto.identity import verify_certificate
from mana.crypto.passwords import KdfFloor, KdfParameters
from mana.crypto.primitives import b64, require_key, unb64
from mana.crypto.signatures import VerifyKey, entry_hash, verify_entry
from mana.domain.clock import parse_iso_ms
from mana.domain.errors import CryptoFailed, Invalid
from mana.domain.ids import AccountId, DeviceId, SpaceId, require_uuid
from mana.domain.spaces import Member, MembershipEntry, entry_from_wire
from mana.protocol.codec import check_text, check_value
from mana.protocol.messages import (
    DeviceCertificate,
    Identity,
    KeyWrap,
    NewSpace,
    SignUpRequest,
)

MODES: Final = ("standard", "zero-knowledge")
FIRST_TYPES: Final = ("personal", "user")
SEALED_LENGTH_MAX: Final = 8_192
CHECK_BYTES: Final = 16
WRAP_BYTES: Final = 1_168
"""What HPKE makes of a key of 32 bytes; docs/protocol/crypto.md, 6."""


@dataclass(frozen=True, slots=True)
class CheckedSpace:
    """A space whose first entry holds."""

    space_id: SpaceId
    entry: MembershipEntry
    new: NewSpace


@dataclass(frozen=True, slots=True)
class CheckedSignUp:
    """A sign-up whose parts fit together. `master_key` is None in zero-knowledge mode."""

    account: AccountId
    login_name: str
    login_key: bytes
    kdf: KdfParameters
    master_key: bytes | None
    spaces: tuple[CheckedSpace, ...]
    request: SignUpRequest


def login_name(login: str) -> str:
    """Return the one form of a login name by which accounts are told apart."""
    check_text(login)
    name = unicodedata.normalize("NFC", login).lower()
    if not name.isprintable() or name != name.strip() or not name:
        raise Invalid("a login name is printable and has no spaces around it")
    return name


def key_bytes(text: str, what: str) -> bytes:
    """Return the 32 bytes of a key on the wire; raise Invalid naming `what` otherwise."""
    try:
        return require_key(unb64(text))
    except Malformed:
        raise Invalid(f"{what} is not 32 bytes in Base64") from None


def check_sign_up(request: SignUpRequest, *, floor: KdfFloor) -> CheckedSignUp:
    """Return the sign-up, checked; raise Invalid or CryptoFailed with what does not fit."""
    account = AccountId(require_uuid(request.account_id, "account id"))
    if request.mode not in MODES:
        raise Invalid("mode is standard or zero-knowledge")
    if (request.master_key is not None) != (request.mode == "standard"):
        raise Invalid("the master key is sent in standard mode, and in no other")
    kdf = KdfParameters.from_wire(msgspec.to_builtins(request.kdf))
    kdf.check_floor(floor=floor)
    check_sealed(request.master_wrap, "mk:1:", "the wrapped master key")
    check_sealed(request.identity.sealed_private, "sec:1:", "the sealed identity")
    check_short(request.master_check, "the check value of the master key")
    signing_key, _ = identity_keys(request.identity)
    check_certificate(request.device, account, signing_key)
    spaces = tuple(
        check_space(new, account, request.identity.signing_key, request.identity.hpke_key)
        for new in request.spaces
    )
    if tuple(sorted(space.entry.space_type for space in spaces)) != FIRST_TYPES:
        raise Invalid("an account starts with one personal space and one user scope")
    return CheckedSignUp(
        account=account,
        login_name=login_name(request.login),
        login_key=key_bytes(request.login_key, "the login key"),
        kdf=kdf,
        master_key=(
            None if request.master_key is None else key_bytes(request.master_key, "the master key")
        ),
        spaces=spaces,
        request=request,
    )


def identity_keys(identity: Identity) -> tuple[VerifyKey, HpkePublicKey]:
    """Return the public keys of an identity on the wire; raise CryptoFailed otherwise."""
    return VerifyKey(unb64(identity.signing_key)), HpkePublicKey(unb64(identity.hpke_key))


def check_certificate(
    certificate: DeviceCertificate, account: AccountId, identity: VerifyKey
) -> DeviceId:
    """Return the device's id; raise unless the account's identity certified it."""
    verify_certificate(Certificate.from_wire(msgspec.to_builtins(certificate)), identity, account)
    parse_iso_ms(certificate.created_at)
    return DeviceId(require_uuid(certificate.device_id, "device id"))


def check_space(new: NewSpace, account: AccountId, signing_key: str, hpke_key: str) -> CheckedSpace:
    """Return a space that the account founds; the keys are its identity's, in Base64."""
    check_value(new.first.entry)
    entry = entry_from_wire(new.first.entry)
    owner = Member(account, "owner", signing_key, hpke_key)
    if entry.members != (owner,) or entry.author_id != account:
        raise Invalid("the account is the only owner of a space that it founds")
    if entry.previous or entry.key_version != 1 or len(entry.nonce) > 128:
        raise Invalid("a first entry follows nothing and names key version 1")
    if entry.to_wire() != new.first.entry:
        raise Invalid("a membership entry has one form")
    parse_iso_ms(entry.created_at)
    check_short(entry.key_check, "the check value of the space key")
    signature = unb64(new.first.signature)
    verify_entry(VerifyKey(unb64(signing_key)), entry.to_wire(), signature)
    _check_wraps(new.wraps)
    return CheckedSpace(SpaceId(entry_hash(entry.to_wire(), signature)), entry, new)


def _check_wraps(wraps: Sequence[KeyWrap]) -> None:
    kinds = [wrap.kind for wrap in wraps]
    if "s" not in kinds or not set(kinds) <= {"s", "p"} or len(set(kinds)) != len(kinds):
        raise Invalid("a new space has one wrap of its key, and at most one of a private key")
    for wrap in wraps:
        if wrap.version != 1:
            raise Invalid("the keys of a new space are of version 1")
        check_wrap(wrap.wrapped)


def check_wrap(text: str) -> None:
    """Raise Invalid unless the text can be the wrap of a key for one account."""
    if len(text) > SEALED_LENGTH_MAX or len(unb64(text)) != WRAP_BYTES:
        raise Invalid(f"a wrapped key is not {WRAP_BYTES} bytes in Base64")


def check_sealed(text: str, prefix: str, what: str) -> None:
    """Raise Invalid naming `what` unless the text has the form of a seal or a wrap."""
    iv, dot, ciphertext = text.removeprefix(prefix).partition(".")
    if not text.startswith(prefix) or not dot or len(text) > SEALED_LENGTH_MAX:
        raise Invalid(f"{what} has another form")
    try:
        unb64(iv)
        unb64(ciphertext)
    except CryptoFailed:
        raise Invalid(f"{what} has another form") from None


def check_short(text: str, what: str) -> None:
    """Raise Invalid naming `what` unless the text is a check value."""
    raw = unb64(text)
    if len(raw) != CHECK_BYTES or b64(raw) != text:
        raise Invalid(f"{what} is not {CHECK_BYTES} bytes in Base64")
