"""As whom PostgreSQL runs: it refuses root, and must reach its programs and its data.

Whether an identity can is tried, not computed: a process is started under it, so that access
lists, mounts and missing capabilities count as they do later. No folder of a person changes its
mode.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mana.hub.postgres.binaries import Binaries
from mana.hub.postgres.errors import PostgresFolderUnreachable

_TRY_S_MAX = 20


class _Detached(subprocess.Popen[bytes]):
    """A process that may outlive this one: leaving it running is no leak to warn of."""

    def __del__(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Identity:
    """An owner for the files and a way to start a program as that owner.

    `uid` is None where nothing has to change. `wrap` is put before the command: it drops root
    in a way that a plain change of user cannot (a user namespace, or a kept capability).
    """

    binaries: Binaries
    uid: int | None = None
    gid: int | None = None
    wrap: tuple[str, ...] = ()

    @property
    def owner(self) -> int:
        """The user id that owns the files which this identity makes."""
        return os.geteuid() if self.uid is None else self.uid

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return the full command line of one PostgreSQL program."""
        return [*self.wrap, str(self.binaries.program(program)), *arguments]

    def popen(
        self, command: Sequence[str], *, log: int, new_session: bool
    ) -> subprocess.Popen[bytes]:
        """Start a command under this identity, with nothing of our environment."""
        switch = self.uid is not None and not self.wrap
        return _Detached(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=clean_environment(),
            start_new_session=new_session,
            user=self.uid if switch else None,
            group=self.gid if switch else None,
            extra_groups=[] if switch else None,
        )

    def can(self, command: Sequence[str]) -> bool:
        """Answer whether a command succeeds under this identity."""
        try:
            process = self.popen(command, log=subprocess.DEVNULL, new_session=False)
        except (OSError, subprocess.SubprocessError):
            return False
        try:
            return process.wait(_TRY_S_MAX) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False

    def give(self, path: Path) -> None:
        """Make this identity the owner of a file or folder that we made."""
        if self.uid is not None:
            os.chown(path, self.uid, -1 if self.gid is None else self.gid)


def clean_environment() -> dict[str, str]:
    """Return what PostgreSQL may know of us: no settings, no secrets."""
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    return {"PATH": "/usr/bin:/bin", **kept, "LC_ALL": "C", "TZ": "UTC"}


def choose_identity(binaries: Binaries, base: Path, *, data: Path) -> Identity:
    """Return the identity under which a server on `data` can run.

    An ordinary user is itself. For root the owner of an existing data folder decides; otherwise
    the first that can run the programs and reach the folder: `nobody`, root's own files from
    within a user namespace, `nobody` with a readable copy of the programs, `nobody` with the
    one capability to pass closed folders.
    """
    if os.geteuid() != 0:
        return Identity(binaries)
    try:
        owner: int | None = data.stat().st_uid
    except FileNotFoundError:
        owner = None
    if owner == 0:
        inside = Identity(binaries, wrap=_namespace())
        if inside.wrap and _works(inside, base, data):
            return inside
        raise PostgresFolderUnreachable(
            "the data folder belongs to root, and this machine allows no user namespace"
        )
    uid, gid = _account(owner)
    plain = Identity(binaries, uid, gid)
    if _works(plain, base, data):
        return plain
    if owner is None:
        inside = Identity(binaries, wrap=_namespace())
        if inside.wrap and _works(inside, base, data):
            return inside
    if _reaches(plain, base, data):
        copied = replace(plain, binaries=readable_copy(binaries))
        if _works(copied, base, data):
            return copied
    wrap = _capability(uid, gid)
    if wrap and _reaches(Identity(binaries, uid, gid, wrap), base, data):
        # PostgreSQL asks access(2) about its programs, which knows no capability.
        passing = Identity(binaries, uid, gid, wrap)
        if not _works(passing, base, data):
            passing = replace(passing, binaries=readable_copy(binaries))
        if _works(passing, base, data):
            return passing
    raise PostgresFolderUnreachable("no identity other than root can reach the data folder")


def readable_copy(binaries: Binaries) -> Binaries:
    """Return the programs as a copy that every account may read, made once per version."""
    stamp = int(binaries.program("postgres").stat().st_mtime)
    mark = f"{binaries.folder.parent.parent.name}-{stamp}"
    for parent in (Path("/var/lib/mana"), Path("/var/tmp/mana-postgres")):
        try:
            return binaries.moved(_copied(binaries, parent, mark))
        except OSError:
            continue
    raise PostgresFolderUnreachable("there is no readable folder for a copy of the programs")


def _copied(binaries: Binaries, parent: Path, mark: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    # Only root may have put programs there that we are about to start.
    state = parent.lstat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o022 or parent.is_symlink():
        raise PermissionError(f"{parent} can be written by others")
    target = parent / mark
    if target.is_dir():
        return target
    draft = Path(tempfile.mkdtemp(prefix="copy-", dir=parent))
    try:
        for part in binaries.parts:
            shutil.copytree(binaries.root / part, draft / part, symlinks=True)
        for folder, _, files in os.walk(draft):
            Path(folder).chmod(0o755)
            for name in files:
                path = Path(folder) / name
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _works(identity: Identity, base: Path, data: Path) -> bool:
    # This loads the libraries and looks for every file that a first start needs.
    probe = identity.command("initdb", "--show", "-D", "/nonexistent")
    return identity.can(probe) and _reaches(identity, base, data)


def _reaches(identity: Identity, base: Path, data: Path) -> bool:
    """Answer whether the identity can enter the nearest folder that exists already."""
    place = data if data.exists() else base
    while not place.exists():
        place = place.parent
    return identity.can([*identity.wrap, "/bin/sh", "-c", 'cd "$1"', "sh", os.fspath(place)])


def _account(owner: int | None) -> tuple[int, int]:
    try:
        entry = pwd.getpwnam("nobody") if owner is None else pwd.getpwuid(owner)
    except KeyError:
        fallback = 65534 if owner is None else owner
        return fallback, fallback
    return entry.pw_uid, entry.pw_gid


def _namespace() -> tuple[str, ...]:
    program = shutil.which("unshare")
    return (program, "-U", "--") if program else ()


def _capability(uid: int, gid: int) -> tuple[str, ...]:
    program = shutil.which("setpriv")
    if program is None:
        return ()
    return (
        program,
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        "--",
    )
