"""One PostgreSQL server in one folder: start, attach, prove, stop, survive a crash.

Of N processes that want it at the same time, one starts it and the others attach. A server is
alive if it answers for its data folder; a process id in a file proves nothing. There is no TCP
port: the only way in is a socket in a folder with mode 0700, and that is why connections need no
password. Nothing that a statement carries reaches the server's log.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

from mana.hub.postgres import probe, processes
from mana.hub.postgres.binaries import Binaries, data_version, program_version
from mana.hub.postgres.errors import PostgresStartFailed, PostgresVersionMismatch
from mana.hub.postgres.identity import Identity, choose_identity

SUPERUSER: Final = "postgres"
SOCKET_NAME: Final = ".s.PGSQL.5432"
SOCKET_PATH_BYTES_MAX: Final = 107
LOG_BYTES_MAX: Final = 4 * 1024 * 1024
SOCKET_PARENTS: Final = ("/tmp", "/var/tmp")
POLL_S: Final = 0.02

# Values written by people may stand in statements, parameters and error texts: none is logged.
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "jit": "off",
    "timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_duration": "off",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_autovacuum_min_duration": "-1",
    "log_lock_waits": "off",
    "log_checkpoints": "off",
}


class Outcome(enum.Enum):
    """How `ensure` came by a live server."""

    STARTED = "started"
    ATTACHED = "attached"


def _silent(_line: str) -> None:
    return None


class Instance:
    """The server that lives in `base`: `data`, `log`, `lock`, and the place of its socket.

    `settings` overrides server settings (tests give up durability with it). `progress` is told
    one short line before each thing that takes time.
    """

    def __init__(
        self,
        binaries: Binaries,
        base: Path,
        *,
        settings: Mapping[str, str] | None = None,
        progress: Callable[[str], None] = _silent,
    ) -> None:
        self.binaries = binaries
        self.base = Path(os.path.realpath(base))
        self.data = self.base / "data"
        self._settings = {**SETTINGS, **(settings or {})}
        self._progress = progress
        self._identity: Identity | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def identity(self) -> Identity:
        """As whom the server runs."""
        if self._identity is None:
            self._identity = choose_identity(self.binaries, self.base, data=self.data)
        return self._identity

    @property
    def socket_dir(self) -> Path | None:
        """The folder of the socket that was recorded last, if it is still safe to use."""
        try:
            folder = Path((self.base / "socket").read_text().strip())
            state = folder.lstat()
        except OSError:
            return None
        private = stat.S_ISDIR(state.st_mode) and stat.S_IMODE(state.st_mode) == 0o700
        return folder if private and state.st_uid == self.identity.owner else None

    @property
    def pid(self) -> int | None:
        """The process id of the server on this data folder, if there is such a process."""
        pid = self._recorded_pid()
        return pid if pid is not None and processes.is_server_of(pid, self.data) else None

    def url(self, database: str = "postgres", *, user: str = SUPERUSER) -> str:
        """Return the address of one database, for a driver."""
        folder = self.socket_dir
        if folder is None:
            raise PostgresStartFailed("the server is not running")
        return f"postgresql://{quote(user)}@/{quote(database)}?host={quote(str(folder))}"

    def is_alive(self) -> bool:
        """Answer whether a server accepts connections and serves this data folder."""
        folder = self.socket_dir
        return folder is not None and probe.answers_for(folder / SOCKET_NAME, data=self.data)

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Start the server; fails if one runs already, use `ensure` to attach to it."""
        with self._locked():
            if self.is_alive():
                raise PostgresStartFailed("a server runs on this data folder already")
            self._start_until_ready(time.monotonic() + timeout_s)

    def ensure(self, *, timeout_s: float = 60.0) -> Outcome:
        """Attach to the live server or start one, whatever state a crash has left."""
        if self.base.is_dir() and self.is_alive():
            return Outcome.ATTACHED
        with self._locked():
            if self.is_alive():
                return Outcome.ATTACHED
            self._start_until_ready(time.monotonic() + timeout_s)
            return Outcome.STARTED

    def stop(self, *, timeout_s: float = 60.0) -> None:
        """Stop the server, whoever started it, and return when its process is gone.

        Open transactions are rolled back. A server that is not running is no error.
        """
        if not self.base.is_dir():
            return
        with self._locked():
            self._halt(time.monotonic() + timeout_s)
            folder = self.socket_dir
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            (self.base / "socket").unlink(missing_ok=True)

    # -- steps; the lock is held -------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # As root another identity must pass through; what is inside is closed by itself.
        self.base.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
        handle = os.open(self.base / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _initialise(self) -> None:
        version = data_version(self.data)
        if version is not None:
            programs = program_version(self.identity.binaries)
            if programs is not None and programs != version:
                raise PostgresVersionMismatch(
                    f"the data folder was made by PostgreSQL {version}, the programs are "
                    f"{programs}",
                    detail={"data": version, "programs": programs},
                )
            return
        identity = self.identity
        self._progress("Creating the database folder")
        draft = self.base / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        identity.give(draft)
        command = identity.command(
            "initdb",
            *("-D", str(draft), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale"),
            # Where durability is given up, the new folder need not be on disk either.
            *(["--no-sync"] if self._settings["fsync"] == "off" else []),
        )
        with self._log() as log:
            # In a session of its own: a Ctrl-C is for whoever asked, who then stops in order.
            status = identity.popen(command, log=log, new_session=True).wait()
        if status != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise PostgresStartFailed(f"initdb ended with status {status}")
        draft.rename(self.data)

    def _start_until_ready(self, deadline: float) -> None:
        self._initialise()
        self._progress("Starting PostgreSQL")
        pause = 0.1
        while True:
            if self._await_other(deadline):
                return
            # What lives now has lost its socket (a cleaned /tmp): nobody can reach it any more.
            self._halt(deadline)
            self._adopt_dead_pid()
            if self._attempt(deadline):
                return
            if time.monotonic() + pause > deadline:
                raise PostgresStartFailed("the server did not come up in time")
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def _await_other(self, deadline: float) -> bool:
        """Wait for a live server that recovers, stops or is busy; it is not ours to kill."""
        while self.pid is not None:
            folder = self.socket_dir
            starting = len(self._pid_file()) < 8
            if not starting and (folder is None or not (folder / SOCKET_NAME).exists()):
                return False
            if self.is_alive():
                return True
            self._reap()
            if time.monotonic() > deadline:
                raise PostgresStartFailed("a server runs on this data folder but does not answer")
            time.sleep(POLL_S)
        return False

    def _attempt(self, deadline: float) -> bool:
        """Start one process; False if it ended by itself and another try is worth it."""
        folder = self._make_socket_dir()
        command = self.identity.command("postgres", "-D", str(self.data), "-k", str(folder))
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        with self._log() as log:
            process = self.identity.popen(command, log=log, new_session=True)
        self._process = process
        while process.poll() is None:
            if self._is_ready(process.pid) and self.is_alive():
                return True
            if time.monotonic() > deadline:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                raise PostgresStartFailed("the server did not become ready in time")
            time.sleep(POLL_S)
        self._process = None
        return False

    def _is_ready(self, pid: int) -> bool:
        lines = self._pid_file()
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _halt(self, deadline: float) -> None:
        pid = self.pid
        if pid is None:
            self._reap()
            return
        self._progress("Stopping PostgreSQL")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        while self._reap() or (processes.is_server_of(pid, self.data)):
            if processes.is_zombie(pid):
                return
            if time.monotonic() > deadline:
                raise PostgresStartFailed("the server did not stop in time")
            time.sleep(POLL_S)

    def _reap(self) -> bool:
        """Collect our own child if it has ended; answer whether it still runs."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        return self._process is not None

    def _adopt_dead_pid(self) -> None:
        """Let a start succeed although the killed server is a zombie of some other process.

        PostgreSQL takes the id of a zombie for a live server. It ignores an id that is its own
        parent's, and then still checks the shared memory for surviving back ends; so the file
        is kept, and only the id in it becomes ours.
        """
        pid = self._recorded_pid()
        if pid is None or not processes.is_zombie(pid):
            return
        lines = self._pid_file()
        draft = self.data / "postmaster.pid.new"
        draft.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
        draft.chmod(0o600)
        self.identity.give(draft)
        draft.rename(self.data / "postmaster.pid")

    def _make_socket_dir(self) -> Path:
        folder = self.socket_dir
        if folder is not None:
            # The address stays; what a killed server left there would stop the next one, because
            # its lock file may name a zombie or a process id that was given away since.
            for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
                (folder / name).unlink(missing_ok=True)
            return folder
        for parent in dict.fromkeys((tempfile.gettempdir(), *SOCKET_PARENTS)):
            room = SOCKET_PATH_BYTES_MAX - len(os.fsencode(parent)) - len(SOCKET_NAME) - 2
            if room < 13 or not self._can_enter(Path(parent)):
                continue
            folder = Path(tempfile.mkdtemp(prefix="mana-", dir=parent))
            self.identity.give(folder)
            draft = self.base / "socket.new"
            draft.write_text(f"{folder}\n")
            draft.rename(self.base / "socket")
            return folder
        raise PostgresStartFailed("there is no folder for temporary files with a short path")

    def _can_enter(self, parent: Path) -> bool:
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            return False
        wrap = self.identity.wrap
        return self.identity.can([*wrap, "/bin/sh", "-c", 'cd "$1"', "sh", str(parent)])

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _recorded_pid(self) -> int | None:
        lines = self._pid_file()
        return int(lines[0]) if lines and re.fullmatch(r"[0-9]+", lines[0].strip()) else None

    @contextlib.contextmanager
    def _log(self) -> Iterator[int]:
        path = self.base / "log"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LOG_BYTES_MAX:
                path.rename(self.base / "log.1")
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            yield handle
        finally:
            os.close(handle)
