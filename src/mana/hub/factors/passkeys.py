"""Passkeys as the relying party sees them. Pure, and the library is loaded when one is used.

The page is served by the device, so the origin is any port of one domain: over http for
`localhost` alone, which no network reaches; else over https.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from mana.crypto.primitives import b64url
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.protocol.errors import TwoFactorFailed

CREDENTIAL_BYTES_MAX: Final = 1_023
NAME: Final = "Mana"
_DOMAIN: Final = re.compile(r"(?!.*\.\d+$)(?!\d+$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9-]+)*")


class _ClientData(msgspec.Struct, frozen=True, rename="camel"):
    """What the browser says of itself; the authenticator signs it."""

    challenge: str
    origin: str
    cross_origin: bool = False


class _Response(msgspec.Struct, frozen=True):
    client_data_json: str = msgspec.field(name="clientDataJSON")


class _Credential(msgspec.Struct, frozen=True):
    id: str
    response: _Response


@dataclass(frozen=True, slots=True)
class Passkey:
    """A passkey as it is kept: names and public key in Base64url, and how often it signed."""

    credential_id: str
    public_key: str
    count: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What an answer of a browser says before anything of it is verified."""

    credential_id: str
    challenge: str
    origin: str = field(repr=False)


class RelyingParty:
    """Makes options for a browser, and verifies what it answers; a domain name names it."""

    def __init__(self, domain: str) -> None:
        if len(domain) > 253 or not _DOMAIN.fullmatch(domain):
            raise Invalid("MANA_PASSKEY_DOMAIN is a domain name, without scheme, port and address")
        self._domain = domain
        scheme = "https?" if domain == "localhost" else "https"
        self._origin = re.compile(rf"{scheme}://{re.escape(domain)}(:[0-9]{{1,5}})?", re.ASCII)

    def new_options(
        self, challenge: bytes, *, user_id: bytes, login: str, known: Sequence[str]
    ) -> dict[str, Json]:
        """Return what a browser needs to make a passkey that is none of `known`."""
        import webauthn
        from webauthn.helpers import options_to_json_dict, structs

        options = webauthn.generate_registration_options(
            rp_id=self._domain,
            rp_name=NAME,
            user_id=user_id,
            user_name=login,
            challenge=challenge,
            attestation=structs.AttestationConveyancePreference.NONE,
            authenticator_selection=structs.AuthenticatorSelectionCriteria(
                user_verification=structs.UserVerificationRequirement.PREFERRED
            ),
            exclude_credentials=_descriptors(known),
        )
        return options_to_json_dict(options)

    def options(self, challenge: bytes, known: Sequence[str]) -> dict[str, Json]:
        """Return what a browser needs to sign with one of the passkeys `known`."""
        import webauthn
        from webauthn.helpers import options_to_json_dict

        return options_to_json_dict(
            webauthn.generate_authentication_options(
                rp_id=self._domain, challenge=challenge, allow_credentials=_descriptors(known)
            )
        )

    def claim(self, answer: Mapping[str, Json]) -> Claim:
        """Return what an answer claims; raise TwoFactorFailed for another origin or form."""
        try:
            credential = msgspec.convert(dict(answer), _Credential)
            said = msgspec.json.decode(
                _unb64url(credential.response.client_data_json), type=_ClientData
            )
        except (msgspec.MsgspecError, ValueError):
            raise TwoFactorFailed("this is not what a passkey answers") from None
        if said.cross_origin or not self._origin.fullmatch(said.origin):
            raise TwoFactorFailed("the passkey was used on another page")
        return Claim(credential.id, said.challenge, said.origin)

    def made(self, answer: Mapping[str, Json], claim: Claim) -> Passkey:
        """Return a new passkey; raise TwoFactorFailed unless it signed what was claimed."""
        import webauthn

        try:
            found = webauthn.verify_registration_response(
                credential=dict(answer),
                expected_challenge=_unb64url(claim.challenge),
                expected_rp_id=self._domain,
                expected_origin=claim.origin,
            )
        except Exception:  # the library's parsers raise what they meet
            raise TwoFactorFailed("the passkey does not verify") from None
        if len(found.credential_id) > CREDENTIAL_BYTES_MAX:
            raise TwoFactorFailed("the passkey has too long a name")
        return Passkey(
            b64url(found.credential_id), b64url(found.credential_public_key), found.sign_count
        )

    def signed(self, answer: Mapping[str, Json], claim: Claim, passkey: Passkey) -> int:
        """Return how often the passkey has signed; raise TwoFactorFailed unless it did, anew."""
        import webauthn

        try:
            found = webauthn.verify_authentication_response(
                credential=dict(answer),
                expected_challenge=_unb64url(claim.challenge),
                expected_rp_id=self._domain,
                expected_origin=claim.origin,
                credential_public_key=_unb64url(passkey.public_key),
                credential_current_sign_count=passkey.count,
            )
        except Exception:  # the library's parsers raise what they meet
            raise TwoFactorFailed("the passkey does not verify") from None
        return found.new_sign_count


def _descriptors(known: Sequence[str]) -> Any:
    from webauthn.helpers.structs import PublicKeyCredentialDescriptor

    return [PublicKeyCredentialDescriptor(id=_unb64url(one)) for one in known]


def _unb64url(text: str) -> bytes:
    """Decode the URL-safe alphabet without padding; raise ValueError for anything else."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("not Base64url") from None
