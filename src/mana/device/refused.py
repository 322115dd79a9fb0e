"""The changes that the hub refused: shown, sent again or forgotten, with their groups."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mana.device.renewals import restamper
from mana.device.replica import OutboxRow, Tx
from mana.device.views import Notice, RefusedChange
from mana.device.words import refused_change_words
from mana.domain.clock import parse_stamp
from mana.domain.errors import ManaError, NotFound
from mana.domain.records import Record
from mana.domain.settings import USER_TABLES
from mana.protocol.messages import ChangeMessage
from mana.protocol.replication import Held, apply_change

if TYPE_CHECKING:
    from mana.device.records import RecordBook


async def refused_changes(book: RecordBook) -> list[RefusedChange]:
    """Return the changes that the hub refused, newest first."""
    rows = await book.inner().replica.read(lambda tx: tx.refused())
    return [await _told(book, row) for row in reversed(rows)]


async def retry(book: RecordBook, change_id: str, *, now_ms: int) -> None:
    """Send a refused change again, with its group."""
    anew = restamper(book.inner().sealer, now_ms)

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

    await book.inner().replica.write(work)
    await book.inner().syncer.announce()
    book.inner().syncer.say(Notice("sync"))
    book.inner().syncer.wake()


async def drop(book: RecordBook, change_id: str) -> None:
    """Forget a refused change, with its group."""

    def work(tx: Tx) -> None:
        rows = tx.refused_with(change_id)
        if not rows:
            raise NotFound("no refused change has this id")
        tx.drop(rows)

    await book.inner().replica.write(work)
    await book.inner().syncer.announce()
    book.inner().syncer.say(Notice("sync"))


def _is_outdated(book: RecordBook, row: OutboxRow) -> bool:
    """Say whether a refused change needs another stamp or key before it is sent again."""
    stamps = [write.at for write in row.message.fields.values()]
    return row.code in ("clock-ahead", "stale-key") or any(
        parse_stamp(at).device != book.device_id for at in stamps
    )


async def _told(book: RecordBook, row: OutboxRow) -> RefusedChange:
    message = row.message
    title = ""
    with contextlib.suppress(ManaError):
        named = book.catalogue.table(message.table).title_field
        inside = book if message.table in USER_TABLES else book.in_space(row.space)
        view = await inside.view(message.table, message.id)
        if view is None:
            held = Held(_record_of(message))
            view = book.inner().sealer.view(row.space, held.record)
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
