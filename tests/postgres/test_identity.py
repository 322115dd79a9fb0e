"""As whom the server runs: as root never as root, and in closed folders too."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mana.hub.postgres import (
    Binaries,
    Identity,
    Instance,
    Outcome,
    PostgresFolderUnreachable,
    choose_identity,
    find_binaries,
)
from mana.hub.postgres import identity as identity_module

pytestmark = pytest.mark.postgres

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to see how root is avoided")

CHILD = """
import os, sys
from pathlib import Path
from mana.hub.postgres import Instance, find_binaries
instance = Instance(find_binaries({"MANA_POSTGRES_BIN": sys.argv[2]}), Path(sys.argv[1]))
assert instance.identity.uid is None and instance.identity.wrap == ()
print(instance.ensure().value, instance.ensure().value, instance.data.stat().st_uid)
instance.stop()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="mana-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def copied(folder: Path) -> Binaries:
    """Copy the programs as a clone with its virtual environment would hold them."""
    found = find_binaries(os.environ)
    for part in found.parts:
        shutil.copytree(found.root / part, folder / part, symlinks=True)
    return found.moved(folder)


def without(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    """Take tools of the system away."""
    which = shutil.which

    def found(name: str) -> str | None:
        return None if name in programs else which(name)

    monkeypatch.setattr("mana.hub.postgres.identity.shutil.which", found)


def copies_below(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let readable copies of the programs be made in the test's own folder."""
    real = identity_module._copied
    copies = folder / "copies"
    monkeypatch.setattr(
        identity_module, "_copied", lambda binaries, _parent, mark: real(binaries, copies, mark)
    )
    return copies


def lives(instance: Instance) -> None:
    try:
        assert instance.ensure() is Outcome.STARTED
        assert instance.ensure() is Outcome.ATTACHED
        instance.stop()
        again = Instance(instance.binaries, instance.base)
        assert again.ensure() is Outcome.STARTED
    finally:
        instance.stop()


@as_root
def test_open_folder(folder: Path) -> None:
    """Where everybody may enter, root starts the server as `nobody`."""
    binaries = copied(folder / "bin")
    instance = Instance(binaries, folder / "postgres")
    assert instance.identity.uid == pwd.getpwnam("nobody").pw_uid
    assert instance.identity.wrap == ()
    lives(instance)
    assert (folder / "postgres").stat().st_uid == 0


@as_root
def test_closed_clone(folder: Path) -> None:
    """A clone below a folder of mode 0700 works as root, and no mode of it changes."""
    closed = folder / "home"
    closed.mkdir(mode=0o700)
    binaries = copied(closed / "clone")
    lives(Instance(binaries, closed / "data" / "postgres"))
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_closed_clone_open_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where name spaces are not allowed, closed programs are copied to a readable folder."""
    without(monkeypatch, "unshare", "setpriv")
    copies = copies_below(folder, monkeypatch)
    closed = folder / "home"
    closed.mkdir(mode=0o700)
    instance = Instance(copied(closed / "clone"), folder / "postgres")
    assert instance.identity.binaries.folder.is_relative_to(copies)
    lives(instance)
    assert not list(copies.glob("copy-*"))


@as_root
def test_closed_data_without_name_spaces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that allows no name space, a closed data folder is still reached."""
    without(monkeypatch, "unshare")
    copies_below(folder, monkeypatch)
    closed = folder / "home"
    closed.mkdir(mode=0o700)
    instance = Instance(copied(closed / "clone"), closed / "postgres")
    assert instance.identity.wrap[0].endswith("setpriv")
    lives(instance)
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_nothing_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no way is left, the error has a code and says what to do."""
    without(monkeypatch, "unshare", "setpriv")
    closed = folder / "home"
    closed.mkdir(mode=0o700)
    with pytest.raises(PostgresFolderUnreachable) as caught:
        Instance(find_binaries(os.environ), closed / "postgres").ensure()
    assert "MANA_HOME" in caught.value.advice


@as_root
@pytest.mark.parametrize("owner", ["nobody", "root", "daemon"])
def test_owner_decides(folder: Path, owner: str) -> None:
    """An existing data folder is served as its owner, whoever that is."""
    entry = pwd.getpwnam(owner)
    data = folder / "postgres" / "data"
    data.mkdir(parents=True, mode=0o700)
    os.chown(data, entry.pw_uid, entry.pw_gid)
    chosen = choose_identity(find_binaries(os.environ), folder / "postgres", data=data)
    if owner == "root":
        assert chosen.uid is None
        assert chosen.wrap[0].endswith("unshare")
    else:
        assert (chosen.uid, chosen.gid) == (entry.pw_uid, entry.pw_gid)


@as_root
def test_copy_folder_of_others(folder: Path) -> None:
    """Programs are never taken from a folder that others can write to."""
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(PermissionError):
        identity_module._copied(find_binaries(os.environ), shared, "mark")


def test_ordinary_user(folder: Path) -> None:
    """An ordinary user runs the server as itself, in a closed folder of its own."""
    found = find_binaries(os.environ)
    home = folder / "home"
    home.mkdir(mode=0o700)
    command = [sys.executable]
    if os.geteuid() == 0:
        entry = pwd.getpwnam("daemon")
        os.chown(home, entry.pw_uid, entry.pw_gid)
        python = shutil.which("python3", path="/usr/bin")
        readable = python is not None and Identity(found, entry.pw_uid, entry.pw_gid).can(
            [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        )
        if not readable:
            pytest.skip("another account can start no Python here")
        source = folder / "src"
        shutil.copytree(Path(identity_module.__file__).parents[2], source / "mana")
        command = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}"]
        command += ["--clear-groups", str(python)]
        paths = str(source)
        found = copied(folder / "bin")
    else:
        paths = os.pathsep.join(path for path in sys.path if path)
    result = subprocess.run(
        [*command, "-c", CHILD, str(home / "postgres"), str(found.folder)],
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["started", "attached", str(home.stat().st_uid)]
