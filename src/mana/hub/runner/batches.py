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
from mana.hub.runner.ledger import AgentSnapshot, Lease, RegisteredGrant
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
class Facts:
    """Leases that are the current ones, and what the hub knows of what they are about.

    `grants`: the newest of each mission that was completed.
    """

    held: Held
    agents: Mapping[AgentId, AgentSnapshot]
    grants: Mapping[MissionId, RegisteredGrant]


@dataclass(frozen=True, slots=True)
class WantedRecords:
    """The records of one run: those that a job names, and what earlier runs of it wrote."""

    mission_id: MissionId
    refs: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Place:
    """A lease that asks for a place among its agent's runs, and what it reads if it gets one."""

    lease: Lease
    agent: AgentSnapshot
    wanted: WantedRecords | None


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
        return _held(rows)

    async def facts(self, leases: Sequence[Lease], account: AccountId) -> Facts:
        """Return which of these leases are the current ones, and keep them so; and what the hub
        knows of their missions' agents and grants. Lock the missions first.
        """
        rows = await self._tx.all(_QUERIES["facts"], *_fenced(leases), self._space, account)
        held = _held(rows)
        agents = [agent_of(row["agent"]) for row in rows if row["agent"] is not None]
        grants = [
            registered_grant(
                {**row["granted"], "expired": row["granted"]["expires_at"] <= row["now"]}
            )
            for row in rows
            if row["granted"] is not None
        ]
        return Facts(
            held,
            {agent.agent_id: agent for agent in agents},
            {grant.mission_id: grant for grant in grants},
        )

    async def grants_locked(
        self, missions: Iterable[MissionId]
    ) -> dict[MissionId, RegisteredGrant]:
        """Return the newest grant of each mission that was completed, without its sealed parts.

        None of them can end before this transaction.
        """
        rows = await self._tx.all(_QUERIES["grants_locked"], self._space, sorted(set(missions)))
        found = [registered_grant(row) for row in rows]
        return {grant.mission_id: grant for grant in found}

    async def admit(
        self, places: Sequence[Place], *, earlier: int
    ) -> dict[OccurrenceId, FoundRecords]:
        """Count runs as their agents' in this order, as far as each agent may do so many at once.

        Returns the records of those that were counted, sealed, and those of the `earlier` runs of
        each mission; the others may not run now. Nobody else admits runs of these agents until the
        transaction ends.
        """
        agents = sorted({f"{self._space}:{one.agent.agent_id}" for one in places})
        await self._tx.execute(_QUERIES["lock_agents"], agents)
        wanted = [(number, one.wanted) for number, one in enumerate(places, 1) if one.wanted]
        refs = [(number, ref) for number, one in wanted for ref in dict.fromkeys(one.refs)]
        rows = await self._tx.all(
            _QUERIES["admit"],
            self._space,
            [one.lease.occurrence_id for one in places],
            [one.agent.agent_id for one in places],
            [one.agent.concurrent_max for one in places],
            [number for number, _ in refs],
            [table for _, (table, _) in refs],
            [record_id for _, (_, record_id) in refs],
            [number for number, _ in wanted],
            [one.mission_id for _, one in wanted],
            earlier,
        )
        return {
            OccurrenceId(row["occurrence_id"]): FoundRecords(
                row["records"], row["earlier"], row["named_at"] or ""
            )
            for row in rows
        }

    async def put_back(self, leases: Sequence[Lease], *, delay_ms: int, counted: bool) -> None:
        """Queue leased occurrences again. `counted`: the attempt was one."""
        await self._tx.execute(
            _QUERIES["put_back"],
            *_fenced(leases),
            timedelta(milliseconds=delay_ms),
            0 if counted else 1,
        )
        await Queue(self._tx).wake()

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
        """Return who may decide in the space, what it lifts, and what holds for the account.

        Ask for it after the records that it judges: then it knows who wrote them.
        """
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


def _held(rows: Sequence[Row]) -> Held:
    if not rows:
        return Held(frozenset(), frozenset(), None, 0)
    ids = frozenset(OccurrenceId(row["occurrence_id"]) for row in rows)
    stopped = frozenset(OccurrenceId(row["occurrence_id"]) for row in rows if row["stopped"])
    return Held(ids, stopped, rows[0]["role"], to_ms(rows[0]["now"]))


def _fenced(leases: Sequence[Lease]) -> tuple[list[str], list[int]]:
    return [lease.occurrence_id for lease in leases], [lease.fence for lease in leases]
