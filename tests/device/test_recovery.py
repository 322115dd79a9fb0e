"""A lost password: the recovery code and the operator's token, on devices old and new."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from mana.crypto.primitives import b64
from mana.crypto.vaults import RecoveryCodeMalformed
from mana.device.errors import Offline, WrongPassword
from mana.device.records import RecordBook
from mana.domain.errors import Invalid, ManaError
from mana.hub.app import operator
from mana.protocol.errors import InvalidCredentials, VaultMoved
from mana.protocol.replication import HubDistrusted
from mana.testing.accounts import PASSWORD
from mana.testing.postgres import Database
from tests.device.household import household
from tests.device.rig import Machine, Rig, note, rig_on, titles
from tests.device.vaulting import security, standing

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]
NEW = "another password of hers"


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


async def recovered(machine: Machine, code: str, password: str = NEW) -> RecordBook:
    book = await machine.accounts.recover("ada", code, password)
    machine.books.append(book)
    return book


async def reset_token(rig: Rig, login: str = "ada") -> str:
    async with operator(rig.served.hub.settings, clock=rig.served.clock) as made:
        return await made.reset(login)


async def test_a_code_opens_the_account_on_a_new_device(rig: Rig) -> None:
    """With the code alone a new device reads everything; from then on the new password counts,
    and the code goes on to hold."""
    machine, other, third = rig.machine(), rig.machine(), rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="here")
    await book.sync_now()
    kit = await security(book, machine).new_recovery_code()
    found = await recovered(other, f" {kit.code.lower().replace('-', ' ')} ")
    await found.sync_now()
    assert await titles(found) == {"n1": "here"}
    await found.lock()
    other.wire.is_cut = True
    assert await titles(await other.sign_in(password=NEW)) == {"n1": "here"}
    with pytest.raises(InvalidCredentials):
        await third.sign_in()
    again = await recovered(third, kit.code, "a third password")
    assert standing(again).revision == 3


async def test_a_code_opens_the_account_that_is_here(rig: Rig) -> None:
    """Where the account is kept and its password is lost, the code opens it in place: device, what
    was kept and what waited stay, also where the master key is another by now."""
    machine, other = rig.machine(), rig.machine()
    book, there = await machine.sign_up(), await other.sign_in()
    await note(there, "n1", title="waited")
    await there.keep("x", 1)
    device_id = there.device_id
    await there.lock()
    guard = security(book, machine)
    await guard.rotate_master(PASSWORD)
    kit = await guard.rotate_master(PASSWORD)
    again = await recovered(other, kit.code)
    assert (again.device_id, await again.kept("x")) == (device_id, 1)
    assert (await again.sync_now()).waiting == 0
    await again.lock()
    assert await titles(await other.sign_in(password=NEW)) == {"n1": "waited"}
    with pytest.raises(WrongPassword):
        await rig.machine(other.home).sign_in()


async def test_a_wrong_code_opens_nothing(rig: Rig) -> None:
    """A mistyped code is told from a wrong one, and neither leaves anything on the device."""
    machine, other = rig.machine(), rig.machine()
    book = await machine.sign_up()
    kit = await security(book, machine).new_recovery_code()
    with pytest.raises(RecoveryCodeMalformed):
        await recovered(other, kit.code[:-1])
    with pytest.raises(InvalidCredentials):
        await recovered(other, "0000-" * 15 + "0000")
    with pytest.raises(Invalid):
        await recovered(other, kit.code, "short")
    other.wire.is_cut = True
    with pytest.raises(Offline):
        await recovered(other, kit.code)
    assert other.accounts.known() == []
    await book.sync_now()
    assert standing(book).revision == 1


async def test_a_recovery_that_is_cut_off_is_begun_again(rig: Rig) -> None:
    """If the new password does not reach the hub, a new device keeps nothing that only the lost
    one would open; and the code can be used again."""
    machine, other = rig.machine(), rig.machine()
    book = await machine.sign_up()
    kit = await security(book, machine).new_recovery_code()

    async def cut(request: httpx.Request, under: httpx.AsyncBaseTransport) -> None:
        if request.method == "PUT":
            raise httpx.ConnectError("cut", request=request)

    other.wire.on_request = cut
    with pytest.raises(Offline):
        await recovered(other, kit.code)
    assert other.accounts.known() == []
    other.wire.on_request = None
    await (await recovered(other, kit.code)).sync_now()


async def test_a_reset_gives_a_new_password_in_standard_mode(rig: Rig) -> None:
    """The operator's token opens the account once: records stay, the lost password opens nothing
    any more, and the token neither."""
    machine, other, third = rig.machine(), rig.machine(), rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="here")
    await book.sync_now()
    token = await reset_token(rig)
    found = await other.accounts.reset("ada", f" {token}\n", NEW)
    other.books.append(found)
    await found.sync_now()
    assert await titles(found) == {"n1": "here"}
    with pytest.raises(ManaError):
        await third.accounts.reset("ada", token, "a third password")
    with pytest.raises(InvalidCredentials):
        await third.sign_in()
    await (await third.sign_in(password=NEW)).lock()


async def test_a_reset_opens_the_account_that_is_here(rig: Rig) -> None:
    """Where the account is kept, a reset leaves what waits in it."""
    machine = rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="waited")
    await book.lock()
    found = await machine.accounts.reset("ada", await reset_token(rig), NEW)
    machine.books.append(found)
    assert (await found.sync_now()).waiting == 0
    assert await titles(found) == {"n1": "waited"}


async def test_an_account_that_is_open_takes_the_new_password(database: Database) -> None:
    """Signing in where the account stands open: a password that was set on another device is
    taken, one that is none is not, and after another master key the one in force leads on."""
    async with household(database) as home:
        ada, there = await home.person(), await home.second()
        host = home.places[1].host
        await ada.security.change_password(PASSWORD, NEW)
        await there.create("notes", {"title": "waited"})
        with pytest.raises(WrongPassword):
            await host.sign_in("ada", "not the password")
        home.places[1].wire.is_cut = True
        with pytest.raises(WrongPassword):
            await host.sign_in("ada", NEW)
        home.places[1].wire.is_cut = False
        assert await host.sign_in("ada", NEW) is there
        assert (await there.sync_now()).waiting == 0
        await ada.security.rotate_master(NEW)
        with pytest.raises(VaultMoved):
            await there.sync_now()
        assert await host.sign_in("ada", NEW) is there
        await there.sync_now()
        await ada.sync_now()
        assert [view.text("title") for view in await ada.list("notes")] == ["waited"]


@pytest.mark.parametrize("lie", ["key", "wrap", "id", "none"])
async def test_a_hub_that_lies_at_a_recovery_is_found_out(rig: Rig, lie: str) -> None:
    """Another master key, another wrap or another name of the code: nothing is kept."""
    machine, other = rig.machine(), rig.machine()
    book = await machine.sign_up()
    kit = await security(book, machine).new_recovery_code()
    token = await reset_token(rig)

    async def falsify(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if not request.url.path.endswith(("/me/vault", "/auth/reset")) or request.method == "PUT":
            return None
        response = await under.handle_async_request(request)
        body = msgspec.json.decode(await response.aread())
        if "masterKey" in body:
            body["masterKey"] = b64(b"\1" * 32)
        elif lie == "wrap":
            body["recovery"]["wrapped"] = body["masterWrap"]
        elif lie == "id":
            body["recovery"]["keyId"] = "r-0123456789abcdef"
        elif lie == "none":
            del body["recovery"]
        return httpx.Response(response.status_code, json=body)

    other.wire.on_request = falsify
    with pytest.raises(HubDistrusted):
        if lie == "key":
            await other.accounts.reset("ada", token, NEW)
        else:
            await recovered(other, kit.code)
    assert other.accounts.known() == []
    assert not any(method == "PUT" for method, _, _ in other.wire.seen)
