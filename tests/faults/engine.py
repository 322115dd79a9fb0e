"""An installation whose runners work on thousands of runs while everything around them breaks.

Several people with missions, a hub in this process, runners as processes, PostgreSQL as people run
it, a model's endpoint with moods, a line to the database that is cut, and clocks that jump.
`harms.py` breaks things by a seed; `after.py` says what must be true whatever happened.
"""

from __future__ import annotations

import contextlib
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from mana.crypto.runners import RunnerPublicKey
from mana.domain.grants import GrantHeader
from mana.models.settings import load_models
from mana.testing.endpoints import model_server
from mana.testing.postgres import Database, connected
from tests.faults.processes import Postgres, installation
from tests.faults.runners import RunnerProcess, runner_process
from tests.faults.wire import BadLine, MoodyModel, bad_line
from tests.hub.client import Person, Served, served_hub
from tests.runner.world import World, leave_runner_key, now_ms

RULES = "rules:offline"
ENDED = "GRANT_ENDED"
PEOPLE = ("ada", "bob", "cleo")
STEADY = ("rules-0", "net-0", "fall-0")
"""Missions that nobody touches: each of their occurrences must come to an end."""
RESTLESS = ("paused-0", "stopped-0", "revoked-0", "expired-0", "edited-0")
CLOCKED: Mapping[str, str] = {"once-0": "once", "skip-0": "skip", "all-0": "all"}
"""Missions of the clock, with what becomes of moments that were missed."""
ON_CHANGE = "change-0"
WATCHED = "note-2"
EVERY_MINUTES = 5
AGE_MS = 2 * 3_600_000
"""So long before the storm the clock of missions began."""
AGENTS: Mapping[str, str] = {
    "agent-rules": "rules",
    "agent-restless": "rules",
    "agent-net": "net",
    "agent-fall": "fall",
}
"""By id the model."""
MODELS = """
[[models]]
alias = "rules"
url = "rules:offline"

[[models]]
alias = "net"
url = "{url}"
model = "m"
prompt_price = 1
completion_price = 3
timeout_s = 2

[[models]]
alias = "fall"
url = "{url}"
model = "m"
prompt_price = 1
completion_price = 3
timeout_s = 2
fallback = ["rules"]
"""
WATCH = (Path(__file__).parent / "watch.sql").read_text()
QUEUE = """
insert into mana_ai.occurrences
  (space_id, mission_id, account_id, agent_id, scheduled_for, kind, state, due_at)
select $1, $2, $3, $4, at, 'manual', 'queued', clock_timestamp() + n * $6::interval / $5
  from (select n, date_trunc('milliseconds', now()) - interval '1 day' + n * interval '7 ms' as at
          from generate_series(1, $5::int) as n) k
"""
HURRY = """
with hurried as (
  update mana_ai.occurrences set due_at = clock_timestamp()
   where state = 'queued' and due_at > clock_timestamp()
     and (tries > 0 or $1 and kind in ('manual', 'change')))
select pg_notify('mana_due', '')
"""
OPEN = """
select count(*) from mana_ai.occurrences
 where state = 'leased' or state = 'queued'
   and (kind <> 'scheduled' or tries > 0 or due_at < clock_timestamp() + interval '1 second')
"""
LATE_TURNS = """
select count(*) from mana_ai.occurrences o
  left join mana_ai.account_work w on w.account_id = o.account_id
 where o.state = 'queued' and (w.next_due is null or w.next_due > o.due_at)
"""


@dataclass(frozen=True)
class Scale:
    """How much is done: people, occurrences of each of their missions, runners, seconds of faults.

    `is_whole`: everyone has missions of every kind, and everything that can break does so once.
    """

    people: int
    occurrences: int
    runners: int
    seconds: float
    is_whole: bool = True


@dataclass
class Party:
    """Everything that takes part."""

    scale: Scale
    dice: random.Random
    server: Postgres
    database: Database
    home: Path
    served: Served
    worlds: dict[str, World]
    runners: list[RunnerProcess]
    line: BadLine
    model: MoodyModel
    url: str
    headers: dict[str, GrantHeader] = field(default_factory=dict)
    keys: dict[str, RunnerPublicKey] = field(default_factory=dict)
    """The runner's, which draws a new one where its clock leaves the age of the last in doubt."""
    done: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault happened."""
    late_turns: int = 0
    queued: dict[tuple[str, str], int] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    """Occurrences that a person was promised by hand."""
    resumed: set[tuple[str, str]] = field(default_factory=set)
    """Missions that failed too often and went on from then."""
    codes: list[int | None] = field(default_factory=list)
    """How runners ended that were asked to."""
    odd: Counter[str] = field(default_factory=Counter)
    """By mission why occurrences failed."""
    ahead_minutes: int = 0
    """How far the database's clock is ahead by now, besides where it is for a moment."""

    def missions(self, who: str) -> list[str]:
        """Return the missions of somebody; in a small storm each has some of them."""
        first = [*STEADY, *CLOCKED]
        second = [*RESTLESS, ON_CHANGE]
        if self.scale.is_whole:
            return [*first, *second]
        return first if who == PEOPLE[0] else second

    def owner_of(self, mission: str) -> World:
        """Return one of the people who have a mission."""
        self.tell_time()
        return self.worlds[
            self.dice.choice([who for who in self.worlds if mission in self.missions(who)])
        ]

    async def granted(self, here: World, mission: str) -> None:
        """Grant a mission, and keep the header and the key that it names."""
        self.tell_time()
        inputs = (WATCHED,) if mission == ON_CHANGE else ("note-1",)
        asked = {"inputs": inputs, "endpoints": sorted((RULES, self.url))}
        header = await here.header(mission, **asked)
        try:
            await here.complete(header)
        except AssertionError as error:
            if ENDED not in str(error):
                raise
            # The database's clock was hours ahead for a moment, so that the header was too old.
            header = await here.grant(mission, **asked)
        self.headers[header.grant_id] = header
        key = await here.runner_key()
        self.keys[key.key_id()] = key

    def tell_time(self) -> None:
        """Let the hub's clock stand where the machine's does."""
        self.served.clock.now_ms = now_ms()

    async def execute(self, query: str, *values: object) -> Any:
        """Run a statement as the owner and return the first value."""
        async with connected(self.database.owner_url) as owner:
            return await owner.fetchval(query, *values)

    async def hurry(self, *, everything: bool = False) -> None:
        """Let what waits for another try be due at once; `everything`: also what was never tried."""
        await self.execute(HURRY, everything)


