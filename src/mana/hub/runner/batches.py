"""Statements for several runs of one account in one space at once, within an open transaction.

Locks are taken in one order everywhere, so that neither a push nor another runner waits for one
that waits for it: the log's head, missions, grants, occurrences, the audit's head; and within each
by their ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from mana.domain.errors import Invalid
from mana.domain.ids import AccountId, AgentId, MissionId, OccurrenceId, SpaceId
from mana.domain.spaces import SPACE_POLICY, SPACE_POLICY_ID
from mana.hub.db import Row, Transaction, load_queries
from mana.hub.runner.ledger import AgentSnapshot, Lease, MissionSnapshot, RegisteredGrant
from mana.hub.runner.queue import Queue
from mana.hub.runner.rows import agent_of, limits_of, to_ms
from mana.hub.runner.store import LIVE, registered_grant
from mana.hub.runner.words import ToldWork
from mana.protocol.messages import AuditRow

_QUERIES: Final = load_queries("mana.hub.runner", "batches.sql")


@dataclass(frozen=True, slots=True)
class Held:
    """Leases that are the current ones until the transaction ends, and the account's role here.

    `stopped`: those that somebody has stopped, alone, with the account or with the hub.
    """

    ids: frozenset[OccurrenceId]
    stopped: frozenset[OccurrenceId]
    role: str | None
    now_ms: int


@dataclass(frozen=True, slots=True)
class WantedRecords:
    """The records of one run: those that a job names, and what earlier runs of it wrote."""

    run: int
    mission_id: MissionId
    refs: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class FoundRecords:
    """The sealed rows of a run as JSON, and the stamp at which the mission named its grant.

    `earlier`: what earlier runs wrote, without proofs.
    """

    json: bytes = b"[]"
    earlier: bytes = b"[]"
    named_at: str = ""


@dataclass(frozen=True, slots=True)
class Stands:
    """The signed log of a space, the rows of its members' devices and the record of its policy, as
    JSON; and what the database says of the work of the account.
    """

    log: str = "[]"
    devices: str = "[]"
    policy: str | None = None
    work: ToldWork = field(default_factory=ToldWork)


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a run is."""

    lease: Lease
    phase: str
    round: int
    calls: int
    steps: int
    heard: int


