"""Snapshots of missions and agents made anew from their records, for all accounts of a hub.

For the operator, when snapshots were lost or cannot be trusted. What the records say is written
over; where a schedule stands is kept, and derived from grants and ledger only where it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from mana.domain.agents import AGENTS
from mana.domain.ids import AccountId, SpaceId
from mana.domain.missions import MISSIONS
from mana.domain.occurrences import ERRORED, FAILURES_MAX, HOLDING
from mana.hub.db import Row, Tenancy, Transaction, load_queries
from mana.hub.runner.projection import MergedFacts, agent_snapshot, mission_snapshot
from mana.hub.runner.queue import Moment, due_ms_of
from mana.hub.runner.rows import from_ms, to_ms
from mana.hub.runner.scheduling import following

SPACES_AT_ONCE: Final = 2_000
"""Nobody pushes to these spaces while they are made anew, which takes a part of a second."""
PAGE: Final = 1_000
_Q: Final = load_queries("mana.hub.runner", "rebuilding.sql")

_Columns: TypeAlias = list[tuple[Any, ...]]
"""Rows as their columns, in the order of the statement that writes them."""
_Make: TypeAlias = Callable[[Sequence[Row]], _Columns]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """How many snapshots were made anew."""

    missions: int = 0
    agents: int = 0


class _Entry(msgspec.Struct, frozen=True, gc=False):
    """A plain path of a record: its wire value and stamp."""

    value: Any
    at: str


class _Plain(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """The plain paths of a mission or agent; what else its record holds is passed over."""

    state: _Entry | None = None
    cadence: _Entry | None = None
    time_zone: _Entry | None = None
    agent_id: _Entry | None = None
    runs_on: _Entry | None = None
    if_missed: _Entry | None = None
    max_tokens_per_day: _Entry | None = None
    max_cost_per_day: _Entry | None = None
    max_concurrent_missions: _Entry | None = None
    deleted_at: _Entry | None = None


_PLAIN: Final = msgspec.json.Decoder(_Plain)
_PATHS: Final = tuple((field.name, field.encode_name) for field in msgspec.structs.fields(_Plain))


async def rebuild_all(tenancy: Tenancy, *, page: int = PAGE) -> Rebuilt:
    """Make all snapshots anew, a batch of spaces in a transaction. It can be cut off and repeated.

    `page`: how many records are read and written at a time.
    """
    missions = agents = 0
    after = ""
    while True:
        async with tenancy.door() as tx:
            spaces = await tx.value(_Q["hold_spaces"], after, SPACES_AT_ONCE)
            if not spaces:
                break
            jitter_ms = int(await tx.value(_Q["jitter_max"]))
            missions += await _rebuild(
                _Pages(tx, "plain_missions", spaces, page),
                "put_missions",
                partial(_mission_columns, jitter_ms=jitter_ms),
            )
            agents += await _rebuild(
                _Pages(tx, "plain_agents", spaces, page),
                "put_agents",
                _agent_columns,
            )
        after = spaces[-1]
    async with tenancy.door() as tx:
        await tx.execute(_Q["put_turns"])
    return Rebuilt(missions, agents)


@dataclass(frozen=True, slots=True)
class _Pages:
    """The records of one table in some spaces, in the order of spaces and ids."""

    tx: Transaction
    read: str
    spaces: Sequence[str]
    size: int

    async def after(self, last: Row | None) -> list[Row]:
        """Return the records after one of them; without it, the first."""
        if last is None:
            return await self.tx.all(_Q[self.read], self.spaces, "", self.size)
        left = self.spaces[self.spaces.index(last["space_id"]) :]
        return await self.tx.all(_Q[self.read], left, last["record_id"], self.size)


async def _rebuild(pages: _Pages, put: str, make: _Make) -> int:
    """Make the snapshots of one table anew, page by page; return how many there are.

    While a page is worked out, the database writes the one before and reads the next.
    """
    count = 0
    made: _Columns = []
    rows = await pages.after(None)
    while rows:
        count += len(rows)
        working = asyncio.create_task(asyncio.to_thread(make, rows))
        try:
            if made:
                await pages.tx.execute(_Q[put], *made)
            rows = await pages.after(rows[-1])
        finally:
            made = await working
    if made:
        await pages.tx.execute(_Q[put], *made)
    return count


def _mission_columns(rows: Sequence[Row], *, jitter_ms: int) -> _Columns:
    return list(zip(*(_mission_row(row, jitter_ms) for row in rows), strict=True))


def _agent_columns(rows: Sequence[Row]) -> _Columns:
    return list(zip(*(_agent_row(row) for row in rows), strict=True))


def _mission_row(row: Row, jitter_ms: int) -> tuple[Any, ...]:
    """Return a mission as its record and the ledger have it, and when the moment it lacks is due."""
    made = mission_snapshot(SpaceId(row["space_id"]), _facts(MISSIONS.name, row))
    hold, failures, failure = row["hold"], row["failures"], row["failure"]
    if not row["stands"]:
        hold, failures, failure = _as_it_went(row["lines"] or ())
    made = replace(
        made,
        account_id=AccountId(row["account_id"] or made.account_id),
        hold=hold,
        failures=failures,
        failure=failure,
    )
    waits = next_run = row["waits_for"]
    due = None
    if waits is None:
        last = row["last_for"]
        after_ms = max(made.anchor_ms or 0, 0 if last is None else to_ms(last))
        next_ms = following(made, after_ms)
        if next_ms is not None:
            next_run = from_ms(next_ms)
            due = from_ms(due_ms_of(Moment(made, next_ms), jitter_ms))
    return (
        made.space_id,
        made.mission_id,
        made.account_id,
        made.state,
        msgspec.json.encode(made.cadence.to_wire()).decode(),
        made.time_zone,
        made.agent_id,
        made.runs_on,
        made.anchor_ms,
        made.deleted,
        next_run,
        made.hold,
        made.if_missed,
        made.tokens_per_day_max,
        made.cost_per_day_max,
        made.failures,
        made.failure,
        due,
    )


def _agent_row(row: Row) -> tuple[Any, ...]:
    made = agent_snapshot(SpaceId(row["space_id"]), _facts(AGENTS.name, row))
    return (
        made.space_id,
        made.agent_id,
        made.account_id,
        made.state,
        made.tokens_per_day_max,
        made.cost_per_day_max,
        made.concurrent_max,
        made.deleted,
    )


def _as_it_went(lines: Sequence[Sequence[Any]]) -> tuple[str | None, int, str | None]:
    """Return the hold, the failures and the last of them that the end of a ledger tells of."""
    ended = [line for line in lines if line[0] in ("done", "skipped", "failed")]
    failures: list[str] = []
    for state, reason, _ in ended:
        if state == "done":
            break
        if state == "failed" and reason != "stopped":
            failures.append(reason)
    hold: str | None = None
    if ended and ended[0][0] == "skipped" and ended[0][1] in HOLDING and not ended[0][2]:
        hold = ended[0][1]
    if len(failures) >= FAILURES_MAX:
        hold = ERRORED
    return hold, len(failures), failures[0] if failures else None


def _facts(table: str, row: Row) -> MergedFacts:
    fields = _PLAIN.decode(row["fields"])
    entries = {path: entry for name, path in _PATHS if (entry := getattr(fields, name)) is not None}
    return MergedFacts(table, row["record_id"], row["author_id"], entries)
