"""One run: a schedule in, a report out. The same schedule gives the same report, always."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from unittest.mock import patch

from mana.domain.encoding import Json, canonical_json
from mana.protocol import replication
from mana.registry.catalogue import Catalogue
from mana.testing.simulator.checks import check_all, settle
from mana.testing.simulator.dice import seeded
from mana.testing.simulator.hub import Limits, ModelHub
from mana.testing.simulator.ledger import Broken, Ledger, crash_of, version_of
from mana.testing.simulator.loop import SimulatedLoop, Stalled
from mana.testing.simulator.network import Backend
from mana.testing.simulator.schedule import Schedule, draw
from mana.testing.simulator.tables import simulated_catalogue
from mana.testing.simulator.world import World

_T = TypeVar("_T")
_RAM: Final = Path("/dev/shm")
BackendOf = Callable[[Catalogue, Callable[[], int], Limits], Backend]


@dataclass(frozen=True, slots=True)
class Report:
    """How a run went. `invariant` is empty if every promise was kept."""

    seed: int
    invariant: str
    detail: str
    trace: tuple[str, ...]
    rounds: int
    requests: int
    changes: int
    result: str = ""
    """A digest of every record as it stands in the end, but for the bytes of seals."""

    @property
    def kept(self) -> bool:
        """Say whether every promise was kept."""
        return not self.invariant

    @property
    def digest(self) -> str:
        """Return what two runs have in common exactly if they went the same way."""
        return hashlib.sha256("\n".join((*self.trace, self.detail)).encode()).hexdigest()[:16]

    def text(self, *, lines: int = 40) -> str:
        """Return what a person needs to see of a broken promise."""
        shown = self.trace[-lines:]  # of 0 lines: all of them
        return "\n".join(
            (
                f"seed {self.seed}: {self.invariant or 'kept'}: {self.detail}",
                *shown,
                f"replay: make simulate SEEDS=1 FIRST={self.seed}",
            )
        )


def simulate_seed(seed: int) -> Report:
    """Run the schedule that a seed draws."""
    return simulate(draw(seed))


def model_hub(catalogue: Catalogue, now_ms: Callable[[], int], limits: Limits) -> Backend:
    """Return the hub in memory."""
    return ModelHub(catalogue, now_ms, limits=limits)


def simulate(schedule: Schedule, *, backend_of: BackendOf = model_hub) -> Report:
    """Run a schedule against a hub; by default against the one in memory."""
    loop = SimulatedLoop(random.Random(f"threads {schedule.seed}"))
    catalogue = simulated_catalogue()
    with _folder() as folder, seeded(schedule.seed), _limits(schedule), _quiet():

        def ledger_of(world: World) -> Ledger:
            limits = Limits(pull=schedule.page, state=schedule.state_page)
            backend = backend_of(catalogue, world.hub_ms, limits)
            return Ledger(backend, world.tables, world.hub_ms, world.say)

        world = World(schedule, folder, loop, catalogue, ledger_of)
        rounds, broken = 0, Broken("", "")
        try:
            rounds = _run(loop, _course(world))
        except Broken as found:
            broken = found
        except Stalled as stalled:
            broken = Broken("stall", str(stalled))
        except Exception as error:
            # What the hub did first is the cause; what the device made of it follows.
            broken = world.ledger.broken or crash_of("crash", error)
        finally:
            for machine in world.machines:
                machine.kill()
            _run(loop, asyncio.sleep(1))
            _end(loop)
    return Report(
        schedule.seed,
        broken.invariant,
        broken.detail,
        tuple(world.trace),
        rounds,
        world.ledger.requests,
        sum(len(facts.rows) for facts in world.ledger.spaces.values()),
        _result(world.ledger),
    )


def _result(ledger: Ledger) -> str:
    lines = [
        f"{facts.space_id} {len(facts.entries)} {ref} {record.author} {record.visibility} {path}"
        f" {entry.at} {entry.change_id} {entry.seq} {_told(entry.value)}"
        for facts in ledger.spaces.values()
        for ref, record in sorted(facts.records.items())
        for path, entry in sorted(record.entries.items())
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _told(value: Json) -> str:
    """Return a value as far as two runs have it in common: not the bytes of a seal."""
    return canonical_json(value).decode() if version_of(value) == 0 else str(value)[:8]


async def _course(world: World) -> int:
    await world.found()
    await world.play()
    rounds = await settle(world)
    await check_all(world)
    return rounds


def _run(loop: SimulatedLoop, work: Coroutine[Any, Any, _T]) -> _T:
    return loop.run_until_complete(work)


def _end(loop: SimulatedLoop) -> None:
    """End what is left; a task of a dead process that never ran on is no news."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Lend a folder in memory, where there is one."""
    place = _RAM if _RAM.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="mana-simulated-", dir=place) as name:
        yield Path(name)


@contextlib.contextmanager
def _limits(schedule: Schedule) -> Iterator[None]:
    """Cut batches where the schedule says."""
    with patch.object(replication, "BATCH_CHANGES_MAX", schedule.batch):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log of the code under test to itself: here trouble is the rule."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
