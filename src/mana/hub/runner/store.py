"""The ledger of occurrences, the snapshots, the audit and the use of tokens, in PostgreSQL.

`Ledger` works inside a transaction that someone opened for an account; `RunnerStore` opens
them, and has the one door across accounts, to what is due. All times are the database's.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec

from mana.domain.cadences import MANUAL, Cadence, cadence_from_wire
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.ids import AccountId, AgentId, GrantId, MissionId, OccurrenceId, SpaceId
from mana.domain.occurrences import LEASES_MAX, MISSED_KEPT_MAX
from mana.hub.accounts.store import devices_answer
from mana.hub.db import (
    Isolation,
    Pool,
    Role,
    Row,
    Tenancy,
    Transaction,
    load_queries,
    retried,
)
from mana.hub.runner.ledger import (
    AgentSnapshot,
    AuditFilter,
    Lease,
    MissionSnapshot,
    OccurrenceKind,
    RegisteredGrant,
)
from mana.hub.tenants import Tenant
from mana.protocol.messages import (
    AuditRow,
    DevicesAnswer,
    OccurrenceInfo,
    SignedEntry,
    StateRecord,
)

__all__ = ["DUE", "LIVE", "Ledger", "RunnerStore", "Transaction"]

_T = TypeVar("_T")

DUE: Final = "mana_due"
LIVE: Final = "mana_live"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_QUERIES: Final = load_queries("mana.hub.runner")


def to_ms(moment: datetime) -> int:
    """Return the whole milliseconds since 1970 of a moment of the database."""
    return (moment - _EPOCH) // _MS


def from_ms(wall_ms: int) -> datetime:
    """Return the moment of these milliseconds, exactly."""
    return _EPOCH + timedelta(milliseconds=wall_ms)


class Ledger:
    """The statements about missions and their runs, within one open transaction."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx

    async def now_ms(self) -> int:
        """Return the database's clock."""
        return to_ms(await self.tx.value(_QUERIES["now"]))

    async def mission(
        self, space: SpaceId, mission: MissionId, *, lock: bool = False
    ) -> MissionSnapshot | None:
        """Return what the hub knows of a mission. `lock`: until the transaction ends."""
        name = "mission_locked" if lock else "mission"
        row = await self.tx.one(_QUERIES[name], space, mission)
        return None if row is None else _mission(row)

    async def missions(self) -> list[MissionSnapshot]:
        """Return the missions of all spaces of the account."""
        return [_mission(row) for row in await self.tx.all(_QUERIES["missions"])]

    async def put_mission(self, mission: MissionSnapshot) -> None:
        """Write a snapshot."""
        await self.tx.execute(
            _QUERIES["put_mission"],
            mission.space_id,
            mission.mission_id,
            mission.account_id,
            mission.state,
            mission.cadence.to_wire(),
            mission.time_zone,
            mission.agent_id,
            mission.runs_on,
            mission.anchor_ms,
            mission.deleted,
            None if mission.next_run_ms is None else from_ms(mission.next_run_ms),
            mission.hold,
        )

    async def set_schedule(
        self, mission: MissionSnapshot, *, next_run_ms: int | None, hold: str | None
    ) -> None:
        """Write where a mission's schedule stands."""
        await self.tx.execute(
            _QUERIES["set_schedule"],
            mission.space_id,
            mission.mission_id,
            None if next_run_ms is None else from_ms(next_run_ms),
            hold,
            mission.account_id,
        )

    async def agent(self, space: SpaceId, agent: AgentId) -> AgentSnapshot | None:
        """Return what the hub knows of an agent."""
        row = await self.tx.one(_QUERIES["agent"], space, agent)
        return None if row is None else _agent(row)

    async def put_agent(self, agent: AgentSnapshot) -> None:
        """Write a snapshot."""
        await self.tx.execute(
            _QUERIES["put_agent"],
            agent.space_id,
            agent.agent_id,
            agent.account_id,
            agent.state,
            agent.tokens_per_day_max,
            agent.concurrent_max,
            agent.deleted,
        )

    async def lock_agent(self, space: SpaceId, agent: AgentId) -> None:
        """Let no other transaction count this agent's runs or tokens until this one ends."""
        await self.tx.value(_QUERIES["lock_agent"], f"{space}:{agent}")

    async def role(self, space: SpaceId, account: AccountId) -> str | None:
        """Return the role of an account in a space, None if it is no member."""
        role: str | None = await self.tx.value(_QUERIES["role"], space, account)
        return role

    async def enqueue(
        self, mission: MissionSnapshot, scheduled_ms: int, kind: OccurrenceKind
    ) -> str:
        """Queue an occurrence unless it is in the ledger; return the state it has there."""
        state: str = await self.tx.value(
            _QUERIES["enqueue"],
            mission.space_id,
            mission.mission_id,
            mission.account_id,
            mission.agent_id,
            from_ms(scheduled_ms),
            kind,
        )
        await self.tx.value(_QUERIES["notify_due"], DUE)
        return state

    async def add_missed(self, mission: MissionSnapshot, moments: Sequence[int]) -> None:
        """Write due moments that passed while nothing could run; keep the newest hundred."""
        await self.tx.execute(
            _QUERIES["add_missed"],
            mission.space_id,
            mission.mission_id,
            mission.account_id,
            mission.agent_id,
            [from_ms(moment) for moment in moments],
        )
        await self.tx.execute(
            _QUERIES["trim_missed"], mission.space_id, mission.mission_id, MISSED_KEPT_MAX
        )

    async def cancel_queued(self, space: SpaceId, mission: MissionId, *, manual_too: bool) -> None:
        """Remove what is queued and will not happen."""
        kinds = ["scheduled", "manual"] if manual_too else ["scheduled"]
        await self.tx.execute(_QUERIES["cancel_queued"], space, mission, kinds)

    async def runs_as(self, space: SpaceId, mission: MissionId, account: AccountId) -> None:
        """Let queued occurrences run under the account that granted."""
        await self.tx.execute(_QUERIES["runs_as"], space, mission, account)

    async def last_scheduled_ms(self, space: SpaceId, mission: MissionId) -> int | None:
        """Return the newest scheduled moment in the ledger that is not queued."""
        found = await self.tx.value(_QUERIES["last_scheduled"], space, mission)
        return None if found is None else to_ms(found)

    async def queued_ms(self, space: SpaceId, mission: MissionId) -> int | None:
        """Return the scheduled moment that is queued or worked on, None if there is none."""
        found = await self.tx.value(_QUERIES["queued"], space, mission)
        return None if found is None else to_ms(found)

    async def occurrences(
        self, space: SpaceId, mission: MissionId, limit: int
    ) -> list[OccurrenceInfo]:
        """Return the newest lines of a mission's ledger."""
        rows = await self.tx.all(_QUERIES["occurrences"], space, mission, limit)
        return [_occurrence(row) for row in rows]

    async def occurrence_at(
        self, space: SpaceId, mission: MissionId, scheduled_ms: int
    ) -> OccurrenceInfo | None:
        """Return the one occurrence of a moment."""
        row = await self.tx.one(_QUERIES["occurrence_at"], space, mission, from_ms(scheduled_ms))
        return None if row is None else _occurrence(row)

    async def tokens_today(self) -> dict[str, int]:
        """Return the tokens of the last 24 hours by agent, reservations counted in full."""
        rows = await self.tx.all(_QUERIES["tokens_today"])
        return {row["agent_id"]: int(row["spent"]) for row in rows}

    async def audit_rows(
        self, wanted: AuditFilter, *, before: int | None, limit: int
    ) -> list[AuditRow]:
        """Return rows of the account's audit, newest first."""
        rows = await self.tx.all(
            _QUERIES["audit_rows"],
            wanted.mission,
            wanted.table,
            wanted.status,
            wanted.since,
            wanted.until,
            before,
            limit,
        )
        return [msgspec.convert(_audit(row), AuditRow) for row in rows]

    async def audit_head(self, account: AccountId) -> tuple[int, str] | None:
        """Return number and hash of the last row of an account's audit."""
        row = await self.tx.one(_QUERIES["audit_head"], account)
        return None if row is None else (row["seq"], row["hash"])

    # What follows is the runner's, and its role alone has the rights for it.

    async def holds(self, lease: Lease) -> bool:
        """Say whether this lease is the current one, and keep it so in this transaction."""
        return bool(await self.tx.value(_QUERIES["holds"], lease.occurrence_id, lease.fence))

    async def admit(self, lease: Lease, agent: AgentId, limit: int) -> bool:
        """Count this run as one of its agent's, unless as many as allowed run already."""
        await self.lock_agent(lease.space_id, agent)
        return bool(
            await self.tx.value(
                _QUERIES["admit"], lease.occurrence_id, lease.fence, lease.space_id, agent, limit
            )
        )

    async def wake(self) -> None:
        """Tell the runners that something is to be looked at, when this transaction commits."""
        await self.tx.value(_QUERIES["notify_due"], DUE)

    async def put_back(self, lease: Lease, *, delay_ms: int, counted: bool) -> bool:
        """Queue a leased occurrence again. `counted`: the attempt was one."""
        done = await self.tx.execute(
            _QUERIES["put_back"],
            lease.occurrence_id,
            lease.fence,
            timedelta(milliseconds=delay_ms),
            0 if counted else 1,
        )
        await self.tx.value(_QUERIES["notify_due"], DUE)
        return done == 1

    async def end(
        self,
        lease: Lease,
        state: str,
        *,
        reason: str | None = None,
        iteration_id: str | None = None,
    ) -> bool:
        """End the occurrence if this lease is still the current one."""
        ended = await self.tx.execute(
            _QUERIES["end"], lease.occurrence_id, lease.fence, state, reason, iteration_id
        )
        if ended:
            await self.tx.value(_QUERIES["notify_live"], LIVE, lease.space_id, lease.mission_id)
        return ended == 1

    async def lease_at(
        self,
        lease: Lease,
        mission: MissionSnapshot,
        scheduled_ms: int,
        *,
        worker: str,
        lease_s: int,
    ) -> Lease | None:
        """Lease another moment of the same mission, not yet in the ledger, at once."""
        row = await self.tx.one(
            _QUERIES["lease_at"],
            lease.space_id,
            lease.mission_id,
            lease.account_id,
            mission.agent_id,
            from_ms(scheduled_ms),
            worker,
            timedelta(seconds=lease_s),
        )
        return None if row is None else _lease(row)

    async def latest_grant(
        self, space: SpaceId, mission: MissionId, *, lock: bool = False
    ) -> RegisteredGrant | None:
        """Return the newest grant of a mission that was completed; `lock`: it cannot end now."""
        name = "latest_grant_locked" if lock else "latest_grant"
        row = await self.tx.one(_QUERIES[name], space, mission)
        return None if row is None else registered_grant(row)

    async def expire_grant(self, grant: GrantId) -> None:
        """End a grant whose time has passed, and erase its sealed keys."""
        await self.tx.execute(_QUERIES["expire_grant"], grant)

    async def membership_log(self, space: SpaceId) -> list[SignedEntry]:
        """Return the signed entries of a space, oldest first."""
        rows = await self.tx.all(_QUERIES["membership_log"], space)
        return [SignedEntry(entry=row["entry"], signature=row["signature"]) for row in rows]

    async def devices(self, space: SpaceId) -> DevicesAnswer:
        """Return the certificates of the devices of a space's members, and which are revoked."""
        return devices_answer(await self.tx.all(_QUERIES["devices"], space))

    async def records(self, space: SpaceId, keys: Sequence[tuple[str, str]]) -> list[StateRecord]:
        """Return these records as they are sealed; those that are not there are left out."""
        rows = await self.tx.all(
            _QUERIES["records"], space, [table for table, _ in keys], [key for _, key in keys]
        )
        return [_record(row) for row in rows]

    async def history(self, space: SpaceId, mission: MissionId, limit: int) -> list[StateRecord]:
        """Return a mission's newest iterations and their steps, sealed."""
        rows = await self.tx.all(_QUERIES["history"], space, mission, limit)
        return [_record(row) for row in rows]

    async def records_of(self, space: SpaceId, tables: Sequence[str]) -> list[StateRecord]:
        """Return all records of some tables."""
        rows = await self.tx.all(_QUERIES["records_of"], space, list(tables))
        return [_record(row) for row in rows]

    async def spent(self, space: SpaceId, agent: AgentId) -> int:
        """Return an agent's tokens of the last 24 hours, open reservations in full."""
        return int(await self.tx.value(_QUERIES["spent"], space, agent))

    async def reserve(self, lease: Lease, agent: AgentId, tokens: int) -> str:
        """Write a reservation and return its id."""
        usage: str = await self.tx.value(
            _QUERIES["reserve"],
            lease.account_id,
            lease.space_id,
            agent,
            lease.mission_id,
            lease.occurrence_id,
            tokens,
        )
        return usage

    async def settle(self, usage_id: str, prompt: int, completion: int) -> None:
        """Replace a reservation by what was used."""
        await self.tx.execute(_QUERIES["settle"], usage_id, prompt, completion)

    async def lock_audit_head(self, account: AccountId, start: str) -> tuple[int, str]:
        """Return the head of the account's audit, made with `start` if new, and lock it."""
        await self.tx.execute(_QUERIES["found_audit"], account, start)
        row = await self.tx.one(_QUERIES["audit_head_locked"], account)
        if row is None:
            raise Invalid("the audit has no head")
        return row["seq"], row["hash"]

    async def audit_hash(self, account: AccountId, seq: int) -> str | None:
        """Return the hash of one row of an account's audit."""
        found: str | None = await self.tx.value(_QUERIES["audit_hash"], account, seq)
        return found

    async def append_audit(self, account: AccountId, rows: Sequence[AuditRow]) -> None:
        """Append rows and move the head to the last of them."""
        await self.tx.execute_many(
            _QUERIES["append_audit"],
            [
                (
                    account,
                    row.seq,
                    row.mission_id,
                    row.iteration_id,
                    row.grant_id,
                    row.table_name,
                    row.record_id,
                    row.status,
                    row.reason,
                    row.endpoint,
                    row.runner_key_id,
                    row.ts,
                    row.previous,
                    row.hash,
                )
                for row in rows
            ],
        )
        await self.tx.execute(_QUERIES["move_audit_head"], account, rows[-1].seq, rows[-1].hash)


