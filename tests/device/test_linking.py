"""A new device is let in by an old one through the real hub, which a wire can make an attacker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from mana.crypto.primitives import b64
from mana.device.app import build
from mana.device.desk import Device
from mana.device.errors import AccountKnown, Offline, PasswordAsked, WrongPassword
from mana.device.links import LinkNotApproved, LinkNotShown, PendingLink
from mana.domain.errors import ManaError
from mana.protocol.errors import LinkEnded, SessionEnded
from mana.testing.accounts import PASSWORD
from mana.testing.postgres import Database
from tests.device.household import Household, Place, household, operations

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def begun(home: Household, login: str = " ADA") -> tuple[Place, PendingLink[Device]]:
    """Return a new machine that asks to be let in."""
    place = home.place(background=False)
    return place, await place.host.begin_link(login, "Ada's laptop")


async def compared(old: Device, pending: PendingLink[Device]) -> str:
    """Answer a link and go on until both devices show digits; return them if they are the same."""
    (waiting,) = await old.links.waiting()
    assert (waiting.name, waiting.state, waiting.digits) == ("Ada's laptop", "waiting", None)
    await old.links.answer(pending.link_id)
    shown = await pending.poll()
    (view,) = await old.links.waiting()
    assert view.digits == shown.digits
    assert view.digits is not None
    return view.digits


async def linked(home: Household, old: Device) -> tuple[Place, Device]:
    place, pending = await begun(home)
    await compared(old, pending)
    await old.links.approve(pending.link_id)
    assert (await pending.poll()).state == "approved"
    return place, await pending.finish()


async def test_a_new_device_reads_and_writes(home: Household) -> None:
    """Let in by an old device, a new one has everything, is a device of its own, and syncs."""
    ada = await home.person(background=False)
    await ada.create("notes", {"title": "One"})
    await ada.sync_now()
    place, laptop = await linked(home, ada)
    assert laptop.account_id == ada.account_id
    assert [view.text("title") for view in await laptop.list("notes")] == ["One"]
    await laptop.create("notes", {"title": "Two"})
    await laptop.sync_now()
    await ada.sync_now()
    assert {view.text("title") for view in await ada.list("notes")} == {"One", "Two"}
    devices = await laptop.sessions.devices()
    assert len(devices) == 2
    assert all(one.certified and one.revoked_at is None for one in devices)
    assert [one.id for one in devices if one.current] == [operations(laptop).opened.device_id]
    names = {one.device_id: one.name for one in await laptop.sessions.list()}
    assert names[operations(laptop).opened.device_id] == "Ada's laptop"
    assert await ada.links.waiting() == []
    assert place.host.device(laptop.account_id) is laptop


async def test_the_password_is_asked_when_it_is_first_locked(home: Household) -> None:
    """A linked device knows no password: the right one opens it later, offline too."""
    ada = await home.person(background=False)
    place, laptop = await linked(home, ada)
    book = operations(laptop).opened.book
    with pytest.raises(PasswordAsked):
        book.login_key()
    await place.host.lock(laptop.account_id)
    place.wire.is_cut = True
    with pytest.raises(WrongPassword):
        await place.host.sign_in("ada", "not the password")
    again = await place.host.sign_in("ada", PASSWORD)
    assert operations(again).opened.book.login_key()
    place.wire.is_cut = False
    assert (await again.sync_now()).link is not None


async def test_a_linked_device_whose_session_ends_asks_for_the_password(home: Household) -> None:
    """Without a login key it does not sign in anew by itself; the password brings it back."""
    ada = await home.person(background=False)
    place, laptop = await linked(home, ada)
    own = operations(laptop).opened.device_id
    (session,) = [one for one in await ada.sessions.list() if one.device_id == own]
    await laptop.create("notes", {"title": "Kept"})
    await ada.sessions.end(session.session_id)
    with pytest.raises(SessionEnded):
        await laptop.sync_now()
    assert await place.host.sign_in("ada", PASSWORD) is laptop
    assert (await laptop.sync_now()).waiting == 0


async def test_a_refused_link_gives_nothing(home: Household) -> None:
    """A refusal on the old device ends the link on the new one."""
    ada = await home.person(background=False)
    place, pending = await begun(home)
    await compared(ada, pending)
    await ada.links.refuse(pending.link_id)
    assert (await pending.poll()).state == "refused"
    with pytest.raises(LinkNotApproved):
        await pending.finish()
    with pytest.raises(LinkNotShown):
        await ada.links.approve(pending.link_id)
    await pending.close()
    assert place.host.accounts() == []


async def test_a_login_that_nobody_has_waits_in_vain(home: Household) -> None:
    """A new device learns nothing of whether a login exists."""
    _, pending = await begun(home, "nobody")
    view = await pending.poll()
    assert (view.state, view.digits) == ("waiting", None)
    await pending.close()


async def test_a_link_ends_after_ten_minutes(home: Household) -> None:
    """What nobody answered in time cannot be answered later."""
    ada = await home.person(background=False)
    _, pending = await begun(home)
    home.served.clock.now_ms += 11 * 60_000
    assert await ada.links.waiting() == []
    with pytest.raises(LinkEnded):
        await ada.links.answer(pending.link_id)
    with pytest.raises(LinkEnded):
        await pending.poll()
    await pending.close()


async def test_an_account_that_is_here_is_not_linked_again(home: Household) -> None:
    """A device that has the account unlocks it, and loses nothing by a second copy."""
    ada = await home.person(background=False)
    with pytest.raises(AccountKnown):
        await home.places[0].host.begin_link("Ada ", "Ada's laptop")
    place, pending = await begun(home)
    await compared(ada, pending)
    await ada.links.approve(pending.link_id)
    await pending.poll()
    there = await place.host.sign_in("ada", PASSWORD)
    await there.create("notes", {"title": "Kept"})
    with pytest.raises(AccountKnown):
        await pending.finish()
    assert [view.text("title") for view in await there.list("notes")] == ["Kept"]
    await pending.close()


async def test_a_hub_that_goes_away_at_the_end_is_asked_again(home: Household) -> None:
    """What was handed over once is not lost when the connection breaks before it is installed."""
    ada = await home.person(background=False)
    place, pending = await begun(home)
    await compared(ada, pending)
    await ada.links.approve(pending.link_id)
    await pending.poll()
    place.wire.is_cut = True
    with pytest.raises(Offline):
        await pending.finish()
    assert place.host.accounts() == []
    place.wire.is_cut = False
    assert (await pending.poll()).state == "approved"
    assert (await pending.finish()).account_id == ada.account_id


async def test_a_device_that_stopped_in_the_middle_has_nothing(home: Household) -> None:
    """The new device's keys are in memory only: after a crash it begins again."""
    ada = await home.person(background=False)
    place, pending = await begun(home)
    await compared(ada, pending)
    await ada.links.approve(pending.link_id)
    await pending.poll()
    await pending.close()
    raw = b"".join(
        path.read_bytes() for path in place.host.settings.home.rglob("*") if path.is_file()
    )
    assert operations(ada).opened.book.inner().vault.master_key not in raw
    with pytest.raises(LinkNotApproved):
        await pending.finish()
    again = build(
        place.host.settings, now_ms=home.clock, transport=lambda: place.wire, background=False
    )
    assert again.accounts() == []
    await again.close()


