"""Rows of sync: the log, the merged state, and the head under which both move together.

`ChangeLog.append` works inside a transaction that is open already, so that the runner's finish
and a device's push are the same few statements.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from mana.crypto.primitives import unb64
from mana.crypto.signatures import VerifyKey
from mana.domain.clock import iso_ms
from mana.domain.errors import Forbidden, Invalid, NotFound
from mana.domain.ids import AccountId, SpaceId, require_record_id, require_uuid
from mana.domain.tables import Table
from mana.hub.db import (
    AccessRefused,
    Isolation,
    Row,
    Tenancy,
    Transaction,
    load_queries,
    retried,
)
from mana.hub.sync.apply import Batch, Logged, MergedRecord, RecordRef, apply_batch, ref_of
from mana.hub.sync.rows import (
    StoredRecord,
    columns_of,
    log_row_of,
    logged_of,
    merged_of,
    row_of,
    state_answer,
)
from mana.hub.sync.validate import Place, Writer, WriterKind
from mana.hub.tenants import Tenant
from mana.protocol.errors import HubBehind
from mana.protocol.messages import (
    SCHEMA_VERSION,
    STATE_PAGE,
    ChangeMessage,
    HiddenRecord,
    PullAnswer,
    PushAnswer,
)

Q: Final = load_queries("mana.hub.sync")
CHANNEL: Final = "mana_live"
PAGE_BYTES_MAX: Final = 4 * 1_024 * 1_024
"""Bytes of values in the rows of one page, the last row apart; so what a reader costs is bounded."""
_KNOWN: Final = msgspec.json.Decoder(list[tuple[str, int, str, str, bool]])
_STANDING: Final = msgspec.json.Decoder(list[StoredRecord])


class DeviceUnknown(Forbidden):
    """The device is not registered to this account."""

    code = "DEVICE_UNKNOWN"
    advice = "Register the device with its certificate, then send again."


class Projection(Protocol):
    """Keeps rows of its own in step with the records, in the transaction that moves them."""

    async def project(
        self,
        tx: Transaction,
        space_id: SpaceId,
        account_id: AccountId,
        merged: Sequence[MergedRecord],
        *,
        now_ms: int,
    ) -> None:
        """Take in the records that a batch touched, as they stand after it."""


class ChangeLog:
    """Appends batches of changes within a tenant's transaction."""

    def __init__(self, tables: Mapping[str, Table], projections: Sequence[Projection] = ()) -> None:
        self._tables = tables
        self._projections = tuple(projections)

    async def append(
        self,
        tx: Transaction,
        space_id: SpaceId,
        writer: Writer,
        changes: Sequence[ChangeMessage],
        *,
        now_ms: int,
        seen: int = 0,
        asks_for_taken: bool = True,
    ) -> PushAnswer:
        """Refuse or append each change; raise NotFound where the account is no member.

        `seen`: the last place in the log that the writer knows; raise HubBehind if there is no
        such place. Without `asks_for_taken` ids are not asked for before they are used: if one is
        another member's hidden record's, raise AccessRefused. The space's head is locked until the
        transaction ends: keep what follows short.
        """
        if tx.locked != space_id:
            await tx.value(Q["lock"], space_id)
        # Read after the wait for the lock, in a statement of its own: where the log ended and who
        # was a member when the wait began need not hold now.
        refs = _refs_of(changes, self._tables)
        ids = [change.change_id for change in changes if _is_uuid(change.change_id)]
        row = await tx.one(Q["survey"], space_id, writer.device_id, ids, *_split(refs))
        if row is None:
            raise NotFound("there is no such space here")
        head = row["head"]
        _require_seen(head, seen)
        place = Place(
            space_id=space_id,
            type=row["type"],
            key_version=row["key_version"],
            role=row["role"],
            device_key=_device_key(writer, row["device_key"]),
            now_ms=now_ms,
        )
        known = {
            change_id: Logged(seq, (table, record_id), own=own)
            for change_id, seq, table, record_id, own in _KNOWN.decode(row["known"] or "[]")
        }
        standing = {
            (stored.table_name, stored.record_id): merged_of(stored)
            for stored in _STANDING.decode(row["standing"] or "[]")
        }
        missing = [ref for ref in refs if ref not in standing]
        # In a space that was ever shared, one who left may have private records still.
        taken = frozenset[RecordRef]()
        if missing and asks_for_taken and not row["alone"]:
            taken = await _taken(tx, space_id, missing)
        batch = apply_batch(
            changes,
            tables=self._tables,
            writer=writer,
            place=place,
            head=head,
            known=known,
            standing=standing,
            taken=taken,
        )
        if batch.accepted:
            await self._write(tx, space_id, writer, batch, now_ms=now_ms)
        return PushAnswer(results=list(batch.results), cursor=batch.head, hub_time=iso_ms(now_ms))

    async def _write(
        self, tx: Transaction, space_id: SpaceId, writer: Writer, batch: Batch, *, now_ms: int
    ) -> None:
        tables = self._tables
        log = [log_row_of(accepted, tables[accepted.change.table]) for accepted in batch.accepted]
        merged = list(batch.records.values())
        now = datetime.fromtimestamp(now_ms // 1_000, UTC) + timedelta(milliseconds=now_ms % 1_000)
        await tx.one(
            Q["write"],
            space_id,
            batch.head,
            writer.device_id,
            now,
            SCHEMA_VERSION,
            *columns_of(log),
            *columns_of([row_of(record) for record in merged]),
            f"{space_id}:{batch.head}",
            len(log),
        )
        await self._flip(tx, space_id, [record for record in merged if record.flipped])
        for projection in self._projections:
            await projection.project(tx, space_id, writer.account, merged, now_ms=now_ms)

    async def _flip(
        self, tx: Transaction, space_id: SpaceId, flipped: Sequence[MergedRecord]
    ) -> None:
        """Keep who sees these records, and which of them the other members are to drop."""
        if not flipped:
            return
        tables = [one.record.table for one in flipped]
        ids = [one.record.id for one in flipped]
        await tx.execute(
            Q["flip"], space_id, tables, ids, [one.record.visibility for one in flipped]
        )
        await tx.execute(Q["show"], space_id, tables, ids)
        hidden = [one for one in flipped if one.record.visibility == "private"]
        await tx.execute(
            Q["hide"],
            space_id,
            [one.record.table for one in hidden],
            [one.record.id for one in hidden],
            [one.flipped for one in hidden],
        )


class SyncStore:
    """Opens the transactions of push, pull and state."""

    def __init__(self, tenancy: Tenancy, log: ChangeLog) -> None:
        self._tenancy = tenancy
        self._log = log

    async def push(
        self,
        tenant: Tenant,
        space_id: SpaceId,
        writer: Writer,
        changes: Sequence[ChangeMessage],
        *,
        now_ms: int,
        seen: int = 0,
    ) -> PushAnswer:
        """Append a batch in a transaction of its own, again if another one came in between."""

        async def once(*, asks_for_taken: bool) -> PushAnswer:
            async with self._tenancy.transaction(tenant, space=space_id, locked=True) as tx:
                return await self._log.append(
                    tx,
                    space_id,
                    writer,
                    changes,
                    now_ms=now_ms,
                    seen=seen,
                    asks_for_taken=asks_for_taken,
                )

        try:
            return await retried(partial(once, asks_for_taken=False))
        except AccessRefused:
            # Row-level security does not write over a row that it hides. That an id is taken is
            # rare, and to ask for every new one costs as much as to write it.
            return await retried(partial(once, asks_for_taken=True))

    async def pull(
        self, tenant: Tenant, space_id: SpaceId, *, after: int, limit: int, now_ms: int
    ) -> PullAnswer:
        """Return the changes after a cursor, in order and without a gap; raise HubBehind."""
        async with self._reading(tenant, space_id) as tx:
            head = await _head(tx, space_id)
            _require_seen(head, after)
            if after == head:
                return PullAnswer(changes=[], cursor=head, hub_time=iso_ms(now_ms))
            found = await tx.all(
                Q["changes_after"], space_id, after, head, limit + 1, PAGE_BYTES_MAX
            )
            rows = _page(found, limit, "data")
            more = len(rows) < len(found)
            # Up to the head, what is missing is another member's private record: pass over it.
            cursor = rows[-1]["seq"] if more else head
            hidden = await tx.all(Q["hidden_within"], space_id, after, cursor, limit + 1)
        if len(hidden) > limit:
            more, cursor = True, hidden[limit - 1]["seq"]
        return PullAnswer(
            changes=[logged_of(row) for row in rows if row["seq"] <= cursor],
            cursor=cursor,
            hub_time=iso_ms(now_ms),
            more=more,
            hidden=[
                HiddenRecord(seq=row["seq"], table=row["table_name"], id=row["record_id"])
                for row in hidden
                if row["seq"] <= cursor
            ],
        )

    async def state(
        self, tenant: Tenant, space_id: SpaceId, *, page: str | None, now_ms: int
    ) -> bytes:
        """Return a page of the merged records, a `StateAnswer`; the head is read before them."""
        table, _, record_id = (page or "").partition("~")
        async with self._reading(tenant, space_id) as tx:
            head = await _head(tx, space_id)
            found = await tx.all(
                Q["state_page"], space_id, table, record_id, STATE_PAGE + 1, PAGE_BYTES_MAX
            )
        rows = _page(found, STATE_PAGE, "body")
        last = rows[-1] if len(rows) < len(found) else None
        return state_answer(
            [row["body"] for row in rows],
            head=head,
            hub_time=iso_ms(now_ms),
            following=None if last is None else f"{last['table_name']}~{last['record_id']}",
        )

    async def state_of(
        self, tenant: Tenant, space_id: SpaceId, table: str, record_id: str, *, now_ms: int
    ) -> bytes:
        """Return one merged record, or none, as a `StateAnswer`; the head is read before it."""
        async with self._reading(tenant, space_id) as tx:
            head = await _head(tx, space_id)
            # A malformed name cannot be a row's, and some cannot even be asked for.
            asked = _is_record_id(table) and _is_record_id(record_id)
            rows = await tx.all(Q["state_of"], space_id, table, record_id) if asked else []
        return state_answer([row["body"] for row in rows], head=head, hub_time=iso_ms(now_ms))

    def _reading(
        self, tenant: Tenant, space_id: SpaceId
    ) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction that reads of one moment.

        Whoever is put out of the space between the head and the rows would else be told that
        there is nothing up to the head; when they join again they would go on from there.
        """
        return self._tenancy.transaction(tenant, isolation=Isolation.ONE_MOMENT, space=space_id)

    async def heads(self, tenant: Tenant) -> dict[SpaceId, int]:
        """Return the spaces of the account, with their heads."""
        async with self._tenancy.transaction(tenant) as tx:
            return {SpaceId(row["space_id"]): row["seq"] for row in await tx.all(Q["heads"])}


def _page(rows: Sequence[Row], limit: int, body: str) -> Sequence[Row]:
    """Return the rows of one page: at most `limit`, and those whose body the query still gave."""
    return list(itertools.takewhile(lambda row: row[body] is not None, rows[:limit]))


class _TakenBack(Exception):
    pass


def _refs_of(changes: Sequence[ChangeMessage], tables: Mapping[str, Table]) -> list[RecordRef]:
    """Return the records that the changes are about, each once."""
    # A malformed name cannot be a row's, and some cannot even be asked for.
    return sorted(
        {
            ref_of(change)
            for change in changes
            if change.table in tables and _is_record_id(change.id)
        }
    )


def _split(refs: Sequence[RecordRef]) -> tuple[list[str], list[str]]:
    return [ref[0] for ref in refs], [ref[1] for ref in refs]


def _device_key(writer: Writer, found: str | None) -> VerifyKey | None:
    if writer.kind is WriterKind.RUNNER:
        return None
    if found is None:
        raise DeviceUnknown("this device is not registered to the account")
    return VerifyKey(unb64(found))


async def _taken(
    tx: Transaction, space_id: SpaceId, missing: Sequence[RecordRef]
) -> frozenset[RecordRef]:
    """Return which of these records exist and are hidden from us.

    Another member's private record bears an id that we may not learn of otherwise. Try to claim
    the ids and take it back: what could not be claimed is taken.
    """
    claimed: set[RecordRef] = set()
    try:
        async with tx.savepoint():
            rows = await tx.all(Q["claim"], space_id, *_split(missing))
            claimed.update((row["table_name"], row["record_id"]) for row in rows)
            raise _TakenBack
    except _TakenBack:
        return frozenset(missing) - claimed


async def _head(tx: Transaction, space_id: SpaceId) -> int:
    head: Any = await tx.value(Q["head"], space_id)
    if head is None:
        raise NotFound("there is no such space here")
    return int(head)


def _require_seen(head: int, seen: int) -> None:
    if seen > head:
        raise HubBehind(
            "the log of the space ends before what was seen of it",
            detail={"head": head, "seen": seen},
        )


def _is_record_id(text: str) -> bool:
    try:
        require_record_id(text)
    except Invalid:
        return False
    return True


def _is_uuid(text: str) -> bool:
    try:
        require_uuid(text, "change id")
    except Invalid:
        return False
    return True