class Batch:
    """The statements of one transaction about one space."""

    def __init__(self, tx: Transaction, space: SpaceId) -> None:
        self._tx = tx
        self._space = space

    async def held(self, leases: Sequence[Lease], account: AccountId) -> Held:
        """Return which of these leases are the current ones, and keep them so."""
        rows = await self._tx.all(_QUERIES["held"], *_fenced(leases), self._space, account)
        if not rows:
            return Held(frozenset(), frozenset(), None, 0)
        ids = frozenset(OccurrenceId(row["occurrence_id"]) for row in rows)
        stopped = frozenset(OccurrenceId(row["occurrence_id"]) for row in rows if row["stopped"])
        return Held(ids, stopped, rows[0]["role"], to_ms(rows[0]["now"]))

    async def agents(self, missions: Iterable[MissionSnapshot]) -> dict[AgentId, AgentSnapshot]:
        """Return what the hub knows of the missions' agents."""
        ids = {mission.agent_id for mission in missions if mission.agent_id is not None}
        rows = await self._tx.all(_QUERIES["agents"], self._space, sorted(ids))
        found = [agent_of(row) for row in rows]
        return {agent.agent_id: agent for agent in found}

    async def grants(
        self, missions: Iterable[MissionId], *, lock: bool = False
    ) -> dict[MissionId, RegisteredGrant]:
        """Return the newest grant of each mission that was completed.

        `lock`: none of them can end before this transaction; the sealed parts are left out then.
        """
        name = "grants_locked" if lock else "grants"
        rows = await self._tx.all(_QUERIES[name], self._space, sorted(set(missions)))
        found = [registered_grant(row) for row in rows]
        return {grant.mission_id: grant for grant in found}

    async def admit(self, asked: Sequence[tuple[Lease, AgentSnapshot]]) -> frozenset[OccurrenceId]:
        """Count runs as their agents' in this order, as far as each agent may do so many at once.

        Raises nothing for those that may not: they are not in the answer.
        """
        agents = sorted({f"{self._space}:{agent.agent_id}" for _, agent in asked})
        await self._tx.execute(_QUERIES["lock_agents"], agents)
        rows = await self._tx.all(
            _QUERIES["admit"],
            self._space,
            [lease.occurrence_id for lease, _ in asked],
            [agent.agent_id for _, agent in asked],
            [agent.concurrent_max for _, agent in asked],
        )
        return frozenset(OccurrenceId(row["occurrence_id"]) for row in rows)

    async def put_back(self, leases: Sequence[Lease], *, delay_ms: int, counted: bool) -> None:
        """Queue leased occurrences again. `counted`: the attempt was one."""
        await self._tx.execute(
            _QUERIES["put_back"],
            *_fenced(leases),
            timedelta(milliseconds=delay_ms),
            0 if counted else 1,
        )
        await Queue(self._tx).wake()

    async def records(
        self, wanted: Sequence[WantedRecords], *, earlier: int
    ) -> dict[int, FoundRecords]:
        """Return the records of runs, sealed, and those of the `earlier` runs of each mission."""
        refs = [(one.run, ref) for one in wanted for ref in dict.fromkeys(one.refs)]
        rows = await self._tx.all(
            _QUERIES["records"],
            self._space,
            [run for run, _ in refs],
            [table for _, (table, _) in refs],
            [record_id for _, (_, record_id) in refs],
            [one.run for one in wanted],
            [one.mission_id for one in wanted],
            earlier,
        )
        return {
            row["run"]: FoundRecords(row["records"], row["earlier"], row["named_at"] or "")
            for row in rows
        }

    async def audit_head(self, account: AccountId, start: str) -> tuple[int, str]:
        """Return the head of the account's audit, made with `start` if new, and lock it."""
        row = await self._tx.one(_QUERIES["audit_head"], account, start)
        if row is None:
            raise Invalid("the audit has no head")
        return row["seq"], row["hash"]

    async def audit_hash(self, account: AccountId, seq: int) -> str | None:
        """Return the hash of one row of an account's audit."""
        found: str | None = await self._tx.value(_QUERIES["audit_hash"], account, seq)
        return found

    async def append_audit(
        self, account: AccountId, rows: Sequence[AuditRow], *, after: tuple[int, str]
    ) -> bool:
        """Append rows of one moment and move the head to the last of them.

        False: the head is not `after` any more, and nothing was written.
        """
        last = rows[-1]
        written = await self._tx.execute(
            _QUERIES["append_audit"],
            account,
            last.ts,
            [row.seq for row in rows],
            [row.mission_id for row in rows],
            [row.iteration_id for row in rows],
            [row.grant_id for row in rows],
            [row.table_name for row in rows],
            [row.record_id for row in rows],
            [row.status for row in rows],
            [row.reason for row in rows],
            [row.endpoint for row in rows],
            [row.runner_key_id for row in rows],
            [row.previous for row in rows],
            [row.hash for row in rows],
            last.seq,
            last.hash,
            *after,
        )
        return written == len(rows)

    async def standing(self) -> Stands:
        """Return who may decide in the space, what it lifts, and what holds for the account."""
        row = await self._tx.one(
            _QUERIES["standing"], self._space, SPACE_POLICY.name, SPACE_POLICY_ID
        )
        if row is None:
            return Stands()
        work = ToldWork(limits_of(row), row["word"], row["signer"] or "", row["signature"] or "")
        return Stands(row["log"], row["devices"], row["policy"], work)

    async def ask_word(self, revision: int) -> None:
        """Have the account's devices sign anew above a word that is newer than the one here."""
        await self._tx.execute(_QUERIES["ask_word"], revision)


async def renew(
    tx: Transaction, leases: Sequence[Lease], *, lease_s: int
) -> frozenset[OccurrenceId]:
    """Prolong leases; return which of them are the current ones still."""
    rows: Sequence[Row] = await tx.all(
        _QUERIES["renew"], *_fenced(leases), timedelta(seconds=lease_s)
    )
    return frozenset(OccurrenceId(row["occurrence_id"]) for row in rows)


async def note_progress(tx: Transaction, progress: Sequence[Progressed]) -> None:
    """Write how far runs are, and tell the accounts' devices."""
    await tx.all(
        _QUERIES["progress"],
        *_fenced([one.lease for one in progress]),
        [one.phase for one in progress],
        [one.round for one in progress],
        [one.calls for one in progress],
        [one.steps for one in progress],
        [one.heard for one in progress],
        LIVE,
    )


def by_space(leases: Iterable[Lease]) -> Mapping[SpaceId, list[Lease]]:
    """Return leases by their space, in their order."""
    found: dict[SpaceId, list[Lease]] = {}
    for lease in leases:
        found.setdefault(lease.space_id, []).append(lease)
    return found


def _fenced(leases: Sequence[Lease]) -> tuple[list[str], list[int]]:
    return [lease.occurrence_id for lease in leases], [lease.fence for lease in leases]