Answers = dict[str, Any]


def lying(place: Place, path_end: str, twist: Any) -> None:
    """Let the hub's answers to a path go through a twist."""

    async def on_request(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
        if request.url.path == "/api/v1/live":
            raise httpx.ConnectError("no live stream in this test", request=request)
        if not request.url.path.endswith(path_end):
            return None
        answer = await under.handle_async_request(request)
        body = json.loads(await answer.aread())
        return httpx.Response(answer.status_code, json=twist(body))

    place.wire.on_request = on_request


@pytest.mark.parametrize(
    "where,name",
    [
        ("/me/vault", "masterCheck"),
        ("/me/vault", "accountId"),
        ("/me/vault", "identity"),
        ("/poll", "certificate"),
        ("/poll", "wrapped"),
        ("/poll", "tokens"),
        ("/poll", "accountId"),
        ("/poll", "nonce"),
    ],
)
async def test_a_lie_at_the_end_installs_nothing(home: Household, where: str, name: str) -> None:
    """A vault, certificate, wrap or session of another account ends in an error with a code."""
    ada = await home.person(background=False)
    bob = await home.person("bob", background=False)
    await ada.sync_now()
    theirs = operations(bob).opened.book.inner()
    place, pending = await begun(home)
    await compared(ada, pending)
    await ada.links.approve(pending.link_id)
    foreign = msgspec.to_builtins(await theirs.hub.vault())

    def twist(body: Answers) -> Answers:
        if name == "certificate":
            certificate = dict(body["certificate"])
            certificate["signature"] = b64(bytes(64))
            return {**body, name: certificate}
        if name == "wrapped":
            return {**body, name: b64(bytes(1168))}
        if name == "tokens":
            return {**body, name: {**body["tokens"], "accountId": bob.account_id}}
        if name == "nonce":
            return {**body, name: b64(bytes(32))}
        return {**body, name: bob.account_id if name == "accountId" else foreign[name]}

    lying(place, where, twist)
    with pytest.raises(ManaError) as refused:
        await pending.poll()
        await pending.finish()
    assert refused.value.code in (
        "HUB_DISTRUSTED",
        "WRAP_REJECTED",
        "CRYPTO_MALFORMED",
        "SEAL_REJECTED",
    )
    assert place.host.accounts() == []
    assert not list(place.host.settings.folder.glob("*.db"))
    await pending.close()


async def test_a_hub_in_the_middle_shows_other_digits(home: Household) -> None:
    """A hub that answers a new device for the wrong link, or with another key, is seen."""
    ada = await home.person(background=False)
    first_place, first = await begun(home)
    _, second = await begun(home)
    for pending in (first, second):
        await ada.links.answer(pending.link_id)
    there = f"http://hub.test/api/v1/auth/links/{second.link_id}/poll"
    body = msgspec.json.encode({"ticket": second._ticket})

    async def crossed(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
        if not request.url.path.endswith("/poll"):
            return None
        asked = httpx.Request("POST", there, content=body, headers=request.headers)
        asked.headers["content-length"] = str(len(body))
        return await under.handle_async_request(asked)

    first_place.wire.on_request = crossed
    shown = (await first.poll()).digits
    assert shown is not None
    old = [view.digits for view in await ada.links.waiting()]
    assert any(old)
    assert shown not in old
    for pending in (first, second):
        await pending.close()


async def test_two_old_devices_do_not_hand_over_twice(home: Household) -> None:
    """Approved at the same moment on two devices, a link lets one device in, once."""
    ada = await home.person(background=False)
    phone = await home.second(background=False)
    _, pending = await begun(home)
    await compared(ada, pending)
    (view,) = await phone.links.waiting()
    assert view.digits == (await pending.poll()).digits
    outcomes = await asyncio.gather(
        ada.links.approve(pending.link_id),
        phone.links.approve(pending.link_id),
        return_exceptions=True,
    )
    assert sum(one is None for one in outcomes) == 1
    await pending.poll()
    laptop = await pending.finish()
    assert len(await laptop.sessions.devices()) == 3
