"""A person's devices with everything on top: a real hub, a real runner, the host and its desk."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from mana.device.app import DeviceHost, build
from mana.device.desk import Device
from mana.device.operations import Operations
from mana.device.settings import DeviceSettings
from mana.domain.missions import InputRef
from mana.domain.spaces import Role, SpaceType
from mana.hub.runner.app import Runner
from mana.hub.runner.app import build as build_runner
from mana.hub.runner.settings import RunnerSettings
from mana.models.rules import Rules
from mana.planning.ports import Model
from mana.testing.accounts import CHEAP, PASSWORD
from mana.testing.postgres import Database
from tests.device import shared
from tests.device.rig import Wire
from tests.hub.client import Served, served_hub
from tests.runner.world import InlineWorkers, leave_runner_key

MEETING = "Meeting with Bo\n\n- [ ] Send the offer by 2027-01-15\n- [ ] Book the room\n"


class RealClock:
    """The machine's time, which a test can move on; the database's clock is the same one.

    `held_ms`: the moment at which it stands, where a second more or less would count.
    """

    def __init__(self) -> None:
        self.ahead_ms = 0
        self.held_ms: int | None = None

    def __call__(self) -> int:
        if self.held_ms is not None:
            return self.held_ms
        return time.time_ns() // 1_000_000 + self.ahead_ms


@dataclass
class Place:
    """One device process."""

    host: DeviceHost
    wire: Wire
    clock: RealClock


@dataclass
class Household:
    """A hub with its runner, and the devices of whoever signs up."""

    database: Database
    served: Served
    folder: Path
    clock: RealClock
    places: list[Place] = field(default_factory=list)

    def place(self, *, name: str = "", model: Model | None = None, **options: Any) -> Place:
        """Return a new device process, which does nothing by itself: a test says when it syncs.

        With `background=True` it does, as soon as an account is open.
        """
        options.setdefault("background", False)
        home = self.folder / f"device-{len(self.places)}"
        home.mkdir(exist_ok=True)
        wire = Wire(httpx.ASGITransport(app=self.served.hub.asgi))
        wire.on_request = _no_live
        settings = DeviceSettings(home=home, hub_url="http://hub.test", kdf_floor=CHEAP, name=name)
        host = build(
            settings,
            model=model,
            now_ms=self.clock,
            transport=lambda: wire,
            **options,
        )
        made = Place(host, wire, self.clock)
        self.places.append(made)
        return made

    async def person(self, login: str = "ada", **options: Any) -> Device:
        """Return a person at a new device."""
        return await self.place(**options).host.sign_up(login, PASSWORD, display_name="Ada")

    async def second(self, login: str = "ada", **options: Any) -> Device:
        """Return the same person at another device."""
        return await self.place(**options).host.sign_in(login, PASSWORD)

    @contextlib.asynccontextmanager
    async def runner(self, model: Callable[[], Model] = Rules) -> AsyncIterator[Runner]:
        """Lend the hub's runner."""
        runner = build_runner(self.runner_settings(), workers=InlineWorkers(model))
        await runner.open()
        try:
            yield runner
        finally:
            await runner.close()

    def runner_settings(self) -> RunnerSettings:
        return RunnerSettings(
            home=self.folder,
            database_url=self.database.runner_url,
            tick_enabled=False,
            service_key="service",
        )

    async def tick(self, model: Callable[[], Model] = Rules) -> None:
        """Let the hub's runner work once."""
        async with self.runner(model) as runner:
            await runner.scheduler.tick()


def operations(device: Device) -> Operations:
    """Return what stands behind a desk."""
    return device._of


async def planned_mission(device: Device, **options: Any) -> tuple[str, list[str], list[str]]:
    """Write two notes and two tasks, an agent and a mission that looks at them."""
    notes = [
        await device.create("notes", {"title": "Offer", "content": MEETING}),
        await device.create("notes", {"title": "Garden", "content": "More herbs."}),
    ]
    tasks = [
        await device.create("tasks", {"title": "Hand in the tax form", "dueDate": "2026-01-02"}),
        await device.create("tasks", {"title": "Oil the chain"}),
    ]
    preset = options.pop("preset", "standard")
    agent = await device.create_agent("Mira", preset=preset, avatar="M")
    inputs = [InputRef("notes", "notes", one) for one in notes]
    inputs += [InputRef("todo", "tasks", one) for one in tasks]
    mission = await device.create_mission(
        "Weekly review", "Find open tasks", agent_id=agent, inputs=inputs, **options
    )
    return mission, notes, tasks


@contextlib.asynccontextmanager
async def household(database: Database) -> AsyncIterator[Household]:
    """Lend a household; every device is closed at the end."""
    with tempfile.TemporaryDirectory(prefix="mana-household-") as folder:
        home = Path(folder)
        clock = RealClock()
        async with served_hub(database, home=home) as served:
            served.clock.now_ms = clock()
            made = Household(database, served, home, clock)
            leave_runner_key(made.runner_settings())
            try:
                yield made
            finally:
                for place in made.places:
                    await place.host.close()


async def _no_live(request: httpx.Request, under: httpx.AsyncBaseTransport) -> None:
    """A stream without an end cannot go through a transport that waits for the end."""
    if request.url.path == "/api/v1/live":
        raise httpx.ConnectError("no live stream in this test", request=request)


async def shared_space(owner: Device, space_type: SpaceType = "team") -> str:
    """Found a shared space with its key and its private one; return its id."""
    opened = operations(owner).opened
    return (await shared.found(opened.book, space_type, now_ms=opened.now_ms())).space


async def let_in(owner: Device, space_id: str, newcomer: Device, role: Role = "member") -> None:
    """Invite a person into a space, accept for them, and let them in; they make their key."""
    ours, theirs = operations(owner).opened, operations(newcomer).opened
    await shared.join(ours.book.in_space(space_id), theirs.book, role, now_ms=ours.now_ms())
    await newcomer.sync_now()


async def change_members(owner: Device, space_id: str, build: shared.Build) -> None:
    """Append to the log of a space, as a device of this person does."""
    opened = operations(owner).opened
    await shared.append(opened.book.in_space(space_id), build, now_ms=opened.now_ms())
