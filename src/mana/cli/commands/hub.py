"""`mana hub`: accounts, spaces, sync, the grant register; and what only its operator does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Annotated

import typer
import uvloop

from mana.cli.instance import DATABASE
from mana.cli.lifelines import announcer, stop_event
from mana.cli.output import Answer, Line, show
from mana.cli.places import AlreadyRunning, Places
from mana.cli.text import one_line
from mana.hub.app import build, operator, serve, settle_memory
from mana.hub.operating.service import Operator
from mana.hub.postgres import Instance, Outcome, find_binaries
from mana.hub.schema.store import addresses, bring_up_to_date
from mana.hub.settings import HubSettings

hub = typer.Typer(invoke_without_command=True, add_completion=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@hub.callback()
def serve_hub(ctx: typer.Context) -> None:
    """Serve the hub on the database that MANA_DATABASE_URL names."""
    if ctx.invoked_subcommand is not None:
        return
    places = Places.from_env(os.environ)
    places.make_home()
    named = _named_database(os.environ)
    url = named or addresses(os.environ).app
    settings = HubSettings.from_env(os.environ, database_url=url, home=places.home)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


@hub.command()
def reset(
    login: Annotated[str, typer.Argument(metavar="LOGIN", help="Whose password is lost.")],
    as_json: JsonOption = False,
) -> None:
    """Print a one-time token that lets somebody set a new password; standard mode only.

    It is good for 24 hours. Give it to nobody but the person: it opens the account.
    """

    async def work(made: Operator) -> Answer:
        token = await made.reset(login)
        return Answer(
            {"login": login, "token": token},
            [
                f"One-time token of {one_line(login, 80)}, good for 24 hours:",
                token,
                Line("Whoever has it opens the account. Its security log says so.", "quiet"),
            ],
        )

    _operate(work, as_json=as_json)


@hub.command("rotate-kek")
def rotate_kek(as_json: JsonOption = False) -> None:
    """Put a new key of the hub in force, wrap every master key under it, destroy the old key.

    The hub may run meanwhile. Cut off, it goes on where it was when it is asked for again.
    """

    async def work(made: Operator) -> Answer:
        wrapped = 0

        def told(done: int, of: int) -> None:
            nonlocal wrapped
            wrapped = done
            if not as_json:
                typer.echo(f"{done} of {of} master keys")

        await made.rotate_kek(told)
        said = "The old key of the hub is destroyed; what it opened in old backups stays shut."
        return Answer({"rewrapped": wrapped}, [said])

    _operate(work, as_json=as_json)


def _operate(work: Callable[[Operator], Awaitable[Answer]], *, as_json: bool) -> None:
    async def run() -> Answer:
        places = Places.from_env(os.environ)
        async with _database(os.environ, places) as url:
            settings = HubSettings.from_env(os.environ, database_url=url, home=places.home)
            async with operator(settings) as made:
                return await work(made)

    show(asyncio.run(run()), as_json=as_json)


def _named_database(environ: Mapping[str, str]) -> str:
    return environ.get("MANA_APP_DATABASE_URL", "").strip()


@asynccontextmanager
async def _database(environ: Mapping[str, str], places: Places) -> AsyncIterator[str]:
    """Lend the address of the hub's database; the embedded one is started if nothing runs."""
    named = _named_database(environ)
    folder = places.home / "postgres"
    if named or environ.get("MANA_DATABASE_URL", "").strip() or not folder.is_dir():
        yield named or addresses(environ).app
        return
    embedded = Instance(find_binaries(environ), folder)
    with ExitStack() as held:
        with suppress(AlreadyRunning):
            held.enter_context(places.alone())
        if await asyncio.to_thread(embedded.ensure) is Outcome.STARTED:
            held.callback(embedded.stop)
        urls = addresses(environ, embedded=embedded.url(DATABASE))
        await bring_up_to_date(urls.owner)
        yield urls.app


async def _serve(settings: HubSettings) -> None:
    announce = announcer(os.environ, "hub")
    with stop_event(os.environ) as stopping:
        built = build(settings)
        settle_memory()
        await serve(
            built,
            host=settings.host,
            port=settings.port,
            ready=lambda port: announce({"url": f"http://{settings.host}:{port}"}),
            stop=stopping,
        )
