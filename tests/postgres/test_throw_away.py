"""The server of the tests leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mana.hub.postgres import processes
from mana.testing.postgres import throw_away_cluster

pytestmark = pytest.mark.postgres

CHILD = """
import sys
from mana.testing.postgres import throw_away_cluster
with throw_away_cluster() as cluster:
    print(cluster.instance.pid, cluster.instance.data, cluster.instance.socket_dir, flush=True)
    sys.stdin.read()
"""


def test_end() -> None:
    """After use neither a process nor a folder is left."""
    with throw_away_cluster() as cluster:
        instance, folder = cluster.instance, cluster.instance.socket_dir
        assert instance.is_alive()
    assert instance.pid is None
    assert folder is not None
    assert not folder.exists()
    assert not instance.base.parent.exists()


def test_killed_tests() -> None:
    """If the tests are killed with -9, the server stops and its folders go."""
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as child:
        assert child.stdout is not None
        pid, data, socket_dir = child.stdout.readline().split()
        assert processes.is_server_of(int(pid), Path(data))
        child.kill()
    while Path(data).exists() or Path(socket_dir).exists():
        time.sleep(0.05)
    assert not processes.is_server_of(int(pid), Path(data))
