"""What an account's replica keeps sealed under the master key, beside the records.

Every such value is written and opened here by its name, so that a change of the master key finds
all of them. A value is written only under the master key that the replica stands under: another
process of this machine may have changed it meanwhile, and nobody could open what was sealed under
the one before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from mana.crypto.keys import key_check, open_secret, seal_secret
from mana.device.errors import ReplicaBroken
from mana.device.replica import Tx
from mana.device.vault import OpenedVault
from mana.domain.errors import CryptoFailed
from mana.protocol.errors import VaultMoved
from mana.protocol.messages import DeviceCertificate, Vault

VAULT: Final = "vault"
NEXT: Final = "vaultNext"
"""The vault as a change that was begun here would make it."""
HEAD: Final = "vaultHead"
BEGUN: Final = "vaultBegun"
CODE: Final = "recoveryCode"
"""A recovery code that the hub has taken and nobody has seen yet."""
SPACES: Final = "spaces"
CERTIFICATE: Final = "certificate"
DEVICE_KEY: Final = "deviceKey"
REFRESH: Final = "refreshToken"
REMEMBERED: Final = "remembered"
"""The master key under a secret of the system's keyring, if the person asked for it."""
KEYRING_SLOT: Final = "keyringSlot"
"""The name of that secret, kept until it is removed from the keyring too."""
REVOKED_HERE: Final = "revoked"
"""Another device revoked this one: whoever opens the account again does so as a new device."""
_PURPOSES: Final = {
    HEAD: "vault-head",
    BEGUN: "vault-begun",
    CODE: "recovery-code",
    SPACES: "spaces",
    REFRESH: "refresh-token",
}
_FAMILIES: Final = {"kept:": "kept", "begun:": "spaces-begun"}
_SEALED: Final = "sec:1:"


def meta_of(family: str, name: str) -> str:
    """Return the name under which one of a family is kept: `kept` or `begun`."""
    return f"{family}:{name}"


def keep_sealed(tx: Tx, vault: OpenedVault, name: str, plaintext: bytes | None) -> None:
    """Keep a value sealed; None forgets it. Raises VaultMoved if the master key is another by now."""
    require_standing(tx, vault)
    sealed = None
    if plaintext is not None:
        purpose, context = _place(tx, name)
        sealed = vault.seal(plaintext, purpose, *context)
    tx.set_meta(name, sealed)


def open_sealed(tx: Tx, vault: OpenedVault, name: str) -> bytes | None:
    """Return a value that is kept; raise VaultMoved if the master key is another by now."""
    sealed = tx.meta(name)
    if sealed is None:
        return None
    purpose, context = _place(tx, name)
    try:
        return vault.open(sealed, purpose, *context)
    except CryptoFailed:
        require_standing(tx, vault)
        raise


def require_standing(tx: Tx, vault: OpenedVault) -> None:
    """Raise VaultMoved unless the replica stands under this vault's master key."""
    standing = tx.meta(VAULT)
    if standing is None:
        return  # the replica is being made
    check = msgspec.json.decode(standing, type=_Checked).master_check
    if check != key_check(vault.master_key, vault.account_id, 1):
        raise VaultMoved("another process of this machine has changed the master key")


def seal_anew(tx: Tx, account_id: str, before: Sequence[bytes], master_key: bytes) -> None:
    """Seal everything that is kept here under another master key.

    `before`: the master keys under which it may stand, the likeliest first. What opens under none
    of them did not open before either, and stays as it is.
    """
    for name, sealed in _all_sealed(tx):
        purpose, context = _place(tx, name)
        plaintext = _opened(sealed, before, purpose, account_id, context)
        if plaintext is not None:
            tx.set_meta(name, seal_secret(master_key, plaintext, purpose, account_id, *context))


def require_known(tx: Tx) -> None:
    """Raise ReplicaBroken if something is sealed here that could not be sealed anew."""
    for name, _ in _all_sealed(tx):
        _place(tx, name)


def _all_sealed(tx: Tx) -> list[tuple[str, str]]:
    return [(name, value) for name, value in tx.metas().items() if value.startswith(_SEALED)]


class _Checked(msgspec.Struct, frozen=True, rename="camel"):
    """The one member of a kept vault that says which master key the replica stands under."""

    master_check: str


def _opened(
    sealed: str, keys: Iterable[bytes], purpose: str, account_id: str, context: Sequence[str]
) -> bytes | None:
    for key in keys:
        try:
            return open_secret(key, sealed, purpose, account_id, *context)
        except CryptoFailed:
            continue
    return None


def _place(tx: Tx, name: str) -> tuple[str, tuple[str, ...]]:
    """Return purpose and context of the seal of a value."""
    if name == DEVICE_KEY:
        certificate = tx.meta(CERTIFICATE)
        if certificate is None:
            raise ReplicaBroken("the replica lacks the device's certificate")
        return "device-key", (msgspec.json.decode(certificate, type=DeviceCertificate).device_id,)
    if name in _PURPOSES:
        return _PURPOSES[name], ()
    for prefix, purpose in _FAMILIES.items():
        if name.startswith(prefix):
            return purpose, (name.removeprefix(prefix),)
    raise ReplicaBroken("the replica keeps a secret that this version of Mana does not know")


def keep_vault(tx: Tx, wire: Vault) -> None:
    """Keep the vault that stands from now on; it holds no secret in the open.

    With another password or master key the account asks for the password again.
    """
    before = tx.meta(VAULT)
    if before is not None and decode_vault(before).master_wrap != wire.master_wrap:
        tx.set_meta(REMEMBERED, None)
    tx.set_meta(VAULT, encode_vault(wire))


def encode_vault(wire: Vault) -> str:
    """Return the text of a vault as it is kept."""
    return msgspec.json.encode(wire).decode()


def decode_vault(raw: str | None) -> Vault:
    """Return a vault that was kept; raise ReplicaBroken."""
    if raw is None:
        raise ReplicaBroken("the replica lacks the account's vault")
    try:
        return msgspec.json.decode(raw, type=Vault)
    except msgspec.MsgspecError:
        raise ReplicaBroken("the replica's vault is damaged") from None
