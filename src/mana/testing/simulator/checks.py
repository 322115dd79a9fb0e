"""What must hold in the end: when the network is well again and everything has been said.

Each check raises `Broken`. `settle` brings the world to rest first, and breaks if that takes more
rounds than it ever should.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from mana.device.records import RecordBook
from mana.device.replica import OutboxRow, Tx
from mana.domain.encoding import Json
from mana.domain.errors import ManaError
from mana.domain.records import Record
from mana.domain.spaces import MEMBER_NAMES, can_write
from mana.testing.simulator.ledger import (
    SECRET,
    Broken,
    Ref,
    SpaceFacts,
    Standing,
    Written,
    paths_of,
    version_of,
)
from mana.testing.simulator.machines import Here, Machine
from mana.testing.simulator.network import Weather
from mana.testing.simulator.world import World

ROUNDS_MAX: Final = 25
QUIET: Final = 2
"""After so many rounds in which nothing moved the world is at rest."""
PARKED: Final = frozenset(
    {
        "guard-failed",
        "group-refused",
        "fixed-field",
        "flip-outdated",
        "immutable",
        "role",
        "hidden",
        "not-a-member",
    }
)
"""Why a change may stay refused: somebody was first, or had the right to say no."""


async def settle(world: World) -> int:
    """Let everything be sent and read; return after how many rounds nothing moved any more."""
    world.network.weather = Weather()
    world.network.hub_down_until_ms = 0
    for machine in world.machines:
        machine.offline_until_s = 0.0
        if world.schedule.mends_clocks:
            machine.jumped_ms = -machine.clock.offset_ms
    # What wanders about arrives before the end.
    await asyncio.sleep(max(0.0, world.network.wandering_until_s - world.loop.time()) + 1)
    quiet = 0
    before: object = None
    troubles: dict[str, str] = {}
    for number in range(1, ROUNDS_MAX + 1):
        world.say(f"round {number}")
        troubles = {}
        for machine in world.machines:
            for running in tuple(machine.running) or (machine.start(),):
                try:
                    here = await running.here
                    await running.process.spawn(_work(here))
                except ManaError as error:
                    troubles[machine.name] = error.code
                    if running.here.done() and running.here.exception() is not None:
                        machine.running.remove(running)
        world.check()
        now = await _facts(world)
        quiet = quiet + 1 if now == before and not troubles else 0
        before = now
        if quiet == QUIET:
            return number
        await asyncio.sleep(60)
    raise Broken("stall", f"not at rest after {ROUNDS_MAX} rounds: {troubles or before}")


async def _work(here: Here) -> None:
    await here.book.sync_now()
    while await here.resealing.once():
        pass


async def _facts(world: World) -> object:
    """Return what moves while something is still to be said."""
    heads = {name: len(facts.rows) for name, facts in world.ledger.spaces.items()}
    logs = {name: len(facts.entries) for name, facts in world.ledger.spaces.items()}
    places = {}
    for machine in world.machines:
        for running in machine.running:
            replica = (await running.here).book.inner().replica
            places[running.process.name] = await replica.read(
                lambda tx: (tx.counts(), tuple((s.space, s.cursor) for s in tx.spaces()))
            )
    return heads, logs, places


async def check_all(world: World) -> None:
    """Check every promise on the world at rest."""
    outboxes: dict[str, list[OutboxRow]] = {}
    for machine in world.machines:
        for running in machine.running:
            book = (await running.here).book
            await _check_machine(world, machine, book)
            outboxes[machine.name] = await book.inner().replica.read(_outbox)
    _check_keys(world)
    _check_outboxes(outboxes)
    _check_written(world, outboxes)
    _check_order(world)
    _check_files(world)


def _outbox(tx: Tx) -> list[OutboxRow]:
    return [*tx.unacknowledged(), *tx.refused()]


async def _check_machine(world: World, machine: Machine, book: RecordBook) -> None:
    inner = book.inner()
    spaces = {space.space: space for space in await inner.replica.read(lambda tx: tx.spaces())}
    for facts in world.ledger.spaces.values():
        if facts.role(book.account_id) is None:
            continue
        kept = spaces.get(facts.space_id)
        if kept is None or kept.cursor != len(facts.rows):
            cursor = None if kept is None else kept.cursor
            raise Broken(
                "convergence",
                f"{machine.name} has read {facts.space_id[:6]} to {cursor} of {len(facts.rows)}",
            )
        await _check_space(world, machine, book, facts)


async def _check_space(world: World, machine: Machine, book: RecordBook, facts: SpaceFacts) -> None:
    inner = book.inner()

    def work(tx: Tx) -> dict[Ref, Record]:
        found: dict[Ref, Record] = {}
        for table in world.tables:
            for record_id, held in tx.all_held(
                facts.space_id, table, tx.marks(facts.space_id, table)
            ).items():
                found[table, record_id] = held.record
        return found

    here = await inner.replica.read(work)
    waiting = {
        (row.message.table, row.message.id)
        for row in await inner.replica.read(lambda tx: tx.unacknowledged())
    }
    for ref in here:
        if ref not in facts.records:
            raise Broken("space", f"{machine.name} holds {ref} in a space that does not have it")
        if not facts.sees(book.account_id, ref):
            raise Broken("hidden", f"{machine.name} still shows {ref}, which is private by now")
    for ref, expected in facts.records.items():
        if not facts.sees(book.account_id, ref) or ref in waiting:
            continue
        record = here.get(ref)
        if record is None:
            raise Broken("convergence", f"{machine.name} lacks {ref} of {facts.space_id[:6]}")
        if (record.author_id, record.visibility) != (expected.author, expected.visibility):
            raise Broken("convergence", f"{machine.name} has another visibility of {ref}")
        found = _entries(record)
        wanted = {path: _bare(entry) for path, entry in expected.entries.items()}
        if found != wanted:
            path = next(
                name for name in sorted(found | wanted) if found.get(name) != wanted.get(name)
            )
            raise Broken(
                "convergence",
                f"{machine.name} has another {path} of {ref}:"
                f" {_brief(found.get(path))}, not {_brief(wanted.get(path))}",
            )
        opened = inner.sealer.view(facts.space_id, record)
        if opened.sealed_fields:
            raise Broken("key", f"{machine.name} cannot open {opened.sealed_fields} of {ref}")
        values = inner.sealer.opened_paths(facts.space_id, record)
        _check_values(world, facts, ref, values)


def _check_values(world: World, facts: SpaceFacts, ref: Ref, values: dict[str, Json]) -> None:
    """Each value that stands is the one that its writer meant."""
    for path, value in values.items():
        meanings = [
            world.ledger.written[change_id]
            for change_id in _meanings(facts, ref, path)
            if change_id in world.ledger.written
        ]
        if meanings and all(_differs(world, written, path, value) for written in meanings):
            raise Broken("value", f"{path} of {ref} reads {value!r}, which nobody meant")


def _meanings(facts: SpaceFacts, ref: Ref, path: str) -> list[str]:
    """Return the changes whose value may stand: a flip or re-seal brings an earlier one's."""
    standing = facts.records[ref].entries[path]
    change = facts.rows[standing.seq - 1].change
    if change.op not in ("flip", "reseal"):
        return [change.change_id]
    return [
        row.change.change_id
        for row in facts.rows[: standing.seq]
        if (row.change.table, row.change.id) == ref and path in row.change.fields
    ]