@contextlib.asynccontextmanager
async def party(scale: Scale, seed: int) -> AsyncIterator[Party]:
    """Lend a party in which everything is ready and no runner runs yet; all ends with it."""
    dice = random.Random(seed)
    async with contextlib.AsyncExitStack() as stack:
        server, database, _ = await stack.enter_async_context(installation(hubs=0))
        model = MoodyModel(random.Random(dice.random()))
        endpoint = await stack.enter_async_context(model_server(model))
        home = server.instance.base.parent / "home"
        (home / "models.toml").write_text(MODELS.format(url=endpoint.url))
        served = await stack.enter_async_context(
            served_hub(database, home=home, models=load_models(home, {}, with_keys=False))
        )
        served.clock.now_ms = now_ms()
        worlds = {}
        for name in PEOPLE[: scale.people]:
            person: Person = await served.sign_up(name)
            worlds[name] = World(database, served, person, home)
        leave_runner_key(worlds["ada"].settings())
        folder = home.parent / "line"
        folder.mkdir()
        socket_dir = server.instance.socket_dir
        assert socket_dir is not None
        line = await stack.enter_async_context(
            bad_line(socket_dir, folder, random.Random(dice.random()))
        )
        runners = [runner_process(one, database, home, folder) for one in range(scale.runners)]
        made = Party(
            scale, dice, server, database, home, served, worlds, runners, line, model, endpoint.url
        )
        async with connected(database.owner_url) as owner:
            await owner.execute(WATCH)
        await _capped(made)
        for name in worlds:
            await _missions(made, name)
        try:
            yield made
        finally:
            for runner in runners:
                if runner.process is not None and runner.process.returncode is None:
                    runner.signal(signal.SIGCONT)
                    await runner.kill()


def cap(made: Party, of_each: int) -> int:
    """Return a cap that grows with what there is to do."""
    return of_each * (made.scale.occurrences + 8)


async def _capped(made: Party) -> None:
    """Set the caps of the hub and of each account; those of missions and agents are theirs."""
    await made.execute(
        "update mana_ai.hub_limits set cost_per_day_max = $1, account_tokens_per_day_max = $2"
        " returning 1",
        *(cap(made, 30_000 * len(made.worlds)), cap(made, 24_000)),
    )


async def _missions(made: Party, who: str) -> None:
    """Make somebody's agents and missions, grant them, and queue what is to be worked on."""
    here = made.worlds[who]
    for note in ("note-1", WATCHED):
        await here.note(note)
    for agent, model in AGENTS.items():
        tokens = cap(made, 4_000) if agent == "agent-fall" else None
        await here.agent(agent, model=model, maxTokensPerDay=tokens, maxConcurrentMissions=8)
    for mission in made.missions(who):
        options: dict[str, Any] = {}
        if mission in CLOCKED:
            options["cadence"] = {"kind": "interval", "everyMinutes": EVERY_MINUTES}
            options["ifMissed"] = CLOCKED[mission]
            options["stamped_ms"] = now_ms() - AGE_MS
        elif mission == ON_CHANGE:
            options["cadence"] = {"kind": "onChange", "debounceMinutes": 1, "spacingMinutes": 5}
            options["inputs"] = (WATCHED,)
        elif mission == "net-0":
            options["maxCostPerDay"] = cap(made, 12_000)
        await here.mission(
            mission, agentId=agent_of(mission), title=f"title of {who}/{mission};", **options
        )
        await made.granted(here, mission)
    async with connected(made.database.owner_url) as owner:
        for mission in made.missions(who):
            if mission not in (*STEADY, *RESTLESS):
                continue
            await owner.execute(
                QUEUE,
                *(here.ada.space, mission, here.ada.account.account_id, agent_of(mission)),
                *(made.scale.occurrences, timedelta(seconds=made.scale.seconds)),
            )
            made.queued[here.ada.space, mission] = made.scale.occurrences


def agent_of(mission: str) -> str:
    """Return the agent that a mission has for its own or shares with others of its kind."""
    kind = mission.partition("-")[0]
    if mission in RESTLESS:
        return "agent-restless"
    return f"agent-{kind}" if f"agent-{kind}" in AGENTS else "agent-rules"
