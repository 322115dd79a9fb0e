"""Where a Mana on this machine keeps its data, and which addresses it takes.

Read once, by the command that starts something; nothing else in the command line reads the
environment.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mana.domain.errors import Conflict, Invalid

PORTS: Final[Mapping[str, tuple[str, int]]] = {
    "hub": ("MANA_HUB_PORT", 3050),
    "runner": ("MANA_RUNNER_PORT", 3067),
    "device": ("MANA_DEVICE_PORT", 5173),
}

HUB_ADDRESS: Final = "hub.address"
"""In the data folder, while `mana up` runs on it: its process id and the address of its hub."""
EVERY_ADDRESS: Final = ("", "0.0.0.0", "::")  # noqa: S104
"""What MANA_HUB_HOST may say instead of one address; loopback is among them."""


class PortTaken(Invalid):
    """Another program listens where a part of Mana would."""

    code = "PORT_TAKEN"


class AlreadyRunning(Conflict):
    """A Mana runs on this data folder already."""

    code = "ALREADY_RUNNING"
    advice = "Use the one that runs, stop it first, or set MANA_HOME to another folder."


@dataclass(frozen=True, slots=True)
class Places:
    """The data folder and the ports; 0 lets the system choose."""

    home: Path
    ports: Mapping[str, int]

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Places:
        """Read MANA_HOME and the ports; raise Invalid naming the variable that is wrong."""
        ports: dict[str, int] = {}
        for part, (name, default) in PORTS.items():
            text = environ.get(name, "").strip()
            if text and not (text.isascii() and text.isdigit() and int(text) <= 65_535):
                raise Invalid(f"{name} is a port number from 0 to 65535")
            ports[part] = int(text) if text else default
        return cls(home_of(environ), ports)

    def make_home(self) -> None:
        """Create the data folder for its owner alone; an existing one keeps its mode."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.home / "logs").mkdir(exist_ok=True, mode=0o700)

    def hub_url(self, environ: Mapping[str, str]) -> str:
        """Return the address at which this machine's devices find their hub, and links name it.

        MANA_HUB_URL, else the hub that `mana up` runs with these variables, or, where they name
        no port, the one that it runs on this data folder.
        """
        named = environ.get("MANA_HUB_URL", "").strip()
        if named:
            return named
        host = environ.get("MANA_HUB_HOST", "").strip()
        port = self.ports["hub"]
        is_chosen = bool(environ.get(PORTS["hub"][0], "").strip()) and port != 0
        running = "" if is_chosen else self._running_hub()
        here = "127.0.0.1" if host in EVERY_ADDRESS else host
        return running or f"http://{here}:{port or PORTS['hub'][1]}"

    @contextmanager
    def telling_hub(self, url: str) -> Iterator[None]:
        """Let the other commands on this data folder find the hub at an address, meanwhile."""
        path = self.home / HUB_ADDRESS
        fresh = path.with_suffix(".new")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as written:
            written.write(f"{os.getpid()} {url}\n")
        fresh.replace(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def _running_hub(self) -> str:
        """Return the address that `mana up` wrote; empty where none runs that did."""
        try:
            process, url = (self.home / HUB_ADDRESS).read_text("utf-8").split()
        except (OSError, ValueError):
            return ""
        try:
            # What a killed start left behind says nothing: its port may be another's by now.
            os.kill(int(process), 0)
        except PermissionError:
            # The process is there, and another person's: a service of the machine.
            return url
        except (OSError, ValueError, OverflowError):
            return ""
        return url

    def require_free_ports(self) -> None:
        """Raise PortTaken, naming the variable, before anything starts."""
        taken: dict[int, str] = {}
        for part, port in self.ports.items():
            name = PORTS[part][0]
            if port and port in taken:
                raise PortTaken(f"{name} and {taken[port]} are both {port}")
            taken[port] = name
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise PortTaken(f"port {port} is taken; set {name} to a free one") from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold this data folder; raise AlreadyRunning if another start holds it."""
        handle = os.open(self.home / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AlreadyRunning(f"another mana runs on {self.home}") from error
            yield
        finally:
            os.close(handle)


def home_of(environ: Mapping[str, str]) -> Path:
    """Return the data folder: MANA_HOME, else `mana` in the person's data folder."""
    named = environ.get("MANA_HOME", "").strip()
    if named:
        return Path(named).expanduser().absolute()
    data = environ.get("XDG_DATA_HOME", "").strip()
    return (Path(data) if data else Path("~/.local/share").expanduser()) / "mana"
