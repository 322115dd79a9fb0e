"""The hub's own secrets: made once, whole, in a file that only this account can read.

A secret that is lost loses data (KEK) or sessions; one that is made twice by two processes
that start together would do the same. So the file appears complete or not at all, and the
first writer wins. The public halves stand beside it for the runner, which needs no more.

The KEK can be changed: the new one is put before the old, every wrap is made anew, and then the
old one is destroyed. Whoever wraps or unwraps reads the file, so that a running hub follows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from mana.crypto.errors import Malformed, WrapRejected
from mana.crypto.keys import new_key, unwrap_master_key, wrap_master_key
from mana.crypto.primitives import KEY_BYTES, b64, require_key, unb64
from mana.crypto.signatures import SigningKey, VerifyKey
from mana.domain.encoding import sha256
from mana.domain.errors import Conflict, Unavailable

PRIVATE_FILE: Final = "hub.key"
PUBLIC_FILE: Final = "hub.pub"
VERSION: Final = 2


class SecretsUnusable(Unavailable):
    """The file with the hub's secrets is there and cannot be used."""

    code = "SECRETS_UNUSABLE"
    advice = "Restore the folder `secrets` from a backup; a new one could open nothing."


class KekRotationRunning(Conflict):
    """Another process changes the hub's KEK at this moment."""

    code = "KEK_ROTATION_RUNNING"
    advice = "Wait until it is done."


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The file. Version 1 had one `kek`; from version 2 on `keks`, newest first."""

    version: int
    token_key: str
    grant_key: str
    salt: str
    kek: str | None = None
    keks: tuple[str, ...] = ()


class HubPublicKeys(msgspec.Struct, frozen=True, rename="camel"):
    """The public halves (base64): whose tokens and countersignatures to believe."""

    token_key: str
    grant_key: str


@dataclass(frozen=True, slots=True)
class HubSecrets:
    """What the hub must never lose or show.

    `keks` wrap the master keys of accounts in standard mode: the first one in force, the others
    until nothing names them. `salt` invents the answers for logins that do not exist.
    """

    keks: tuple[bytes, ...] = field(repr=False)
    token_key: SigningKey = field(repr=False)
    grant_key: SigningKey = field(repr=False)
    salt: bytes = field(repr=False)

    @property
    def kek(self) -> bytes:
        """Return the KEK in force."""
        return self.keks[0]

    @property
    def kek_id(self) -> str:
        """Return the name of the KEK in force, by which a wrap names it."""
        return kek_id_of(self.kek)

    def public(self) -> HubPublicKeys:
        """Return the public halves."""
        return HubPublicKeys(
            token_key=b64(self.token_key.public().to_bytes()),
            grant_key=b64(self.grant_key.public().to_bytes()),
        )


def kek_id_of(kek: bytes) -> str:
    """Return the name of a KEK; docs/protocol/crypto.md, 3."""
    return "kek-" + sha256(b"mana-kek-id:v1" + kek).hex()[:16]


@dataclass(frozen=True, slots=True)
class KekWrap:
    """A master key under the hub's KEK, and the name of that KEK."""

    wrapped: str = field(repr=False)
    kek_id: str


@dataclass(frozen=True, slots=True)
class KekRing:
    """Wraps under the KEK that is in force at that moment, and opens what any known one wrapped.

    `read` returns the secrets as they stand: each use asks anew, because another process may
    have changed the KEK since.
    """

    read: Callable[[], HubSecrets]

    def wrap(self, master_key: bytes, account_id: str) -> KekWrap:
        """Wrap a master key. The caller holds the database's lock on the KEK until it commits."""
        now = self.read()
        wrapped = wrap_master_key(master_key, now.kek, "kek", account_id, now.kek_id)
        return KekWrap(wrapped, now.kek_id)

    def unwrap(self, wrapped: str, kek_id: str | None, account_id: str) -> bytes:
        """Return a master key; raise SecretsUnusable if no KEK of this hub opens it.

        `kek_id` None: wrapped before wraps had names, by the first KEK that this hub had.
        """
        keks = {kek_id_of(kek): kek for kek in reversed(self.read().keks)}
        for name in keks if kek_id is None else [kek_id]:
            if name not in keks:
                continue
            with contextlib.suppress(WrapRejected, Malformed):
                return unwrap_master_key(wrapped, keks[name], "kek", account_id, name)
        raise SecretsUnusable("no KEK of this hub opens what it keeps of an account")


