"""A device that dies in the middle of a change of its vault: it opens again, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import pytest

from mana.device.errors import WrongPassword
from mana.device.keeper import BEGUN_MS_MAX
from mana.device.records import RecordBook
from mana.device.replica import Tx
from mana.device.security import Security
from mana.testing.accounts import PASSWORD
from mana.testing.postgres import Database
from tests.device import shared
from tests.device.rig import Machine, Rig, note, rig_on, titles
from tests.device.vaulting import private_note, security, standing

pytestmark = [pytest.mark.anyio, pytest.mark.postgres, pytest.mark.slow]
NEW: Final = "another password of hers"
THIRD: Final = "the third password"
_T = TypeVar("_T")


class Killed(BaseException):
    """The process is gone: nothing of it runs on."""


class Executioner:
    """Kills a device at the n-th step that it takes: before and after each write and request."""

    def __init__(self, book: RecordBook, machine: Machine, at: int) -> None:
        self._at = at
        self.steps = 0
        self._is_dead = False
        replica = book.inner().replica
        self._write = replica.write
        replica.write = self._dying_write  # type: ignore[method-assign]
        machine.wire.on_request = self._dying_request

    def _step(self) -> None:
        if self._is_dead or self.steps == self._at:
            self._is_dead = True
            raise Killed
        self.steps += 1

    async def _dying_write(self, work: Callable[[Tx], _T]) -> _T:
        self._step()
        done = await self._write(work)
        self._step()
        return done

    async def _dying_request(
        self, request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response:
        self._step()
        response = await under.handle_async_request(request)
        await response.aread()
        self._step()
        return response


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def bury(book: RecordBook, machine: Machine) -> None:
    """Take away what a dead process would have left no trace of: its connection to the file."""
    machine.wire.on_request = None
    machine.books.remove(book)
    await book.inner().replica.close()


CHANGES: Final[dict[str, Callable[[Security], Any]]] = {
    "password": lambda guard: guard.change_password(PASSWORD, NEW),
    "master": lambda guard: guard.rotate_master(PASSWORD),
    "zero-knowledge": lambda guard: guard.set_mode("zero-knowledge", PASSWORD),
}
STEPS_MAX: Final = 60


@pytest.mark.timeout(280)
@pytest.mark.parametrize("change", CHANGES)
async def test_a_device_killed_at_any_step_opens_again(rig: Rig, change: str) -> None:
    """Wherever it dies: the account opens here without the hub, what was readable is readable, what
    waited is sent, a recovery code that the hub took is shown once and works, and another device
    follows. In the end the hub and the device agree on one vault."""
    for at in range(STEPS_MAX):
        if not await _killed_at(rig, change, at):
            assert at > 5
            return
    raise AssertionError("the change takes more steps than this")


async def _killed_at(rig: Rig, change: str, at: int) -> bool:
    """Die at a step; say whether the change got so far."""
    machine, other, third = rig.machine(), rig.machine(), rig.machine()
    login = f"ada{at}"
    book = await machine.sign_up(login)
    guard = security(book, machine)
    team = await shared.found(book, now_ms=machine.clock.now_ms)
    await book.sync_now()
    await private_note(team, "p1", "private")
    await note(book, "n1", title="sent")
    await book.keep("x", 1)
    await book.sync_now()
    there = await other.sign_in(login)
    await there.lock()
    await note(book, "n2", title="waited")
    first = await guard.new_recovery_code()
    await guard.kit_seen()
    Executioner(book, machine, at)
    is_killed = False
    try:
        await CHANGES[change](guard)
    except Killed:
        is_killed = True
    await bury(book, machine)
    again = await _reopened(machine, login)
    assert await titles(again) == {"n1": "sent", "n2": "waited"}
    assert await again.kept("x") == 1
    machine.clock.now_ms += BEGUN_MS_MAX if at % 2 else 0
    guard = security(again, machine)
    assert (await again.sync_now()).waiting == 0
    assert await titles(again.in_space(team.space)) == {"p1": "private"}
    is_taken = standing(again).revision == 2
    kit = await guard.waiting_kit()
    if change != "password":
        assert (kit is not None) == is_taken
    code = kit.code if kit is not None else first.code
    if kit is not None:
        await guard.kit_seen()
        assert await guard.waiting_kit() is None
    counting = NEW if change == "password" and is_taken else PASSWORD
    await again.lock()
    once_more = await machine.sign_in(login, counting)
    await once_more.sync_now()
    assert standing(once_more).statement == (await once_more.hub.vault()).statement
    await once_more.lock()
    found = await other.sign_in(login, counting)
    await found.sync_now()
    assert await titles(found) == {"n1": "sent", "n2": "waited"}
    assert await titles(found.in_space(team.space)) == {"p1": "private"}
    await found.lock()
    recovered = await third.accounts.recover(login, code, THIRD)
    await recovered.sync_now()
    assert await titles(recovered.in_space(team.space)) == {"p1": "private"}
    await recovered.lock()
    return is_killed


async def _reopened(machine: Machine, login: str) -> RecordBook:
    """Open the account without the hub, with the password of before or the one that was set."""
    machine.wire.is_cut = True
    try:
        for password in (PASSWORD, NEW):
            try:
                return await machine.sign_in(login, password)
            except WrongPassword:
                continue
    finally:
        machine.wire.is_cut = False
    raise AssertionError("no password opens the account any more")