def _differs(world: World, written: Written, path: str, value: Json) -> bool:
    return any(paths_of(written, world.tables[written.table], {path: value}))


def _check_keys(world: World) -> None:
    """Who left knows no key that is in use, and nothing stands under an older one."""
    for facts in world.ledger.spaces.values():
        if facts.closed:
            continue
        newest = facts.entries[-1]
        members = {one.account_id for one in newest.members}
        writers = {one.account_id for one in newest.members if can_write(one.role)}
        for entry in facts.entries:
            knew = {one.account_id for one in entry.members}
            if entry.key_version == newest.key_version and not knew <= members:
                raise Broken("rotation", f"somebody who left {facts.space_id[:6]} knows its key")
        for ref, record in facts.records.items():
            if record.visibility == "private" or (
                ref[0] == MEMBER_NAMES.name and ref[1] not in writers
            ):
                continue
            for path, standing in record.entries.items():
                if 0 < version_of(standing.value) < newest.key_version:
                    raise Broken("reseal", f"{path} of {ref} stands under an older key")


def _check_outboxes(outboxes: dict[str, list[OutboxRow]]) -> None:
    for name, rows in outboxes.items():
        for row in rows:
            code = row.code if row.state == "refused" else row.state
            if code not in PARKED:
                raise Broken(
                    "recovery",
                    f"{name} still has {row.message.change_id} ({row.message.table} in"
                    f" {row.space[:6]}): {code}",
                )


