"""A stop that is asked for while Mana starts is a stop, whatever it hit first."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mana.cli.commands import up
from mana.cli.places import Places
from mana.hub.postgres import PostgresStartFailed


@pytest.mark.parametrize("asked", [True, False])
def test_a_child_that_the_signal_ended_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    """A start that fails by the Ctrl-C that ended it says so; one that fails by itself fails."""

    @asynccontextmanager
    async def failing(*_: object, **__: object) -> AsyncIterator[None]:
        if asked:
            os.kill(os.getpid(), signal.SIGINT)
        raise PostgresStartFailed("initdb ended with status -2")
        yield

    said: list[str] = []
    monkeypatch.setattr(up, "started", failing)
    monkeypatch.setattr(up, "_say", said.append)
    places = Places(tmp_path, {"hub": 0, "runner": 0, "device": 0})
    if asked:
        asyncio.run(up._run(places))
        assert said == ["stopped"]
    else:
        with pytest.raises(PostgresStartFailed):
            asyncio.run(up._run(places))
        assert said == []
