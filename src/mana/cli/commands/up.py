"""`mana up`: everything on one machine, for a newcomer and for a household server."""

from __future__ import annotations

import asyncio
import os
import signal

import typer

from mana.cli.instance import started
from mana.cli.places import Places


def up() -> None:
    """Start PostgreSQL, hub, runner and device, and print the address of the page."""
    places = Places.from_env(os.environ)
    places.make_home()
    with places.alone():
        places.require_free_ports()
        asyncio.run(_run(places))


async def _run(places: Places) -> None:
    async with started(places, os.environ, say=_say) as running:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, running.supervisor.stop)
        typer.echo("")
        typer.echo(f"Open {running.device_url}")
        if running.demo_url:
            typer.echo(f"Demo {running.demo_url}  (signs in once)")
        typer.echo("Stop with Ctrl-C; your data stays in " + str(places.home))
        await running.supervisor.watch()
        typer.echo("")
        _say("stopping")
    _say("stopped")


def _say(line: str) -> None:
    typer.echo(f"mana: {line}")
