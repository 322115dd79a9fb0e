"""Commands as forks of a process that has loaded them: one to themselves each, without the start.

What a start costs is the loading of code, which every command would repeat. A fork has the same
code, its own memory, and nothing of the commands before it; the parent opens no device.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mana.cli import opening
from mana.cli.main import COMMANDS, app

SERVERS: Final = frozenset({"demo", "device", "runner", "up"})
LOADED: Final = (
    "mana.device.app",
    "mana.device.keyring",
    "mana.device.replica",
    *(f"mana.cli.commands.{file}" for file, _ in COMMANDS.values() if file not in SERVERS),
)
PATIENCE_S: Final = 100.0


def run_forked(
    arguments: Sequence[str], environ: Mapping[str, str], *, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `mana` with these arguments and nothing but this environment, and wait for its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(dict.fromkeys(LOADED)))
    with tempfile.TemporaryDirectory() as folder:
        given, out, err = (Path(folder, name) for name in ("in", "out", "err"))
        given.write_text(stdin)
        streams = [str(given), str(out), str(err)]
        process = context.Process(target=_command, args=(arguments, dict(environ), streams))
        process.start()
        process.join(PATIENCE_S)
        if process.exitcode is None:
            process.kill()
            process.join()
        said = (out.read_text(), err.read_text())
        status = process.exitcode
        process.close()
    assert status is not None
    return subprocess.CompletedProcess(arguments, status, *said)


def _command(arguments: Sequence[str], environ: Mapping[str, str], streams: Sequence[str]) -> Any:
    """Be the process of one command."""
    for number, (path, flags) in enumerate(
        zip(streams, (os.O_RDONLY, *(2 * [os.O_WRONLY | os.O_CREAT])), strict=True)
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environ)
    warnings.simplefilter("error")
    # How long a person waits for a slow hub is not what these tests are about: what they then
    # read must be there.
    opening.PULL_S_MAX = opening.PUSH_S_MAX = PATIENCE_S  # type: ignore[misc]
    sys.argv = ["mana", *arguments]
    try:
        app()
    finally:
        # What nobody closed is told on standard error, as at the end of a process.
        gc.collect()
