"""The changes that the hub refused: shown, sent again or forgotten, with their groups."""

from __future__ import annotations

import contextlib
from typing import Protocol

from mana.device.renewals import restamper
from mana.device.replica import OutboxRow, Replica, Tx
from mana.device.sealing import Sealer
from mana.device.syncer import Syncer
from mana.device.views import Notice, RefusedChange
from mana.device.words import refused_change_words
from mana.domain.clock import parse_stamp
from mana.domain.errors import ManaError, NotFound
from mana.domain.records import Record, View
from mana.domain.settings import USER_TABLES
from mana.protocol.messages import ChangeMessage
from mana.protocol.replication import Held, apply_change
from mana.registry.catalogue import Catalogue


class Book(Protocol):
    """The record book in which what was refused is shown."""

    @property
    def catalogue(self) -> Catalogue:
        """The tables that are installed."""

    @property
    def device_id(self) -> str:
        """The device that stamps."""

    def in_space(self, space_id: str) -> Book:
        """Return the book of another space."""

    async def view(self, table: str, record_id: str) -> View | None:
        """Return one record, opened."""


async def refused_changes(book: Book, replica: Replica, sealer: Sealer) -> list[RefusedChange]:
    """Return the changes that the hub refused, newest first."""
    rows = await replica.read(lambda tx: tx.refused())
    return [await _told(book, sealer, row) for row in reversed(rows)]


async def retry(
    book: Book, sealer: Sealer, syncer: Syncer, replica: Replica, change_id: str, *, now_ms: int
) -> None:
    """Send a refused change again, with its group."""
    anew = restamper(sealer, now_ms)

    def work(tx: Tx) -> None:
        rows = tx.refused_with(change_id)
        if not rows:
            raise NotFound("no refused change has this id")
        for space in {row.space for row in rows}:
            # It would wait for a sync that never comes, and be shown no more.
            tx.require_kept(space)
        if any(_is_outdated(book, row) for row in rows):
            tx.restamp(rows, anew, now_ms=now_ms)
            return
        for row in rows:
            tx.replace(row, row.message)

    await replica.write(work)
    await syncer.announce()
    syncer.say(Notice("sync"))
    syncer.wake()


async def drop(syncer: Syncer, replica: Replica, change_id: str) -> None:
    """Forget a refused change, with its group."""

    def work(tx: Tx) -> None:
        rows = tx.refused_with(change_id)
        if not rows:
            raise NotFound("no refused change has this id")
        tx.drop(rows)

    await replica.write(work)
    await syncer.announce()
    syncer.say(Notice("sync"))


def _is_outdated(book: Book, row: OutboxRow) -> bool:
    """Say whether a refused change needs another stamp or key before it is sent again."""
    stamps = [write.at for write in row.message.fields.values()]
    return row.code in ("clock-ahead", "stale-key") or any(
        parse_stamp(at).device != book.device_id for at in stamps
    )


async def _told(book: Book, sealer: Sealer, row: OutboxRow) -> RefusedChange:
    message = row.message
    title = ""
    with contextlib.suppress(ManaError):
        named = book.catalogue.table(message.table).title_field
        inside = book if message.table in USER_TABLES else book.in_space(row.space)
        view = await inside.view(message.table, message.id)
        if view is None:
            held = Held(_record_of(message))
            view = sealer.view(row.space, held.record)
        title = view.text(named) if named is not None else ""
    words = refused_change_words(row.code)
    return RefusedChange(
        message.change_id,
        message.table,
        message.id,
        title,
        row.code,
        words,
        row.refused_ms,
        row.space,
    )


def _record_of(message: ChangeMessage) -> Record:
    """Return the record that a change alone would make."""
    return apply_change(None, message, seq=None, guarded=lambda table, path: False).record
