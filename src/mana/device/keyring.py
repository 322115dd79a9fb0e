"""An account that opens without its password, because the person's system keeps a secret for it.

Only where the person asked for it. The system's keyring holds a random key, the replica the master
key under it: neither is worth anything without the other, and the replica's half goes whenever
password or master key change. Whoever can use the system's keyring can then open the account.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from mana.crypto.keys import new_key, open_secret, seal_secret
from mana.crypto.primitives import b64, unb64
from mana.device.kept import KEYRING_SLOT, REMEMBERED, require_standing
from mana.device.records import RecordBook
from mana.device.replica import Replica, Tx
from mana.device.vault import OpenedVault, open_with_master
from mana.domain.errors import CryptoFailed, NotFound, Unavailable
from mana.protocol.messages import Vault

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

SERVICE: Final = "mana"
PATIENCE_S: Final = 60.0
"""How long a person may take to let Mana use the keyring, as far as the system asks them."""
_SLOT_BYTES: Final = 16
_RECOMMENDED: Final = 1
"""The least priority of a keyring that keeps what it is given, and not in the open."""
_log: Final = logging.getLogger("mana.device")
_T = TypeVar("_T")


class KeyringUnavailable(Unavailable):
    """This system has no keyring that can be used, or it does not open."""

    code: ClassVar[str] = "KEYRING_UNAVAILABLE"
    advice: ClassVar[str] = (
        "Set up and unlock a keyring, such as GNOME Keyring or KWallet, or go on with the password."
    )


class NotRemembered(NotFound):
    """The account is not one that opens without its password on this device."""

    code: ClassVar[str] = "NOT_REMEMBERED"
    advice: ClassVar[str] = "Sign in with the password."


def found_backend() -> KeyringBackend:
    """Return this system's keyring."""
    import keyring  # here, because it looks for every keyring there is, and few ask for one

    return keyring.get_keyring()


class SystemKeyring:
    """The system's keyring, by slot. Every call raises KeyringUnavailable where there is none."""

    def __init__(
        self,
        backend: Callable[[], KeyringBackend] = found_backend,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._backend = backend
        self._patience_s = patience_s

    async def read(self, slot: str) -> bytes | None:
        """Return the secret of a slot; None if it is gone."""
        text = await self._call(lambda backend: backend.get_password(SERVICE, slot))
        try:
            return None if text is None else unb64(text)
        except CryptoFailed:
            return None

    async def write(self, slot: str, secret: bytes) -> None:
        """Keep a secret, and read it back: some keyrings forget without a word."""
        text = b64(secret)
        await self._call(lambda backend: backend.set_password(SERVICE, slot, text))
        if await self.read(slot) != secret:
            raise KeyringUnavailable("the system's keyring does not keep what it is given")

    async def remove(self, slot: str) -> None:
        """Forget a secret."""
        await self._call(lambda backend: backend.delete_password(SERVICE, slot))

    def _usable(self) -> KeyringBackend:
        backend = self._backend()
        if not backend.priority >= _RECOMMENDED:
            raise KeyringUnavailable("this system has no keyring that keeps a secret")
        return backend

    async def _call(self, work: Callable[[KeyringBackend], _T]) -> _T:
        """Do it in a thread of its own, which nobody waits for at the end of the process.

        A keyring may ask the person, who is perhaps not there.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_T] = loop.create_future()

        def settle(value: _T | None, error: Exception | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(value)  # type: ignore[arg-type]

        def run() -> None:
            value, error = None, None
            try:
                value = work(self._usable())
            except KeyringUnavailable as unusable:
                error = unusable
            except Exception as failed:  # each keyring has errors of its own
                _log.info("the keyring failed: %s", type(failed).__name__)
                error = KeyringUnavailable("the system's keyring does not open")
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, value, error)

        threading.Thread(target=run, name="mana-keyring", daemon=True).start()
        try:
            async with asyncio.timeout(self._patience_s):
                return await done
        except TimeoutError:
            raise KeyringUnavailable("the system's keyring does not answer") from None


class Remembering:
    """Whether an account opens without its password on this device, as the person chooses."""

    def __init__(self, book: RecordBook, keyring: SystemKeyring) -> None:
        self._book = book
        self._keyring = keyring

    async def is_on(self) -> bool:
        """Say whether the account opens without its password here."""
        return await is_remembered(self._book.inner().replica)

    async def remember(self, on: bool) -> None:
        """Let the account open without its password here, or not; raise KeyringUnavailable."""
        inner = self._book.inner()
        if on:
            await remember(inner.replica, inner.vault, self._keyring)
        else:
            await forget(inner.replica, self._keyring)


async def is_remembered(replica: Replica) -> bool:
    """Say whether the account of a replica opens without its password here."""
    return await replica.read(lambda tx: tx.meta(REMEMBERED)) is not None


async def remember(replica: Replica, vault: OpenedVault, keyring: SystemKeyring) -> None:
    """Let the account open without its password here from now on; raise KeyringUnavailable."""
    await replica.write(lambda tx: tx.set_meta(REMEMBERED, None))
    await tidy(replica, keyring)
    slot, secret = os.urandom(_SLOT_BYTES).hex(), new_key()
    # Named before it is made, so that a crash leaves no secret that nobody removes.
    await replica.write(lambda tx: tx.set_meta(KEYRING_SLOT, slot))
    await keyring.write(slot, secret)
    sealed = seal_secret(secret, vault.master_key, "keyring", vault.account_id, slot)

    def work(tx: Tx) -> None:
        require_standing(tx, vault)
        tx.set_meta(REMEMBERED, f"{slot} {sealed}")

    await replica.write(work)


async def forget(replica: Replica, keyring: SystemKeyring) -> None:
    """Ask for the password again from now on. The replica's half goes first, and goes always."""
    await replica.write(lambda tx: tx.set_meta(REMEMBERED, None))
    with contextlib.suppress(KeyringUnavailable):
        await tidy(replica, keyring)


async def tidy(replica: Replica, keyring: SystemKeyring) -> None:
    """Remove a secret from the keyring that opens nothing any more; raise KeyringUnavailable."""
    slot, kept = await replica.read(lambda tx: (tx.meta(KEYRING_SLOT), tx.meta(REMEMBERED)))
    if slot is None or kept is not None:
        return
    if await keyring.read(slot) is not None:
        await keyring.remove(slot)

    def work(tx: Tx) -> None:
        if tx.meta(KEYRING_SLOT) == slot:
            tx.set_meta(KEYRING_SLOT, None)

    await replica.write(work)


async def remembered_secret(replica: Replica, keyring: SystemKeyring) -> bytes:
    """Return the keyring's half; raise NotRemembered and KeyringUnavailable."""
    kept = await replica.read(lambda tx: tx.meta(REMEMBERED))
    if kept is None:
        raise NotRemembered("this account opens with its password")
    secret = await keyring.read(kept.partition(" ")[0])
    if secret is None:
        raise NotRemembered("the system's keyring no longer holds the secret of this account")
    return secret


async def open_remembered(replica: Replica, wire: Vault, secret: bytes) -> OpenedVault:
    """Open the vault of a replica without its password, and so without its login key.

    Raises NotRemembered if the secret is not the one that belongs to it.
    """
    slot, _, sealed = (await replica.read(lambda tx: tx.meta(REMEMBERED)) or "").partition(" ")
    try:
        master_key = open_secret(secret, sealed, "keyring", wire.account_id, slot)
    except CryptoFailed:
        raise NotRemembered("the system's keyring holds another secret") from None
    return open_with_master(wire, master_key)
