"""What the hub checks of the word that a device counts no more. Pure."""

from __future__ import annotations

from mana.crypto.authority import read_revocation
from mana.crypto.identity import verify_revocation
from mana.crypto.primitives import unb64
from mana.crypto.signatures import VerifyKey
from mana.domain.clock import DRIFT_MS_MAX, parse_iso_ms
from mana.domain.errors import CryptoFailed, Invalid
from mana.protocol.errors import ProofRefused
from mana.protocol.messages import DeviceRevocation


def check_revocation(revocation: DeviceRevocation, device_id: str, *, now_ms: int) -> None:
    """Raise Invalid for a revocation of another device, or one of a time that is to come.

    Until that time the members would go on to believe the device.
    """
    if revocation.version != "v1":
        raise Invalid("unknown version of a revocation")
    if revocation.device_id != device_id:
        raise Invalid("the revocation is of another device than the path names")
    if parse_iso_ms(revocation.revoked_at) > now_ms + DRIFT_MS_MAX:
        raise Invalid("the revocation is of a time that is to come; check the device's clock")


def require_revocation(revocation: DeviceRevocation, signing_key: str, account: str) -> None:
    """Raise ProofRefused unless the account's identity (Base64) signed the revocation."""
    try:
        key = VerifyKey(unb64(signing_key))
        verify_revocation(read_revocation(revocation), key, account)
    except CryptoFailed:
        raise ProofRefused("the identity of the account has not signed this revocation") from None