class RunnerStore:
    """Opens the runner's transactions: for one account, or to look at what is due."""

    def __init__(self, tenancy: Tenancy, pool: Pool | None = None) -> None:
        self._tenancy = tenancy
        self._pool = pool

    @classmethod
    def at(cls, url: str, *, role: Role = Role.RUNNER, size: int = 8) -> RunnerStore:
        """Return a store at a database's address; `open` it before use."""
        pool = Pool(url, role=role, size=size)
        return cls(Tenancy(pool), pool)

    async def open(self) -> None:
        """Connect."""
        if self._pool is not None:
            await self._pool.open()

    async def close(self) -> None:
        """Disconnect."""
        if self._pool is not None:
            await self._pool.close()

    async def listen(self, callback: Callable[[str], None]) -> None:
        """Call back when something became due, until closed."""
        if self._pool is not None:
            await self._pool.listen(DUE, callback)

    @contextlib.asynccontextmanager
    async def work(
        self, account: str, *, isolation: Isolation = Isolation.READ_COMMITTED
    ) -> AsyncIterator[Ledger]:
        """Open a transaction for one account."""
        async with self._tenancy.transaction(Tenant(AccountId(account)), isolation=isolation) as tx:
            yield Ledger(tx)

    async def again(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Run a whole transaction again while another one came first."""
        return await retried(work)

    async def lease(self, worker: str, limit: int, *, lease_s: int) -> list[Lease]:
        """Lease what is due or was left by a runner that ended; others pass over it."""
        async with self._tenancy.lease() as tx:
            rows = await tx.all(
                _QUERIES["lease"], worker, limit, timedelta(seconds=lease_s), LEASES_MAX
            )
        return [_lease(row) for row in rows]

    async def end_grants(self) -> dict[str, int]:
        """End grants whose time has come, in every account, and erase their sealed keys.

        Returns those that ended before their time, each with its signed end in milliseconds.
        """
        async with self._tenancy.lease() as tx:
            rows = await tx.all(_QUERIES["ended_grants"])
        return {row["grant_id"]: to_ms(row["expires_at"]) for row in rows}

    async def crashed(self, limit: int) -> list[Lease]:
        """Return what was leased as often as allowed, and never ended."""
        async with self._tenancy.lease() as tx:
            rows = await tx.all(_QUERIES["crashed"], limit, LEASES_MAX)
        return [_lease(row) for row in rows]

    async def renew(self, lease: Lease, *, lease_s: int) -> bool:
        """Prolong a lease; False: it is another's by now."""
        async with self._tenancy.lease() as tx:
            done = await tx.execute(
                _QUERIES["renew"], lease.occurrence_id, lease.fence, timedelta(seconds=lease_s)
            )
        return done == 1

    async def phase(self, lease: Lease, name: str) -> None:
        """Write how far a run is."""
        async with self._tenancy.lease() as tx:
            await tx.execute(_QUERIES["phase"], lease.occurrence_id, lease.fence, name)

    async def wait_ms(self) -> int | None:
        """Return how long until the next occurrence is due or a lease ends; None: nothing is."""
        async with self._tenancy.lease() as tx:
            found = await tx.value(_QUERIES["wait"])
        return None if found is None else max(0, int(found))


def registered_grant(row: Row) -> RegisteredGrant:
    """Return a grant of a row of the register."""
    ended = row["ended_at"]
    return RegisteredGrant(
        grant_id=GrantId(row["grant_id"]),
        account_id=AccountId(row["account_id"]),
        space_id=SpaceId(row["space_id"]),
        mission_id=MissionId(row["mission_id"]),
        agent_id=AgentId(row["agent_id"]),
        header=row["header"],
        suite=row["suite"],
        runner_key_id=row["runner_key_id"],
        state=row["state"],
        expired=row["expired"],
        expires_ms=to_ms(row["expires_at"]),
        created_ms=to_ms(row["created_at"]),
        ended_ms=None if ended is None else to_ms(ended),
        wrapped_key=row["wrapped_key"],
        sealed_keys=row["sealed_keys"],
        signer=row["signer"],
        signature=row["signature"],
        hub_signature=row["hub_signature"],
        wrapped_key_hash=row["wrapped_key_hash"],
        sealed_keys_hash=row["sealed_keys_hash"],
        revoker=row["revoker"],
        revocation=row["revocation"],
    )


def _cadence(value: Json) -> Cadence:
    try:
        return MANUAL if value is None else cadence_from_wire(value)
    except Invalid:
        return MANUAL


def _mission(row: Row) -> MissionSnapshot:
    next_run = row["next_run_at"]
    return MissionSnapshot(
        space_id=SpaceId(row["space_id"]),
        mission_id=MissionId(row["mission_id"]),
        account_id=AccountId(row["account_id"]),
        state=row["state"],
        cadence=_cadence(row["cadence"]),
        time_zone=row["time_zone"],
        agent_id=None if row["agent_id"] is None else AgentId(row["agent_id"]),
        runs_on=row["runs_on"],
        anchor_ms=row["anchor_ms"],
        deleted=row["deleted"],
        next_run_ms=None if next_run is None else to_ms(next_run),
        hold=row["hold"],
    )


def _agent(row: Row) -> AgentSnapshot:
    return AgentSnapshot(
        space_id=SpaceId(row["space_id"]),
        agent_id=AgentId(row["agent_id"]),
        account_id=AccountId(row["account_id"]),
        state=row["state"],
        tokens_per_day_max=row["max_tokens_per_day"],
        concurrent_max=row["max_concurrent_missions"],
        deleted=row["deleted"],
    )


def _lease(row: Row) -> Lease:
    return Lease(
        occurrence_id=OccurrenceId(row["occurrence_id"]),
        space_id=SpaceId(row["space_id"]),
        mission_id=MissionId(row["mission_id"]),
        account_id=AccountId(row["account_id"]),
        kind=row["kind"],
        scheduled_ms=to_ms(row["scheduled_for"]),
        fence=row["fence"],
        attempts=row["attempts"],
    )


def _moment(value: datetime | None) -> str | None:
    return None if value is None else iso_ms(to_ms(value))


def _occurrence(row: Row) -> OccurrenceInfo:
    return OccurrenceInfo(
        occurrence_id=row["occurrence_id"],
        mission_id=row["mission_id"],
        scheduled_for=iso_ms(to_ms(row["scheduled_for"])),
        kind=row["kind"],
        state=row["state"],
        reason=row["reason"],
        iteration_id=row["iteration_id"],
        tokens=row["tokens"],
        started_at=_moment(row["started_at"]),
        finished_at=_moment(row["finished_at"]),
        phase=row["phase"],
    )


def _record(row: Row) -> StateRecord:
    wire: dict[str, Any] = {
        "table": row["table_name"],
        "id": row["record_id"],
        "authorId": row["author_id"],
        "visibility": row["visibility"],
        "seq": row["seq"],
        "fields": row["fields"],
        "proofs": row["proofs"],
    }
    return msgspec.convert(wire, StateRecord)


def _audit(row: Row) -> dict[str, Any]:
    return {
        "seq": row["seq"],
        "missionId": row["mission_id"],
        "iterationId": row["iteration_id"],
        "grantId": row["grant_id"],
        "tableName": row["table_name"],
        "recordId": row["record_id"],
        "status": row["status"],
        "reason": row["reason"],
        "endpoint": row["endpoint"],
        "runnerKeyId": row["runner_key_id"],
        "ts": row["ts"],
        "previous": row["previous"],
        "hash": row["hash"],
    }
