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
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.hub.app import build, operator, serve, settle_memory
from mana.hub.operating.service import Operator
from mana.hub.operating.store import HubLimits
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


@hub.command("stop-work")
def stop_work(as_json: JsonOption = False) -> None:
    """Stop all runs of all accounts at once; nothing runs until `mana hub start-work`."""

    async def work(made: Operator) -> Answer:
        return _limits_answer(await made.stop_work(stopped=True))

    _operate(work, as_json=as_json)


@hub.command("start-work")
def start_work(as_json: JsonOption = False) -> None:
    """Let work go on that `mana hub stop-work` has stopped."""

    async def work(made: Operator) -> Answer:
        return _limits_answer(await made.stop_work(stopped=False))

    _operate(work, as_json=as_json)


@hub.command()
def limits(
    runs: Annotated[
        int | None, typer.Option(help="How many runs there are at once, of all accounts.")
    ] = None,
    runs_per_account: Annotated[
        int | None, typer.Option(help="How many runs there are at once of one account.")
    ] = None,
    jitter_ms: Annotated[
        int | None, typer.Option(help="By how much due moments are spread, in milliseconds.")
    ] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(help="Tokens of a day, of all accounts; -1: no cap.")
    ] = None,
    cost_per_day: Annotated[
        int | None, typer.Option(help="Costs of a day in millionths; -1: no cap.")
    ] = None,
    account_tokens_per_day: Annotated[
        int | None, typer.Option(help="Tokens of a day of each account; -1: no cap.")
    ] = None,
    account_cost_per_day: Annotated[
        int | None, typer.Option(help="Costs of a day of each account in millionths; -1: no cap.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the limits of the hub's work, and set those that are named."""
    numbers = {"runs_max": runs, "runs_per_account_max": runs_per_account, "jitter_ms": jitter_ms}
    caps = {
        "tokens_per_day_max": tokens_per_day,
        "cost_per_day_max": cost_per_day,
        "account_tokens_per_day_max": account_tokens_per_day,
        "account_cost_per_day_max": account_cost_per_day,
    }
    wanted: dict[str, int | None] = {
        name: number for name, number in numbers.items() if number is not None
    }
    wanted |= {name: None if cap == -1 else cap for name, cap in caps.items() if cap is not None}

    async def work(made: Operator) -> Answer:
        return _limits_answer(await made.limits(wanted))

    _operate(work, as_json=as_json)


@hub.command()
def rebuild(as_json: JsonOption = False) -> None:
    """Make anew what the hub keeps of missions and agents beside their records."""

    async def work(made: Operator) -> Answer:
        made_anew = await made.rebuild()
        said = f"{made_anew.missions} missions and {made_anew.agents} agents were made anew."
        return Answer({"missions": made_anew.missions, "agents": made_anew.agents}, [said])

    _operate(work, as_json=as_json)


def _limits_answer(found: HubLimits) -> Answer:
    stopped = None if found.stopped_ms is None else iso_ms(found.stopped_ms)
    values: dict[str, Json] = {
        "stoppedAt": stopped,
        "runsMax": found.runs_max,
        "runsPerAccountMax": found.runs_per_account_max,
        "jitterMs": found.jitter_ms,
        "tokensPerDayMax": found.tokens_per_day_max,
        "costPerDayMax": found.cost_per_day_max,
        "accountTokensPerDayMax": found.account_tokens_per_day_max,
        "accountCostPerDayMax": found.account_cost_per_day_max,
    }
    words = "All work is stopped." if stopped else "Work goes on."
    shown = [
        f"{name}: {'no cap' if value is None else value}"
        for name, value in values.items()
        if name != "stoppedAt"
    ]
    return Answer(values, [words, *shown])


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
