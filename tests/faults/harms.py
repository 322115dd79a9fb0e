"""What can go wrong; each harm mends itself, so that all can happen again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from mana.crypto.work import Limits
from mana.protocol.messages import OccurrenceInfo, SetWork, WorkState
from mana.testing.postgres import connected
from mana.testing.work import next_word, signed_work
from tests.faults.engine import ON_CHANGE, STEADY, WATCHED, Party
from tests.faults.runners import LEASE_S, RunnerProcess
from tests.runner.world import World

Harm = Callable[[], Awaitable[None]]
LONG_S = 7.0
"""Longer than whoever is stopped may not have heard of it."""
EXPIRE = """
update mana_ai.grants set expires_at = clock_timestamp() - interval '1 s'
 where space_id = $1 and mission_id = 'expired-0' and state = 'active'
"""
_SET_CLOCK = "update watch.clock set ahead = make_interval(mins => $1) returning 1"


class Harms:
    """The harms of machines and of people, by the dice of a party."""

    def __init__(self, made: Party) -> None:
        self._made = made
        self._dice = made.dice
        self.of_machines: Sequence[Harm] = (
            self.kill_runner,
            self.kill_postgres,
            self.freeze_runner,
            self.kill_workers,
            self.cut_line,
            self.let_clock_jump,
            self.end_connections,
            self.cancel_statements,
            self.end_runner,
            self.let_time_pass,
        )
        self.of_people: Sequence[Harm] = (
            self.stop_account,
            self.revoke,
            self.stop_mission,
            self.stop_hub,
            self.change_input,
            self.expire,
            self.pause_agent,
            self.pause_mission,
            self.edit,
            self.run_now,
        )

    async def mend(self) -> None:
        """Undo what a harm of people has left where it was cut off itself."""
        made = self._made
        made.tell_time()
        await made.execute(_SET_CLOCK, made.ahead_minutes)
        await made.execute("update mana_ai.hub_limits set stopped_at = null returning 1")
        for who, here in made.worlds.items():
            await _go_on(here)
            await here.agent("agent-restless", model="rules", maxConcurrentMissions=8)
            if "paused-0" in made.missions(who):
                await here.edit_mission("paused-0", state="active")

    def _runner(self) -> RunnerProcess:
        return self._dice.choice(self._made.runners)

    def _anybody(self) -> World:
        self._made.tell_time()
        return self._dice.choice(list(self._made.worlds.values()))

    def _while_s(self) -> float:
        """Return how long something is stopped: mostly a moment, now and then for long."""
        is_long = self._made.scale.is_whole and self._dice.random() < 0.2
        return LONG_S + self._dice.random() if is_long else 0.3

    async def kill_runner(self) -> None:
        """Kill a runner in the middle of its runs, and start it again."""
        victim = self._runner()
        await victim.kill()
        await victim.start()

    async def end_runner(self) -> None:
        """Let a runner end by itself in the middle of its runs, and start it again."""
        victim = self._runner()
        self._made.codes.append(await victim.stop())
        await victim.start()

    async def kill_workers(self) -> None:
        """Kill some workers of a runner, or what makes them."""
        for pid in self._runner().look():
            if self._dice.random() < 0.7:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def freeze_runner(self) -> None:
        """Let a runner sleep past its leases, and wake."""
        victim = self._runner()
        victim.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(LEASE_S + 0.7)
        finally:
            victim.signal(signal.SIGCONT)

    async def kill_postgres(self) -> None:
        """Kill the server of the database, and start it again."""
        await self._made.server.kill()
        await self._made.server.start()

    async def end_connections(self) -> None:
        """End connections of runners in the middle of what they do."""
        await self._backends("pg_terminate_backend")

    async def cancel_statements(self) -> None:
        """Let statements of runners fail, for a while."""
        for _ in range(30):
            await self._backends("pg_cancel_backend")
            await asyncio.sleep(0.01)

    async def _backends(self, function: str) -> None:
        await self._made.execute(
            f"select count({function}(pid)) from pg_stat_activity"
            " where usename = 'mana_runner' and state <> 'idle' and random() < 0.5"
        )

    async def cut_line(self) -> None:
        """Let messages of runners to their database be lost, and answers to them, for a while."""
        self._made.line.every = self._dice.choice((10, 40, 150))
        await asyncio.sleep(1)
        self._made.line.every = None
        await self._made.line.cut()

    async def let_clock_jump(self) -> None:
        """Set the database's clock hours ahead or back, and right again after a moment."""
        made = self._made
        hours = self._dice.choice((-3, -1, 1, 3))
        await made.execute(_SET_CLOCK, made.ahead_minutes + hours * 60)
        await asyncio.sleep(0.5 + self._dice.random())
        await made.execute(_SET_CLOCK, made.ahead_minutes)

    async def let_time_pass(self) -> None:
        """Set the database's clock ahead for good, as a machine that slept."""
        made = self._made
        made.ahead_minutes += self._dice.choice((1, 4, 6, 11, 31))
        await made.execute(_SET_CLOCK, made.ahead_minutes)
        await made.execute("select pg_notify('mana_due', '')")

    async def pause_agent(self) -> None:
        """Pause an agent and wake it."""
        here = self._anybody()
        for state in ("paused", "active"):
            await here.agent("agent-restless", model="rules", state=state, maxConcurrentMissions=8)
            await asyncio.sleep(0.3)

    async def pause_mission(self) -> None:
        """Pause a mission and go on with it."""
        here = self._made.owner_of("paused-0")
        await here.edit_mission("paused-0", state="paused")
        await asyncio.sleep(0.3)
        await here.edit_mission("paused-0", state="active")

    async def edit(self) -> None:
        """Change a mission's caps while it runs."""
        here = self._made.owner_of("edited-0")
        await here.edit_mission("edited-0", maxTokensPerDay=self._dice.choice((0, 50_000, None)))

    async def run_now(self) -> None:
        """Ask for a run by hand; what was promised is kept in mind."""
        mission = self._dice.choice(STEADY)
        here = self._made.owner_of(mission)
        path = f"/api/v1/spaces/{here.ada.space}/missions/{mission}/run"
        answer = await here.ada.call("POST", path)
        if answer.status_code == 202:
            told = msgspec.json.decode(answer.content, type=OccurrenceInfo)
            self._made.asked.add(told.occurrence_id)
            return
        assert answer.status_code in (409, 429, 503), answer.text

    async def change_input(self) -> None:
        """Change what a mission waits for."""
        here = self._made.owner_of(ON_CHANGE)
        await here.note(WATCHED, f"- [ ] call the plumber {self._dice.random()}")

    async def stop_mission(self) -> None:
        """Stop what runs and waits of a mission."""
        here = self._made.owner_of("stopped-0")
        path = f"/api/v1/spaces/{here.ada.space}/missions/stopped-0/stop"
        answer = await here.ada.call("POST", path)
        assert answer.status_code == 200, answer.text

    async def revoke(self) -> None:
        """End a grant, and give another."""
        made = self._made
        here = made.owner_of("revoked-0")
        newest = [
            header
            for header in made.headers.values()
            if header.mission_id == "revoked-0" and header.space_id == here.ada.space
        ][-1]
        await here.revoke(newest)
        await asyncio.sleep(self._while_s() + 1)
        await made.granted(here, "revoked-0")

    async def expire(self) -> None:
        """Let a grant come to its end in time, and give another."""
        made = self._made
        here = made.owner_of("expired-0")
        async with connected(made.database.owner_url) as owner, owner.transaction():
            # A grant's end is guarded by the database too; this is what the clock does otherwise.
            await owner.execute("set local session_replication_role = replica")
            await owner.execute(EXPIRE, here.ada.space)
        await asyncio.sleep(self._while_s() + 1)
        await made.granted(here, "expired-0")

    async def stop_account(self) -> None:
        """Stop all work of an account, and let it go on."""
        here = self._anybody()
        answer = await here.ada.call("PUT", "/api/v1/me/ai-work", SetWork(stopped=True))
        assert answer.status_code == 200, answer.text
        await asyncio.sleep(self._while_s())
        await _go_on(here)

    async def stop_hub(self) -> None:
        """Stop all work of the hub, and let it go on."""
        await self._made.execute(
            "update mana_ai.hub_limits set stopped_at = clock_timestamp() returning 1"
        )
        await self._made.execute("select pg_notify('mana_stop', '')")
        await asyncio.sleep(self._while_s())
        await self._made.execute("update mana_ai.hub_limits set stopped_at = null returning 1")


async def _go_on(here: World) -> None:
    """Let an account's work go on, as its device does."""
    answer = await here.ada.call("GET", "/api/v1/me/ai-work")
    assert answer.status_code == 200, answer.text
    state = msgspec.json.decode(answer.content, type=WorkState)
    word = next_word(here.ada.account, state, Limits(False, None, None))
    answer = await here.ada.call("PUT", "/api/v1/me/ai-work", signed_work(here.ada.account, word))
    assert answer.status_code == 200, answer.text
