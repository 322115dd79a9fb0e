"""What a device process is told from outside, read once when it starts."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mana.crypto.passwords import FLOOR, KdfFloor
from mana.domain.errors import Invalid

PORT: Final = 5173
HUB_URL: Final = "http://127.0.0.1:3050"
NAME_MAX: Final = 80
AUTO_LOCK_MINUTES_MAX: Final = 7 * 24 * 60


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """Where this device keeps its data, where its hub is, and which model it may ask."""

    home: Path
    host: str = "127.0.0.1"
    port: int = PORT
    hub_url: str = HUB_URL
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What names the models: MANA_LLM_URL and its kin, and the keys that models.toml refers to."""
    kdf_floor: KdfFloor = FLOOR
    """The least cost of a password that this device accepts; only tests set less."""
    poll_s: float = 30.0
    """How often to pull although no notice came."""
    debounce_s: float = 0.05
    """How long a push waits for more changes."""
    watch_s: float = 0.5
    """How often to look whether another process of this machine wrote."""
    name: str = ""
    """What this device is called in the account's lists; the hub reads it."""
    auto_lock_minutes: int = 0
    """After how long without a person an account locks; 0: never, for nobody sits at a server."""

    @property
    def folder(self) -> Path:
        """The folder of the device's data."""
        return self.home / "device"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> DeviceSettings:
        """Return the settings of an environment; raise Invalid that names the variable."""
        home = environ.get("MANA_HOME", "").strip()
        return cls(
            home=Path(home).expanduser() if home else Path.home() / ".mana",
            host=environ.get("MANA_DEVICE_HOST", "").strip() or "127.0.0.1",
            port=_port(environ.get("MANA_DEVICE_PORT", "").strip()),
            hub_url=_url("MANA_HUB_URL", environ.get("MANA_HUB_URL", "").strip() or HUB_URL),
            environ=dict(environ),
            name=_name(environ.get("MANA_DEVICE_NAME", "").strip()),
            auto_lock_minutes=_minutes(environ.get("MANA_AUTO_LOCK_MINUTES", "").strip()),
        )


def _port(text: str) -> int:
    if not text:
        return PORT
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise Invalid("MANA_DEVICE_PORT is a number from 0 to 65535")
    return int(text)


def _name(text: str) -> str:
    """Return the device's name; the kind of system without one, for a host's name may tell more."""
    if len(text) > NAME_MAX:
        raise Invalid(f"MANA_DEVICE_NAME has at most {NAME_MAX} characters")
    return text or platform.system()


def _minutes(text: str) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) > AUTO_LOCK_MINUTES_MAX:
        raise Invalid(
            f"MANA_AUTO_LOCK_MINUTES is a number from 0 (never) to {AUTO_LOCK_MINUTES_MAX}"
        )
    return int(text)


def _url(name: str, text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise Invalid(f"{name} is an address such as http://127.0.0.1:3050")
    return text.rstrip("/")
