"""A simulated world: people with machines, one hub, and what happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mana.device.editing import Editing
from mana.device.records import RecordBook
from mana.device.vault import SpaceKeys
from mana.device.writing import Write
from mana.domain.actors import person
from mana.domain.changes import Change, ChangeKind
from mana.domain.clock import iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import ManaError, NotFound
from mana.domain.ids import RecordId
from mana.domain.iterations import STEPS
from mana.domain.records import View, Visibility
from mana.domain.spaces import ROLES, SHARED_TYPES
from mana.domain.tables import DELETED_AT
from mana.modules.notes.tables import NOTES
from mana.protocol.messages import PushRequest
from mana.registry.catalogue import Catalogue
from mana.testing.simulator.ledger import SECRET, Broken, Ledger, Written, crash_of
from mana.testing.simulator.loop import Killed, Process, SimulatedLoop
from mana.testing.simulator.machines import START_MS, Here, Machine, Running
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
        self.links: list[str] = []
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
                running = Running(process, process.spawn(machine.sign_up()))
                machine.running.append(running)
                await running.here
        firsts = [machine.running[0] for machine in self.machines if machine.running]
        for number in range(self.schedule.shared):
            turn = number % len(firsts)
            founder, *others = firsts[turn:] + firsts[:turn]
            heres = [await one.here for one in others]
            await founder.process.spawn(self._share(await founder.here, heres))
        self.check()

    async def _share(self, owner: Here, others: Sequence[Here]) -> None:
        """Found a space in which everybody is."""
        space_id = await owner.spaces.create_space(f"{SECRET} together", "team")
        for number, other in enumerate(others):
            role = ("member", "admin", "viewer")[number % 3]
            invitation = await owner.spaces.invite(space_id, role)
            await other.spaces.join(str(invitation.link))
        await owner.book.sync_now()
        for other in others:
            await other.book.sync_now()

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
            here = await asyncio.shield(running.here)
            await work(self, machine, here, picks[1:])

        try:
            await running.process.spawn(run())
        finally:
            if running.here.done() and running in machine.running and _failed(running.here):
                machine.running.remove(running)  # the next step tries to open it again

    # In a process

    async def write(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Write a new note, or some fields of one that is here."""
        book = self._space(here, picks[0])
        values: dict[str, Json] = {"title": self._text(machine)}
        if picks[1] % 3 == 0:
            values["content"] = self._text(machine)
        visibility: Visibility = "private" if picks[2] % 5 == 0 else "space"
        view = await self._view(book, NOTES.name, picks[3]) if picks[1] % 4 else None
        if view is None:
            await self._commit(machine, book, [(NOTES.name, self.new_id(), values)], visibility)
        else:
            if picks[1] % 2:
                values = {"content": values["title"]}
            await self._commit(machine, book, [(NOTES.name, view.id, values)])

    async def collect(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Add to and take from a set, a list and a counter."""
        book = self._space(here, picks[0])
        view = await self._view(book, THINGS.name, picks[1]) if picks[2] % 4 else None
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
        await self._commit(machine, book, [(THINGS.name, record_id, values)])

    async def delete(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Delete a record."""
        book = self._space(here, picks[0])
        table = (NOTES, THINGS)[picks[1] % 2].name
        view = await self._view(book, table, picks[2])
        if view is not None:
            gone: dict[str, Json] = {DELETED_AT: iso_ms(machine.now_ms())}
            await self._commit(machine, book, [(table, view.id, gone)])

    async def restore(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Bring a deleted record back."""
        book = self._space(here, picks[0])
        table = (NOTES, THINGS)[picks[1] % 2].name
        view = await self._view(book, table, picks[2], lambda view: view.deleted)
        if view is not None:
            await self._commit(machine, book, [(table, view.id, {DELETED_AT: None})])

    async def group(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Write several records, together or not at all."""
        book = self._space(here, picks[0])
        writes: list[tuple[str, str, dict[str, Json]]] = []
        for place in range(2 + picks[1] % 4):
            view = await self._view(book, NOTES.name, picks[2] + place)
            known = view is not None and all(view.id != other for _, other, _ in writes)
            record_id = view.id if view is not None and known else self.new_id()
            writes.append((NOTES.name, record_id, {"title": self._text(machine)}))
        await self._commit(machine, book, writes, group=self.new_id())

    async def propose(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Make something that several devices can decide."""
        book = self._space(here, picks[0])
        values: dict[str, Json] = {
            "missionId": f"mission-{picks[1] % 2}",
            "iterationId": "run",
            "index": 0,
            "status": "staged",
            "sentence": self._text(machine),
        }
        await self._commit(
            machine, book, [(STEPS.name, self.new_id(), values)], guards={"status": None}
        )

    async def decide(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Decide, and do what follows from it in the same group."""
        book = self._space(here, picks[0])
        view = await self._view(
            book, STEPS.name, picks[1], lambda view: view.values.get("status") == "staged"
        )
        if view is None:
            return
        status = ("approved", "rejected")[picks[2] % 2]
        decision = (STEPS.name, view.id, {"status": status, "feedback": self._text(machine)})
        effect = (NOTES.name, self.new_id(), {"title": self._text(machine)})
        await self._commit(
            machine,
            book,
            [decision, effect],
            group=self.new_id(),
            guards={"status": "staged"},
            wait=picks[3] % 3 == 0,
        )

    async def sync(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Push and pull once."""
        await here.book.sync_now()

    async def retry(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Send what was refused again."""
        found = await here.book.refused()
        if found:
            chosen = found[picks[0] % len(found)].change_id
            for written in self._with_group(chosen):
                written.retried = True
            await here.book.retry_refused(chosen)

    async def drop(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Forget what was refused."""
        found = await here.book.refused()
        if found:
            chosen = found[picks[0] % len(found)].change_id
            for written in self._with_group(chosen):
                written.excused = "dropped"
            await here.book.drop_refused(chosen)

    def _with_group(self, change_id: str) -> list[Written]:
        """Return what the person meant by a change and its group."""
        one = self.ledger.written.get(change_id)
        if one is None or one.group is None:
            return [] if one is None else [one]
        return [other for other in self.ledger.written.values() if other.group == one.group]

    # Spaces

    async def found_space(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Found a shared space."""
        space_type = SHARED_TYPES[picks[0] % len(SHARED_TYPES)]
        await here.spaces.create_space(f"{SECRET} space {picks[1] % 4}", space_type)

    async def invite(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Make an invitation, whose link anybody may find."""
        space = self._shared(here, picks[0], "owner", "admin")
        if space is not None:
            role = ("admin", "member", "member", "viewer")[picks[1] % 4]
            made = await here.spaces.invite(space.space_id, role, days=1 + picks[2] % 30)
            self.links.append(str(made.link))

    async def join(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Accept an invitation, one of the last that were made."""
        if self.links:
            await here.spaces.join(self.links[-1 - picks[0] % min(3, len(self.links))])

    async def withdraw(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """End an invitation."""
        space = self._shared(here, picks[0], "owner", "admin")
        found = await here.spaces.invitations(space.space_id) if space is not None else []
        if space is not None and found:
            chosen = found[picks[1] % len(found)].invitation_id
            await here.spaces.withdraw_invitation(space.space_id, chosen)

    async def leave(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Leave a space."""
        space = self._shared(here, picks[0], *ROLES)
        if space is not None:
            await here.spaces.leave(space.space_id)

    async def remove(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Put a member out."""
        space = self._shared(here, picks[0], "owner", "admin")
        if space is not None:
            member = space.members[picks[1] % len(space.members)].account_id
            await here.spaces.remove_member(space.space_id, member)

    async def rerole(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Give a member another role, or hand the space over."""
        space = self._shared(here, picks[0], "owner", "admin")
        if space is not None:
            member = space.members[picks[1] % len(space.members)].account_id
            if picks[2] % 5 == 0:
                await here.spaces.transfer(space.space_id, member)
            else:
                await here.spaces.set_role(space.space_id, member, ROLES[picks[2] % 4])

    async def close_space(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """End a space for everybody."""
        space = self._shared(here, picks[0], "owner")
        if space is not None and picks[1] % 2:
            await here.spaces.close_space(space.space_id)

    async def forget_space(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Remove what is here of a space that was left."""
        space = self._shared(here, picks[0], "former")
        if space is not None:
            for written in self.ledger.written.values():
                if (written.machine, written.space) == (machine.name, space.space_id):
                    written.excused = "the space was forgotten"
            await here.spaces.forget_space(space.space_id)

    async def flip(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Make an own record private, or share it again."""
        book = self._space(here, picks[0])
        table = (NOTES, NOTES, THINGS)[picks[1] % 3].name
        own = book.account_id
        view = await self._view(book, table, picks[2], lambda view: view.author_id == own)
        if view is not None:
            editing = Editing(here.opened.in_space(book.space))
            other: Visibility = "space" if view.visibility == "private" else "private"
            await editing.set_visibility(table, view.id, other)

    async def reseal(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Bring records under the newest key."""
        await here.resealing.once()

    async def knock(self, machine: Machine, here: Here, picks: Sequence[int]) -> None:
        """Ask for everything of a space that the account is not in, and write there."""
        account = here.book.account_id
        closed = [one for one in self.ledger.spaces.values() if one.role(account) is None]
        if not closed:
            return
        facts = closed[picks[0] % len(closed)]
        hub, device_id = here.book.hub, here.book.device_id
        old = [row.change for row in facts.rows if row.account == account][-1:]
        old += [row.change for row in facts.rows][-1:]
        again = [msgspec.structs.replace(change, change_id=self.new_id()) for change in old[:1]]
        push = PushRequest(device_id=device_id, changes=again)
        for work in (
            lambda: hub.pull(facts.space_id, 0, 1_000),
            lambda: hub.state(facts.space_id, None),
            lambda: hub.space_devices(facts.space_id),
            lambda: hub.push(facts.space_id, push),
        ):
            with contextlib.suppress(NotFound):
                await work()

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
            machine.set_back(backup, in_place=picks[1] % 2 == 0)
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

    def _space(self, here: Here, pick: int) -> RecordBook:
        """Return the book of one of the spaces that the account is in, mostly a shared one."""
        found = [
            keys for keys in here.book.spaces() if keys.type != "user" and keys.role is not None
        ]
        shared = [keys for keys in found if keys.shared]
        if shared and pick % 6:
            found = shared
        found.sort(key=lambda keys: keys.space_id)
        return here.book.in_space(found[pick // 6 % len(found)].space_id)

    def _shared(self, here: Here, pick: int, *roles: str) -> SpaceKeys | None:
        """Return a shared space in which the account has one of these roles."""
        found = [
            keys for keys in here.book.spaces() if keys.shared and (keys.role or "former") in roles
        ]
        found.sort(key=lambda keys: keys.space_id)
        return found[pick % len(found)] if found else None

    async def _view(
        self,
        book: RecordBook,
        table: str,
        pick: int,
        wanted: Callable[[View], bool] = lambda view: True,
    ) -> View | None:
        views = sorted(await book.views(table, include_deleted=True), key=lambda view: view.id)
        found = [view for view in views if wanted(view)]
        # Mostly the same few, so that people meet in them.
        near = found[:2] if pick % 3 else found
        return near[pick // 3 % len(near)] if near else None

    async def _commit(
        self,
        machine: Machine,
        book: RecordBook,
        writes: Sequence[tuple[str, str, Mapping[str, Json]]],
        visibility: Visibility = "space",
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
            planned.append(Write(change, person(book.account_id), visibility, change_id))
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


_InProcess = Callable[[World, Machine, Here, Sequence[int]], Awaitable[None]]
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
    "found_space": World.found_space,
    "invite": World.invite,
    "join": World.join,
    "withdraw": World.withdraw,
    "leave": World.leave,
    "remove": World.remove,
    "rerole": World.rerole,
    "close_space": World.close_space,
    "forget_space": World.forget_space,
    "flip": World.flip,
    "reseal": World.reseal,
    "knock": World.knock,
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
