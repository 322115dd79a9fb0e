"""A simulated world: people with machines, one hub, and what happens to them."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mana.device.records import RecordBook, Write
from mana.domain.actors import person
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import ManaError
from mana.domain.ids import RecordId
from mana.domain.iterations import STEPS
from mana.domain.records import View
from mana.domain.tables import DELETED_AT
from mana.modules.notes.tables import NOTES
from mana.registry.catalogue import Catalogue
from mana.testing.accounts import PASSWORD
from mana.testing.simulator.ledger import SECRET, Broken, Ledger, Written, crash_of
from mana.testing.simulator.loop import Killed, Process, SimulatedLoop
from mana.testing.simulator.machines import START_MS, Machine, Running
from mana.testing.simulator.network import Network
from mana.testing.simulator.schedule import Schedule, Step
from mana.testing.simulator.tables import THINGS

DAY_MS: Final = 86_400_000
JUMPS_MS: Final = (1_000, 120_000, 290_000, 320_000, 3_600_000, DAY_MS, 30 * DAY_MS)


class World:
    """Everything that one run is made of."""

    def __init__(
        self,
        schedule: Schedule,
        folder: Path,
        loop: SimulatedLoop,
        catalogue: Catalogue,
        ledger_of: Callable[[World], Ledger],
    ) -> None:
        self.schedule = schedule
        self.folder = folder
        self.loop = loop
        self.catalogue = catalogue
        self.tables = {table.name: table for table in catalogue.tables}
        self.trace: list[str] = []
        self.failures: list[Broken] = []
        self.order = 0
        self._ids = random.Random(f"ids {schedule.seed}")
        self.ledger = ledger_of(self)
        self.network = Network(
            backend=self.ledger,
            seed=f"network {schedule.seed}",
            now_ms=self.hub_ms,
            say=self.say,
        )
        self.machines = [
            Machine(
                name=f"m{number}",
                login=f"person-{owner}",
                home=folder / f"m{number}",
                clock=schedule.clocks[number],
                time_s=loop.time,
                network=self.network,
                catalogue=catalogue,
            )
            for number, owner in enumerate(schedule.owners)
        ]

    def hub_ms(self) -> int:
        """Return what the hub's clock shows."""
        return START_MS + self.schedule.hub_skew_ms + int(self.loop.time() * 1_000)

    def say(self, words: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{self.loop.time():12.3f} {words}")

    def new_id(self) -> str:
        """Return an id of the world's own."""
        return str(uuid.UUID(int=self._ids.getrandbits(128), version=4))

    # The course of things

    async def found(self) -> None:
        """Sign everybody up, in calm weather and with right clocks."""
        seen: set[int] = set()
        for machine, owner in zip(self.machines, self.schedule.owners, strict=True):
            if owner not in seen:
                seen.add(owner)
                process = Process(f"{machine.name}.0")
                work = machine.accounts().sign_up(machine.login, PASSWORD)
                running = Running(process, process.spawn(work))
                machine.running.append(running)
                await running.book

    async def play(self) -> None:
        """Let the steps happen, each at its time, whatever still goes on."""
        self.network.weather = self.schedule.weather
        begun = self.loop.time()
        under_way: list[asyncio.Task[None]] = []
        for number, step in enumerate(self.schedule.steps):
            pause_s = begun + step.at_s - self.loop.time()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            self.check()
            machine = self.machines[step.machine % len(self.machines)]
            self.say(f"[{number}] {machine.name} {step.name} {list(step.picks)}")
            under_way.append(asyncio.create_task(self._guarded(number, machine, step)))
            await asyncio.sleep(0)
        await asyncio.wait(under_way)
        self.check()

    def check(self) -> None:
        """Raise what was found broken meanwhile."""
        if self.ledger.broken is not None:
            raise self.ledger.broken
        if self.failures:
            raise self.failures[0]

    async def _guarded(self, number: int, machine: Machine, step: Step) -> None:
        try:
            await self._step(machine, step)
        except (Killed, asyncio.CancelledError):
            self.say(f"[{number}] died")
        except ManaError as error:
            self.say(f"[{number}] {error.code}: {error.message}")
        except Broken as broken:
            self.failures.append(broken)
        except Exception as error:
            self.failures.append(crash_of("crash", error))

    async def _step(self, machine: Machine, step: Step) -> None:
        picks = (*step.picks, 0, 0, 0, 0, 0, 0)
        if step.name in _ON_MACHINES:
            _ON_MACHINES[step.name](self, machine, picks)
            return
        work = _IN_PROCESSES[step.name]
        running = machine.pick(picks[0])

        async def run() -> None:
            book = await asyncio.shield(running.book)
            await work(self, machine, book, picks[1:])

        try:
            await running.process.spawn(run())
        finally:
            if running.book.done() and running in machine.running and _failed(running.book):
                machine.running.remove(running)  # the next step tries to open it again

    # In a process

    async def write(self, machine: Machine, book: RecordBook, picks: Sequence[int]) -> None:
        """Write a new note, or some fields of one that is here."""
        here = self._space(book, picks[0])
        values: dict[str, Json] = {"title": self._text(machine)}
        if picks[1] % 3 == 0:
            values["content"] = self._text(machine)
        visibility = "private" if picks[2] % 5 == 0 else "space"
        view = await self._view(here, NOTES.name, picks[3]) if picks[1] % 4 else None
        if view is None:
            await self._commit(machine, here, [(NOTES.name, self.new_id(), values)], visibility)
        else:
            if picks[1] % 2:
                values = {"content": values["title"]}
            await self._commit(machine, here, [(NOTES.name, view.id, values)])

    async def collect(self, machine: Machine, book: RecordBook, picks: Sequence[int]) -> None:
        """Add to and take from a set, a list and a counter."""
        here = self._space(book, picks[0])
        view = await self._view(here, THINGS.name, picks[1]) if picks[2] % 4 else None
        old: dict[str, Any] = dict(view.values) if view is not None else {}
        values: dict[str, Json] = {}
        kind = picks[3] % 4
        if kind == 0 or view is None:
            tags = [tag for tag in old.get("tags", ()) if picks[4] % 3]
            values["tags"] = [*tags, f"{SECRET} tag {picks[4] % 5}"]
        if kind == 1:
            items = list(old.get("items", ()))
            items[picks[4] % (len(items) + 1) :] = items[picks[4] % (len(items) + 1) + 1 :]
            items.insert(picks[2] % (len(items) + 1), self._text(machine))
            values["items"] = items
        if kind == 2:
            values["total"] = (old.get("total") or 0) + picks[4] % 7 - 2
        if kind == 3:
            values["order"] = picks[4]
            values["title"] = self._text(machine)
        record_id = view.id if view is not None else self.new_id()
        await self._commit(machine, here, [(THINGS.name, record_id, values)])

    async def delete(self, machine: Machine, book: RecordBook, picks: Sequence[int]) -> None:
        """Delete a record."""
        here = self._space(book, picks[0])
        table = (NOTES, THINGS)[picks[1] % 2].name
        view = await self._view(here, table, picks[2])
        if view is not None:
            gone: dict[str, Json] = {DELETED_AT: iso_ms(machine.now_ms())}
            await self._commit(machine, here, [(table, view.id, gone)])

    async def restore(self, machine: Machine, book: RecordBook, picks: Sequence[int]) -> None:
        """Bring a deleted record back."""
        here = self._space(book, picks[0])
        table = (NOTES, THINGS)[picks[1] % 2].name
        view = await self._view(here, table, picks[2], lambda view: view.deleted)
        if view is not None:
            await self._commit(machine, here, [(table, view.id, {DELETED_AT: None})])

    async def group(self, machine: Machine, book: RecordBook, picks: Sequence[int]) -> None:
        """Write several records, together or not at all."""
        here = self._space(book, picks[0])
        writes: list[tuple[str, str, dict[str, Json]]] = []
        for place in range(2 + picks[1] % 4):
            view = await self._view(here, NOTES.name, picks[2] + place)
            known = view is not None and all(view.id != other for _, other, _ in writes)
            record_id = view.id if view is not None and known else self.new_id()
            writes.append((NOTES.name, record_id, {"title": self._text(machine)}))
        await self._commit(machine, here, writes, group=self.new_id())

    async def propose(self, machine: Machine, book: RecordBook, picks: Sequence[int]) -> None:
        """Make something that several devices can decide."""
        here = self._space(book, picks[0])
        values: dict[str, Json] = {
            "missionId": f"mission-{picks[1] % 2}",
            "iterationId": "run",
            "index": 0,
            "status": "staged",
            "sentence": self._text(machine),
        }
        await self._commit(
            machine, here, [(STEPS.name, self.new_id(), values)], guards={"status": None}
        )

    async def decide(self, machine: Machine, book: RecordBook, picks: Sequence[int]) -> None:
        """Decide, and do what follows from it in the same group."""
        here = self._space(book, picks[0])
        view = await self._view(
            here, STEPS.name, picks[1], lambda view: view.values.get("status") == "staged"
        )
        if view is None:
            return
        status = ("approved", "rejected")[picks[2] % 2]
        decision = (STEPS.name, view.id, {"status": status, "feedback": self._text(machine)})
        effect = (NOTES.name, self.new_id(), {"title": self._text(machine)})
        await self._commit(
            machine,
            here,
            [decision, effect],
            group=self.new_id(),
            guards={"status": "staged"},
            wait=picks[3] % 3 == 0,
        )

    async def sync(self, machine: Machine, book: RecordBook, picks: Sequence[int]) -> None:
        """Push and pull once."""
        await book.sync_now()

    async def retry(self, machine: Machine, book: RecordBook, picks: Sequence[int]) -> None:
        """Send what was refused again."""
        found = await book.refused()
        if found:
            await book.retry_refused(found[picks[0] % len(found)].change_id)

    async def drop(self, machine: Machine, book: RecordBook, picks: Sequence[int]) -> None:
        """Forget what was refused."""
        found = await book.refused()
        if found:
            chosen = found[picks[0] % len(found)].change_id
            group = self.ledger.written[chosen].group if chosen in self.ledger.written else None
            for written in self.ledger.written.values():
                if written.change_id == chosen or (group is not None and written.group == group):
                    written.excused = "dropped"
            await book.drop_refused(chosen)

    # To a machine

    def crash(self, machine: Machine, picks: Sequence[int]) -> None:
        """Kill what runs."""
        machine.kill()

    def second(self, machine: Machine, picks: Sequence[int]) -> None:
        """Open the replica in one process more."""
        if len(machine.running) in (1, 2) and machine.database is not None:
            machine.start()

    def back_up(self, machine: Machine, picks: Sequence[int]) -> None:
        """Copy the database."""
        machine.back_up(self.folder, self.order)

    def set_back(self, machine: Machine, picks: Sequence[int]) -> None:
        """Put an older copy in the database's place."""
        if machine.backups:
            backup = machine.backups[picks[0] % len(machine.backups)]
            machine.set_back(backup)
            self._excuse(machine, backup.order, "the machine was set back")

    def wipe(self, machine: Machine, picks: Sequence[int]) -> None:
        """Lose the disk; the next process signs in anew."""
        machine.wipe()
        machine.backups.clear()
        self._excuse(machine, 0, "the disk was lost")

    def clock(self, machine: Machine, picks: Sequence[int]) -> None:
        """Let the clock jump."""
        jump = JUMPS_MS[picks[0] % len(JUMPS_MS)]
        machine.jumped_ms += jump if picks[1] % 2 else -jump
        if picks[2] % 3 == 0:
            machine.jumped_ms = -machine.clock.offset_ms

    def offline(self, machine: Machine, picks: Sequence[int]) -> None:
        """Take the network away for a while."""
        span_s = (1.0, 60.0, 3_600.0, 5 * 86_400.0)[picks[0] % 4]
        machine.offline_until_s = self.loop.time() + span_s

    def hub_down(self, machine: Machine, picks: Sequence[int]) -> None:
        """Stop the hub for a while."""
        span_ms = (1_000, 30_000, 3_600_000)[picks[0] % 3]
        self.network.hub_down_until_ms = self.hub_ms() + span_ms

    # Within

    def _excuse(self, machine: Machine, order: int, why: str) -> None:
        for written in self.ledger.written.values():
            if written.machine == machine.name and written.order > order:
                written.excused = why

    def _text(self, machine: Machine) -> str:
        self.order += 1
        return f"{SECRET} {self.order} {machine.name}"

    def _space(self, book: RecordBook, pick: int) -> RecordBook:
        """Return the book of one of the spaces that the account is in."""
        found = sorted(
            (keys for keys in book.spaces() if keys.type != "user" and keys.role is not None),
            key=lambda keys: keys.space_id,
        )
        return book.in_space(found[pick % len(found)].space_id)

    async def _view(
        self,
        book: RecordBook,
        table: str,
        pick: int,
        wanted: Callable[[View], bool] = lambda view: True,
    ) -> View | None:
        views = sorted(await book.views(table, include_deleted=True), key=lambda view: view.id)
        found = [view for view in views if wanted(view)]
        return found[pick % len(found)] if found else None

    async def _commit(
        self,
        machine: Machine,
        book: RecordBook,
        writes: Sequence[tuple[str, str, Mapping[str, Json]]],
        visibility: str = "space",
        *,
        group: str | None = None,
        guards: dict[str, Json] | None = None,
        wait: bool = False,
    ) -> None:
        planned: list[Write] = []
        meant: list[Written] = []
        for number, (table, record_id, values) in enumerate(writes):
            self.order += 1
            change_id = self.new_id()
            change = Change(
                table,
                RecordId(record_id),
                ChangeKind.DELETE if values.get(DELETED_AT) else ChangeKind.UPDATE,
                values,
                guards if guards is not None and number == 0 else {},
            )
            planned.append(
                Write(change, person(book.account_id), visibility, change_id)  # type: ignore[arg-type]
            )
            meant.append(
                Written(
                    change_id,
                    machine.name,
                    book.account_id,
                    book.space,
                    table,
                    record_id,
                    values,
                    group,
                    self.order,
                )
            )
        for written in meant:
            self.ledger.written[written.change_id] = written
        try:
            await book.commit(planned, group=group, wait=wait)
        except ManaError:
            # It may have been written before it could not be sent.
            replica = book.inner().replica
            for written in meant:
                change_id = written.change_id
                written.durable = await replica.read(lambda tx: tx.was_made(change_id))  # noqa: B023
                if not written.durable:
                    written.excused = "refused before it was written"
            raise
        for written in meant:
            written.durable = True


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None


_InProcess = Callable[[World, Machine, RecordBook, Sequence[int]], Awaitable[None]]
_IN_PROCESSES: Final[dict[str, _InProcess]] = {
    "write": World.write,
    "collect": World.collect,
    "delete": World.delete,
    "restore": World.restore,
    "group": World.group,
    "propose": World.propose,
    "decide": World.decide,
    "sync": World.sync,
    "retry": World.retry,
    "drop": World.drop,
}
_ON_MACHINES: Final[dict[str, Callable[[World, Machine, Sequence[int]], None]]] = {
    "crash": World.crash,
    "second": World.second,
    "back_up": World.back_up,
    "set_back": World.set_back,
    "wipe": World.wipe,
    "clock": World.clock,
    "offline": World.offline,
    "hub_down": World.hub_down,
}