def _check_written(world: World, outboxes: dict[str, list[OutboxRow]]) -> None:
    """No write that was durable is gone: it is in the log, or listed where it was made."""
    ledger = world.ledger
    listed = {(name, row.message.change_id) for name, rows in outboxes.items() for row in rows}
    for written in ledger.written.values():
        is_kept = (
            written.change_id in ledger.place_by_change
            or (written.machine, written.change_id) in listed
        )
        if written.durable and not is_kept and not written.excused:
            raise Broken(
                "lost",
                f"{written.change_id} ({written.table} of {written.record[:8]}),"
                f" written on {written.machine}, is gone",
            )
        place = ledger.place_by_change.get(written.change_id)
        if place is not None and place[0] != written.space:
            raise Broken("space", f"{written.change_id} stands in another space than it was for")


def _check_order(world: World) -> None:
    """What one device wrote to one path is in the log in the order in which it was written.

    Not what was refused once: what came after it had no reason to wait.
    """
    last: dict[tuple[str, str, str, str, str], str] = {}
    stamps: dict[str, str] = {}
    for facts in world.ledger.spaces.values():
        for row in facts.rows:
            change = row.change
            if change.op == "reseal":
                continue
            written = world.ledger.written.get(change.change_id)
            for path, write in change.fields.items():
                key = (row.device, facts.space_id, change.table, change.id, path)
                if written is None or written.retried:
                    continue
                if write.at < last.get(key, ""):
                    raise Broken("order", f"{change.change_id} came after what was written later")
                last[key] = write.at
            for write in change.fields.values():
                other = stamps.setdefault(write.at, change.change_id)
                if other != change.change_id:
                    raise Broken("stamp", f"{write.at} was given to two changes")


def _check_files(world: World) -> None:
    """No file of a device holds a sealed text in the clear."""
    for path in _files(world):
        if SECRET.encode() in path:
            raise Broken("plaintext", "a sealed text lies in a file of a device")


def _files(world: World) -> Iterator[bytes]:
    for machine in world.machines:
        for path in sorted(machine.home.rglob("*")):
            if path.is_file():
                yield path.read_bytes()


def _entries(record: Record) -> dict[str, Standing]:
    return {
        path: Standing(
            entry.value,
            entry.at,
            {name: str(member) for name, member in entry.actor.to_wire().items()},
            entry.origin,
            entry.change_id,
            0,
        )
        for path, entry in record.entries.items()
    }


def _bare(entry: Standing) -> Standing:
    return Standing(entry.value, entry.at, dict(entry.actor), entry.origin, entry.change_id, 0)


def _brief(entry: Standing | None) -> str:
    if entry is None:
        return "nothing"
    return f"{str(entry.value)[:12]} of {entry.at[11:]} by {entry.change_id[:8]}"
