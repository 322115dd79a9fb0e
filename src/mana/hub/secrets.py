"""The hub's own secrets: made once, whole, in a file that only this account can read.

A secret that is lost loses data (KEK) or sessions; one that is made twice by two processes
that start together would do the same. So the file appears complete or not at all, and the
first writer wins. The public halves stand beside it for the runner, which needs no more.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from mana.crypto.errors import Malformed
from mana.crypto.primitives import KEY_BYTES, b64, require_key, unb64
from mana.crypto.signatures import SigningKey, VerifyKey
from mana.domain.encoding import sha256
from mana.domain.errors import Unavailable

PRIVATE_FILE: Final = "hub.key"
PUBLIC_FILE: Final = "hub.pub"


class SecretsUnusable(Unavailable):
    """The file with the hub's secrets is there and cannot be used."""

    code = "SECRETS_UNUSABLE"
    advice = "Restore the folder `secrets` from a backup; a new one could open nothing."


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    kek: str
    token_key: str
    grant_key: str
    salt: str


class HubPublicKeys(msgspec.Struct, frozen=True, rename="camel"):
    """The public halves (base64): whose tokens and countersignatures to believe."""

    token_key: str
    grant_key: str


@dataclass(frozen=True, slots=True)
class HubSecrets:
    """What the hub must never lose or show.

    `kek` wraps the master keys of accounts in standard mode; `salt` invents the answers for
    logins that do not exist.
    """

    kek: bytes = field(repr=False)
    token_key: SigningKey = field(repr=False)
    grant_key: SigningKey = field(repr=False)
    salt: bytes = field(repr=False)

    @property
    def kek_id(self) -> str:
        """Return the name of the KEK, so that a hub can hold two."""
        return "kek-" + sha256(b"mana-kek-id:v1" + self.kek).hex()[:16]

    def public(self) -> HubPublicKeys:
        """Return the public halves."""
        return HubPublicKeys(
            token_key=b64(self.token_key.public().to_bytes()),
            grant_key=b64(self.grant_key.public().to_bytes()),
        )


def load_or_create(folder: Path) -> HubSecrets:
    """Return the secrets of a folder, made on first use."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = folder / PRIVATE_FILE
    if not private.exists():
        _write_once(private, _new_secrets())
    try:
        stored = msgspec.json.decode(private.read_bytes(), type=_Stored)
        if stored.version != 1:
            raise SecretsUnusable("the hub's secrets are of another version")
        found = HubSecrets(
            kek=require_key(unb64(stored.kek)),
            token_key=SigningKey(unb64(stored.token_key)),
            grant_key=SigningKey(unb64(stored.grant_key)),
            salt=require_key(unb64(stored.salt)),
        )
    except (OSError, msgspec.MsgspecError, Malformed):
        raise SecretsUnusable("the hub's secrets cannot be read") from None
    _write_once(folder / PUBLIC_FILE, msgspec.json.encode(found.public()))
    return found


def load_public_keys(folder: Path) -> tuple[VerifyKey, VerifyKey]:
    """Return the keys for tokens and for countersignatures, as a hub has left them."""
    try:
        raw = (folder / PUBLIC_FILE).read_bytes()
        stored = msgspec.json.decode(raw, type=HubPublicKeys)
        return VerifyKey(unb64(stored.token_key)), VerifyKey(unb64(stored.grant_key))
    except (OSError, msgspec.MsgspecError, Malformed):
        raise SecretsUnusable("the hub's public keys cannot be read") from None


def _new_secrets() -> bytes:
    def drawn() -> str:
        return b64(os.urandom(KEY_BYTES))

    return msgspec.json.encode(
        _Stored(version=1, kek=drawn(), token_key=drawn(), grant_key=drawn(), salt=drawn())
    )


def _write_once(path: Path, content: bytes) -> None:
    """Write a whole file of mode 0600; leave one that is there already."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A hard link fails if the name is taken, which a rename does not.
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)
