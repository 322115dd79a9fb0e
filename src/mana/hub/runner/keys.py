"""The runner's own keys: made once, kept apart from the hub's, the public half left for it."""

from __future__ import annotations

import os
import secrets
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Final

from mana.crypto.rsa import RsaPrivateKey
from mana.crypto.runners import RunnerPrivateKey
from mana.crypto.wrapping import wrap_private_from_pem
from mana.domain.errors import Invalid
from mana.domain.ids import DeviceId
from mana.hub.runner.settings import RunnerSettings

PRIVATE_FILE: Final = "runner/runner.key"
PUBLIC_FILE: Final = "runner.pub"
SERVICE_FILE: Final = "service.key"


def load_runner_key(settings: RunnerSettings) -> RunnerPrivateKey:
    """Return the runner's key, made on first use; write the public bundle for the hub.

    `MANA_AI_PRIVATE_KEY_PEM` replaces the whole bundle, or its RSA pair where it holds an RSA
    key as the reference's does.
    """
    given = settings.private_key_pem
    if "RUNNER PRIVATE KEY" in given:
        key = RunnerPrivateKey.from_pem(given)
    else:
        path = settings.secrets_dir / PRIVATE_FILE
        if not path.exists():
            write_secret(path, RunnerPrivateKey.generate().to_pem(), keep=True)
        key = RunnerPrivateKey.from_pem(path.read_text(encoding="ascii"))
        if given:
            rsa_key = wrap_private_from_pem(given)
            if not isinstance(rsa_key, RsaPrivateKey):
                raise Invalid("MANA_AI_PRIVATE_KEY_PEM is a runner's bundle or an RSA key")
            key = replace(key, rsa_key=rsa_key)
    write_secret(settings.secrets_dir / PUBLIC_FILE, key.public().to_pem())
    return key


def load_service_key(settings: RunnerSettings) -> str:
    """Return the key that `/internal/tick` asks for; it has no default, one is drawn once."""
    if settings.service_key:
        return settings.service_key
    path = settings.secrets_dir / SERVICE_FILE
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(32), keep=True)
    return path.read_text(encoding="ascii").strip()


def runner_device_id(key_id: str) -> DeviceId:
    """Return the device id in the stamps of a runner: the first half of its key id."""
    return DeviceId(str(uuid.UUID(hex=key_id[:32])))


def write_secret(path: Path, text: str, *, keep: bool = False) -> None:
    """Write a file of mode 0600 at once or not at all. `keep`: the first writer wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if keep:
            # A hard link fails if the name is taken, which a rename does not.
            try:
                os.link(draft, path)
            except FileExistsError:
                return
        else:
            os.replace(draft, path)  # noqa: PTH105 - draft and path share the folder
    finally:
        draft.unlink(missing_ok=True)
