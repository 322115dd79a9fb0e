"""`mana up`: everything on one machine, for a newcomer and for a household server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

import typer

from mana.cli.instance import started
from mana.cli.places import Places
from mana.domain.errors import ManaError


def up() -> None:
    """Start PostgreSQL, hub, runner and device, and print the address of the page."""
    places = Places.from_env(os.environ)
    places.make_home()
    with places.alone():
        places.require_free_ports()
        asyncio.run(_run(places))


async def _run(places: Places) -> None:
    ending = Ending(asyncio.current_task())
    try:
        await _serve(places, ending)
    except (ManaError, asyncio.CancelledError):
        # Asked to stop while it started: what had started is stopped by now. A Ctrl-C may also
        # have ended a child that had no session of its own yet, and that is no failure then.
        if not await ending.heard():
            raise
    _say("stopped")


class Ending:
    """A wish to stop: while Mana starts it ends the start, later it ends the watch.

    Without it a SIGTERM in the middle of the start would leave PostgreSQL behind.
    """

    def __init__(self, start: asyncio.Task[object] | None) -> None:
        self.asked = False
        self._stop: Callable[[], object] | None = start.cancel if start else None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._ask)

    def by(self, stop: Callable[[], object]) -> None:
        """Let the next wish call `stop` from now on."""
        self._stop = stop

    async def heard(self) -> bool:
        """Say whether a stop was asked for, a signal that just came included."""
        with contextlib.suppress(asyncio.CancelledError):
            # The loop first reads its pipe, then calls the handler.
            for _ in range(3):
                await asyncio.sleep(0)
        return self.asked

    def _ask(self) -> None:
        # A second Ctrl-C of an impatient person does not break what the first one cleans up.
        self.asked = True
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()


async def _serve(places: Places, ending: Ending) -> None:
    async with started(places, os.environ, say=_say) as running:
        ending.by(running.supervisor.stop)
        typer.echo("")
        typer.echo(f"Open {running.device_url}")
        if running.demo_url:
            typer.echo(f"Demo {running.demo_url}  (signs in once)")
        typer.echo("Stop with Ctrl-C; your data stays in " + str(places.home))
        await running.supervisor.watch()
        typer.echo("")
        _say("stopping")


def _say(line: str) -> None:
    typer.echo(f"mana: {line}")