def load_or_create(folder: Path) -> HubSecrets:
    """Return the secrets of a folder, made on first use."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = folder / PRIVATE_FILE
    if not private.exists():
        _write_once(private, _encoded(_new_secrets()))
    found = load(folder)
    _write_once(folder / PUBLIC_FILE, msgspec.json.encode(found.public()))
    return found


def load(folder: Path) -> HubSecrets:
    """Return the secrets of a folder as they stand; raise SecretsUnusable without any."""
    try:
        raw = (folder / PRIVATE_FILE).read_bytes()
        if not raw.strip(b"\0"):
            # Opened just before it was replaced and overwritten; the new file is there by now.
            raw = (folder / PRIVATE_FILE).read_bytes()
        stored = msgspec.json.decode(raw, type=_Stored)
        keks = stored.keks if stored.kek is None else (stored.kek,)
        if not keks or stored.version != (VERSION if stored.kek is None else 1):
            raise SecretsUnusable("the hub's secrets are of another version")
        return HubSecrets(
            keks=tuple(require_key(unb64(kek)) for kek in keks),
            token_key=SigningKey(unb64(stored.token_key)),
            grant_key=SigningKey(unb64(stored.grant_key)),
            salt=require_key(unb64(stored.salt)),
        )
    except (OSError, msgspec.MsgspecError, Malformed):
        raise SecretsUnusable("the hub's secrets cannot be read") from None


@contextlib.contextmanager
def rotating(folder: Path) -> Iterator[None]:
    """Be the only process that changes the KEK; raise KekRotationRunning if another one does."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KekRotationRunning("the KEK of this hub is being changed") from None
        # What a change left that was killed while it wrote.
        for draft in folder.glob(f".{PRIVATE_FILE}.*"):
            _wipe(draft)
        yield
    finally:
        os.close(handle)


def draw_kek(folder: Path) -> HubSecrets:
    """Put a new KEK before the one in force, unless an earlier change was not finished."""
    found = load(folder)
    if len(found.keks) == 1:
        _store(folder, (new_key(), *found.keks))
    return load(folder)


def destroy_old_keks(folder: Path) -> None:
    """Keep the KEK in force alone, and overwrite the file that held the others."""
    found = load(folder)
    if len(found.keks) > 1:
        old = os.open(folder / PRIVATE_FILE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            _store(folder, found.keks[:1])
            _overwrite(old)
        finally:
            os.close(old)


def load_public_keys(folder: Path) -> tuple[VerifyKey, VerifyKey]:
    """Return the keys for tokens and for countersignatures, as a hub has left them."""
    try:
        raw = (folder / PUBLIC_FILE).read_bytes()
        stored = msgspec.json.decode(raw, type=HubPublicKeys)
        return VerifyKey(unb64(stored.token_key)), VerifyKey(unb64(stored.grant_key))
    except (OSError, msgspec.MsgspecError, Malformed):
        raise SecretsUnusable("the hub's public keys cannot be read") from None


def _new_secrets() -> HubSecrets:
    return HubSecrets(
        keks=(new_key(),),
        token_key=SigningKey(os.urandom(KEY_BYTES)),
        grant_key=SigningKey(os.urandom(KEY_BYTES)),
        salt=os.urandom(KEY_BYTES),
    )


def _encoded(held: HubSecrets) -> bytes:
    return msgspec.json.encode(
        _Stored(
            version=VERSION,
            token_key=b64(held.token_key.to_bytes()),
            grant_key=b64(held.grant_key.to_bytes()),
            salt=b64(held.salt),
            keks=tuple(b64(kek) for kek in held.keks),
        )
    )


def _store(folder: Path, keks: tuple[bytes, ...]) -> None:
    """Replace the KEKs of the file, whole or not at all, also if the machine stops."""
    private = folder / PRIVATE_FILE
    draft = _draft(private, _encoded(replace(load(folder), keks=keks)))
    # The hub reads it on, also where another user, as root, changes it.
    owner = private.stat()
    os.chown(draft, owner.st_uid, owner.st_gid)
    draft.replace(private)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_once(path: Path, content: bytes) -> None:
    """Write a whole file of mode 0600; leave one that is there already."""
    if path.exists():
        return
    draft = _draft(path, content)
    try:
        # A hard link fails if the name is taken, which a rename does not.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _draft(path: Path, content: bytes) -> Path:
    """Write content to a file beside a path, to the disk; return where."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft


def _wipe(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # One that was linked to its place before the kill is the file that stands.
            if os.fstat(handle).st_nlink == 1:
                _overwrite(handle)
        finally:
            os.close(handle)
        path.unlink()


def _overwrite(handle: int) -> None:
    os.pwrite(handle, bytes(os.fstat(handle).st_size), 0)
    os.fsync(handle)
