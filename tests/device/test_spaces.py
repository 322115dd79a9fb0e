"""Shared spaces between people's devices: who comes in, who goes, and what the hub cannot do."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest

from mana.crypto.authority import verify_log
from mana.crypto.primitives import b64
from mana.device import membership
from mana.device.desk import Device
from mana.device.errors import Offline, ReadOnlyHere, SpaceLeft
from mana.device.invitations import InvitationEnded, InvitationUsed, LinkMalformed
from mana.device.records import RecordBook
from mana.device.spaces import UNNAMED_MEMBER, Spaces
from mana.device.vault import SpaceKeys
from mana.device.views import Notice
from mana.device.writing import Write
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Forbidden, Invalid, ManaError, NotFound
from mana.domain.ids import RecordId
from mana.domain.settings import INVITATIONS
from mana.domain.spaces import MEMBER_NAMES, PROFILE, PROFILE_ID, MembershipRefused
from mana.protocol.errors import AlreadyMember, SpaceUndeletable
from mana.protocol.replication import HubDistrusted
from mana.testing.accounts import PASSWORD, new_account
from mana.testing.postgres import Database
from tests.device.household import Household, Place, household, operations
from tests.hub.client import START_MS

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

Answers = Callable[[httpx.Request, Any], Any]


@dataclass
class Party:
    """A person at one device, with what the hub answered to it."""

    device: Device
    place: Place
    spaces: Spaces
    notices: list[Notice] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.device.account_id

    @property
    def book(self) -> RecordBook:
        return operations(self.device).opened.book

    def keys(self, space_id: str) -> SpaceKeys:
        return self.book.inner().vault.space(space_id)

    async def sync(self) -> None:
        await self.device.sync_now()

    async def write(self, space_id: str, record_id: str, title: str, **options: Any) -> None:
        book = self.book.in_space(space_id)
        is_new = await book.view("notes", record_id) is None
        kind = ChangeKind.CREATE if is_new else ChangeKind.UPDATE
        change = Change("notes", RecordId(record_id), kind, {"title": title})
        person = operations(self.device).opened.person
        await book.commit([Write(change, person, **options)])

    async def titles(self, space_id: str) -> dict[str, str]:
        views = await self.book.in_space(space_id).views("notes")
        return {str(view.id): view.text("title") for view in views}

    def forge(self, path: str, change: Callable[[Any], Any], method: str = "GET") -> None:
        """Have the hub answer otherwise than it does, where the path ends so."""

        async def answer(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
            if request.url.path == "/api/v1/live":
                raise httpx.ConnectError("no live stream in this test", request=request)
            if request.method != method or not request.url.path.endswith(path):
                return None
            given = await under.handle_async_request(request)
            body = msgspec.json.decode(await given.aread())
            return httpx.Response(given.status_code, json=change(body), request=request)

        self.place.wire.on_request = answer

    def honest(self) -> None:
        self.forge("/nothing", lambda body: body)

    def lose(self, path: str, *, method: str = "POST") -> None:
        """Lose the hub's answer to one call: it did what was asked."""
        left = [1]

        async def answer(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
            if request.method == method and request.url.path.endswith(path) and left:
                left.pop()
                await under.handle_async_request(request)
                raise httpx.ReadError("lost", request=request)
            return None

        self.place.wire.on_request = answer

    def record(self) -> None:
        """Keep every byte that the hub answers from now on."""

        async def answer(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
            given = await under.handle_async_request(request)
            raw = await given.aread()
            self.answers.append(raw)
            headers = {"content-type": given.headers.get("content-type", "application/json")}
            return httpx.Response(given.status_code, content=raw, headers=headers, request=request)

        self.place.wire.on_request = answer

    def files(self) -> bytes:
        home = self.place.host.settings.home
        return b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


def at(home: Household, device: Device) -> Party:
    return wired(device, home.places[-1])


def wired(device: Device, place: Place) -> Party:
    opened = operations(device).opened
    notices: list[Notice] = []
    spaces = Spaces(opened, say=notices.append)
    opened.book.inner().syncer.after_spaces = spaces.after_spaces
    return Party(device, place, spaces, notices)


async def someone(home: Household, login: str) -> Party:
    made = at(home, await home.person(login, background=False))
    await made.device.set_display_name(login.capitalize())
    await made.sync()
    return made


async def another_device(home: Household, login: str) -> Party:
    return at(home, await home.second(login, background=False))


async def let_in(host: Party, guest: Party, space_id: str, role: str = "member") -> None:
    """Invite, accept, complete and arrive, as two people do it."""
    invitation = await host.spaces.invite(space_id, role)
    await guest.spaces.join(invitation.link)
    await host.sync()
    await guest.sync()
    await host.sync()


async def family(home: Household, *logins: str, role: str = "member") -> tuple[str, list[Party]]:
    """Return a family space of Ada's, and her with those whom she let in."""
    ada = await someone(home, "ada")
    space_id = await ada.spaces.create_space("The house", "family", description="Home")
    await ada.sync()
    people = [ada]
    for login in logins:
        guest = await someone(home, login)
        await let_in(ada, guest, space_id, role)
        people.append(guest)
    return space_id, people


async def test_a_family_founded_joined_and_shared(home: Household) -> None:
    """Ada invites Bo by link; he reads what was there before, both write, and names are known."""
    space_id, (ada,) = await family(home)
    await ada.write(space_id, "n1", "Before Bo")
    await ada.sync()
    bo = await someone(home, "bo")
    invitation = await ada.spaces.invite(space_id, "member", label="For Bo")
    assert (invitation.state, invitation.role, invitation.label) == ("open", "member", "For Bo")
    waiting = await bo.spaces.join(invitation.link)
    assert waiting.state == "accepted"
    assert [one.state for one in await bo.spaces.joining()] == ["accepted"]
    (seen,) = await ada.spaces.invitations(space_id)
    assert (seen.state, seen.link) == ("accepted", "")
    assert seen.fingerprint == waiting.fingerprint != ""
    await bo.sync()
    with pytest.raises(NotFound):
        bo.keys(space_id)
    await ada.sync()
    await bo.sync()
    assert await bo.titles(space_id) == {"n1": "Before Bo"}
    await bo.write(space_id, "n1", "By Bo")
    await bo.write(space_id, "n2", "New by Bo")
    await bo.sync()
    await ada.sync()
    assert await ada.titles(space_id) == {"n1": "By Bo", "n2": "New by Bo"}
    assert await bo.spaces.joining() == []
    for one, other in ((ada, bo), (bo, ada)):
        names = {member.account_id: member.name for member in await one.spaces.members(space_id)}
        assert names == {one.id: names[one.id], other.id: names[other.id]}
        assert sorted(names.values()) == ["Ada", "Bo"]
        (view,) = [view for view in await one.spaces.spaces() if view.space_id == space_id]
        assert (view.name, view.description, view.type, view.members) == (
            "The house",
            "Home",
            "family",
            2,
        )
    roles = {member.account_id: member.role for member in await bo.spaces.members(space_id)}
    assert roles == {ada.id: "owner", bo.id: "member"}
    prints = {one.fingerprint for one in await bo.spaces.members(space_id)}
    assert bo.book.inner().vault.identity.public().fingerprint() in prints
    assert [view.name for view in await ada.spaces.spaces()] == ["Personal", "The house"]
    assert await ada.book.views(INVITATIONS.name) == []


async def test_the_desk_has_it_all(home: Household) -> None:
    """Founding, inviting, joining and the members' names work by the device's own desk alone."""
    ada = await home.person("ada", background=False)
    bo = await home.person("bo", background=False)
    house = ada.in_space(await ada.create_space("The house", "family"))
    invitation = await house.invite("member", label="Bo")
    assert [one.label for one in await house.invitations()] == ["Bo"]
    await bo.join(invitation.link)
    assert [one.state for one in await bo.joining()] == ["accepted"]
    await ada.sync_now()
    await bo.sync_now()
    theirs = bo.in_space(house.space_id)
    note = await theirs.create("notes", {"title": "By Bo", "content": "."})
    await bo.sync_now()
    await ada.sync_now()
    assert (await house.get("notes", note)).text("title") == "By Bo"
    await house.set_role(bo.account_id, "viewer")
    await house.edit_space(name="Our house")
    await ada.sync_now()
    await bo.sync_now()
    assert [view.name for view in await bo.spaces()] == ["Personal", "Our house"]
    assert {one.role for one in await theirs.members()} == {"owner", "viewer"}
    await theirs.leave()
    await theirs.forget_space()
    with pytest.raises(NotFound):
        bo.in_space(house.space_id)
    await house.close_space()
    assert [view.closed for view in await ada.spaces()] == [False, True]


async def test_private_records_reach_nobody_else(home: Household) -> None:
    """Neither an answer of the hub nor a byte of Bo's replica names a private record of Ada's."""
    space_id, (ada,) = await family(home)
    secret_id = f"secret-{uuid.uuid4()}"
    await ada.write(space_id, secret_id, "Ada alone", visibility="private")
    await ada.write(space_id, "n1", "For all")
    await ada.sync()
    bo = await someone(home, "bo")
    bo.record()
    await let_in(ada, bo, space_id)
    await ada.write(space_id, secret_id, "Ada still alone")
    await ada.sync()
    await bo.sync()
    assert await bo.titles(space_id) == {"n1": "For all"}
    told = b"".join(bo.answers)
    assert b"n1" in told
    assert secret_id.encode() not in told
    assert secret_id.encode() not in bo.files()
    tablet = await another_device(home, "ada")
    await tablet.sync()
    assert (await tablet.titles(space_id))[secret_id] == "Ada still alone"


async def test_a_viewer_reads_and_writes_nothing(home: Household) -> None:
    """A viewer's device refuses before the hub has to; made a member, they write."""
    space_id, (ada, bo) = await family(home, "bo", role="viewer")
    await ada.write(space_id, "n1", "Read me")
    await ada.sync()
    await bo.sync()
    assert await bo.titles(space_id) == {"n1": "Read me"}
    with pytest.raises(ReadOnlyHere):
        await bo.write(space_id, "n1", "Mine")
    with pytest.raises(MembershipRefused):
        await bo.spaces.invite(space_id, "viewer")
    with pytest.raises(MembershipRefused):
        await bo.spaces.set_role(space_id, bo.id, "owner")
    names = {one.account_id: one.name for one in await ada.spaces.members(space_id)}
    assert names[bo.id] == UNNAMED_MEMBER
    await ada.spaces.set_role(space_id, bo.id, "member")
    await bo.sync()
    await bo.write(space_id, "n1", "Mine")
    await bo.sync()
    await ada.sync()
    assert await ada.titles(space_id) == {"n1": "Mine"}


async def test_a_viewer_who_becomes_a_member_has_a_name(home: Household) -> None:
    """The name of who came in as a viewer is not forgotten: it is written once they may write."""
    space_id, (ada, bo) = await family(home, "bo", role="viewer")
    named = {one.account_id: one.name for one in await ada.spaces.members(space_id)}
    assert named[bo.id] == UNNAMED_MEMBER

    await ada.spaces.set_role(space_id, bo.id, "member")
    await bo.sync()
    await bo.sync()
    await ada.sync()

    named = {one.account_id: one.name for one in await ada.spaces.members(space_id)}
    assert named[bo.id] == "Bo"


async def test_an_admin_stays_within_members_and_viewers(home: Household) -> None:
    """An admin invites and removes below admins, and makes nobody an admin or owner."""
    space_id, (ada, bo) = await family(home, "bo", role="admin")
    with pytest.raises(MembershipRefused):
        await bo.spaces.invite(space_id, "admin")
    for attempt in (
        bo.spaces.remove_member(space_id, ada.id),
        bo.spaces.set_role(space_id, ada.id, "member"),
        bo.spaces.set_role(space_id, bo.id, "owner"),
        bo.spaces.transfer(space_id, bo.id),
        bo.spaces.close_space(space_id),
    ):
        with pytest.raises(MembershipRefused):
            await attempt
    with pytest.raises(Invalid):
        await bo.spaces.invite(space_id, "owner")
    cy = await someone(home, "cy")
    await let_in(bo, cy, space_id)
    await bo.spaces.set_role(space_id, cy.id, "viewer")
    await bo.spaces.edit_space(space_id, name="Bo's house")
    await bo.spaces.remove_member(space_id, cy.id)
    await bo.sync()
    await ada.sync()
    assert [one.account_id for one in ada.keys(space_id).members] == [ada.id, bo.id]
    names = {view.space_id: view.name for view in await ada.spaces.spaces()}
    assert names[space_id] == "Bo's house"


async def test_who_is_removed_gets_nothing_more(home: Household) -> None:
    """From the entry on the hub answers Bo nothing; what he has stays, and opens nothing new."""
    space_id, (ada, bo) = await family(home, "bo")
    await ada.write(space_id, "n1", "While Bo was here")
    await ada.sync()
    await bo.sync()
    old = bo.keys(space_id)
    await ada.spaces.remove_member(space_id, bo.id)
    await ada.write(space_id, "n1", "After Bo")
    await ada.sync()
    assert ada.keys(space_id).version == old.version + 1
    # By which device Bo signed stays known: what they decided stays decided.
    known = ada.book.inner().syncer.authority(space_id)
    assert {account for account, _ in known.former.values()} == {bo.id}
    assert not known.former.keys() & known.devices.keys()
    hub = bo.book.hub
    for attempt in (
        hub.pull(space_id, 0, 100),
        hub.state(space_id),
        hub.record_state(space_id, "notes", "n1"),
        hub.space_devices(space_id),
        hub.invitations(space_id),
    ):
        with pytest.raises(NotFound):
            await attempt
    await bo.sync()
    left = bo.keys(space_id)
    assert left.former
    assert set(left.space_keys) == {old.version}
    assert ada.keys(space_id).space_keys[old.version + 1] not in left.space_keys.values()
    assert await bo.titles(space_id) == {"n1": "While Bo was here"}
    with pytest.raises(SpaceLeft):
        await bo.write(space_id, "n1", "Too late")
    with pytest.raises(SpaceLeft):
        await bo.spaces.invite(space_id, "viewer")
    views = {view.space_id: view for view in await bo.spaces.spaces()}
    assert (views[space_id].left, views[space_id].closed, views[space_id].role) == (
        True,
        False,
        "",
    )
    assert views[space_id].name == "The house"
    sealed = await ada.book.in_space(space_id).record("notes", "n1")
    assert sealed is not None
    assert str(sealed.entries["title"].value).startswith(f"enc:2:s{old.version + 1}:")
    await bo.spaces.forget_space(space_id)
    assert space_id not in {view.space_id for view in await bo.spaces.spaces()}
    await bo.sync()
    assert space_id not in {view.space_id for view in await bo.spaces.spaces()}


async def test_leaving_makes_the_owner_s_device_rotate(home: Household) -> None:
    """After Bo left, Ada's device gives the space another key by itself, once."""
    space_id, (ada, bo) = await family(home, "bo")
    version = ada.keys(space_id).version
    await bo.spaces.leave(space_id)
    assert bo.keys(space_id).former
    tablet = await another_device(home, "ada")
    await ada.sync()
    await tablet.sync()
    await ada.sync()
    assert ada.keys(space_id).version == version + 1
    assert tablet.keys(space_id).space_keys == ada.keys(space_id).space_keys
    assert len(ada.keys(space_id).entries) == 4
    await ada.write(space_id, "n1", "Under the new key")
    await ada.sync()
    await tablet.sync()
    assert await tablet.titles(space_id) == {"n1": "Under the new key"}
    with pytest.raises(MembershipRefused):
        await ada.spaces.leave(space_id)


async def test_a_space_is_handed_over_and_closed(home: Household) -> None:
    """Ada hands over to Bo and is his admin; he closes, and both devices know it is over."""
    space_id, (ada, bo) = await family(home, "bo")
    await ada.write(space_id, "n1", "Kept")
    await ada.sync()
    await bo.sync()
    await ada.spaces.transfer(space_id, bo.id)
    await bo.sync()
    assert (ada.keys(space_id).role, bo.keys(space_id).role) == ("admin", "owner")
    with pytest.raises(MembershipRefused):
        await ada.spaces.close_space(space_id)
    await bo.spaces.close_space(space_id)
    await ada.sync()
    await bo.sync()
    for one in (ada, bo):
        (view,) = [view for view in await one.spaces.spaces() if view.space_id == space_id]
        assert (view.left, view.closed) == (True, True)
        assert await one.titles(space_id) == {"n1": "Kept"}
        with pytest.raises(NotFound):
            await one.book.hub.state(space_id)


async def test_a_personal_space_is_never_shared(home: Household) -> None:
    """Nobody is invited to a personal space, and it is not left, closed or renamed."""
    ada = await someone(home, "ada")
    own = str(ada.book.personal_space)
    for attempt in (
        ada.spaces.invite(own, "viewer"),
        ada.spaces.leave(own),
        ada.spaces.close_space(own),
        ada.spaces.remove_member(own, str(uuid.uuid4())),
    ):
        with pytest.raises(SpaceUndeletable):
            await attempt
    with pytest.raises(Invalid):
        await ada.spaces.edit_space(own, name="Mine")
    with pytest.raises(Invalid):
        await ada.spaces.create_space("Mine", "personal")


def _swapped(keys: dict[str, Json]) -> Callable[[Any], Any]:
    def change(body: Any) -> Any:
        for one in body["invitations"]:
            one.update(keys)
        return body

    return change


@pytest.mark.parametrize("lie", ["keys", "account", "mac", "missing"])
async def test_a_forged_acceptance_lets_nobody_in(home: Household, lie: str) -> None:
    """A hub that puts another person or other keys into an acceptance is refused, and told of."""
    space_id, (ada,) = await family(home)
    bo = await someone(home, "bo")
    eve = new_account("eve", now_ms=START_MS)
    public = eve.identity.public()
    keys: dict[str, Json] = {
        "signingKey": b64(public.signing_key.to_bytes()),
        "hpkeKey": b64(public.hpke_key.to_bytes()),
    }
    forged: dict[str, dict[str, Json]] = {
        "keys": keys,
        "account": {"accountId": eve.account_id, **keys},
        "mac": {"mac": b64(bytes(32))},
        "missing": {"mac": None},
    }
    invitation = await ada.spaces.invite(space_id, "member")
    await bo.spaces.join(invitation.link)
    ada.forge("/invitations", _swapped(forged[lie]))
    ada.notices.clear()
    await ada.sync()
    await ada.sync()
    assert [one.account_id for one in ada.keys(space_id).members] == [ada.id]
    (seen,) = await ada.spaces.invitations(space_id)
    assert seen.state == "refused"
    assert ada.notices == [Notice("spaces")]
    ada.honest()
    await ada.sync()
    assert [one.account_id for one in ada.keys(space_id).members] == [ada.id, bo.id]


async def test_a_swapped_role_changes_nothing(home: Household) -> None:
    """The role is that of the inviter's own record, whatever the hub says of it."""
    space_id, (ada,) = await family(home)
    bo = await someone(home, "bo")
    invitation = await ada.spaces.invite(space_id, "viewer")
    await bo.spaces.join(invitation.link)
    ada.forge("/invitations", _swapped({"role": "admin"}))
    (seen,) = await ada.spaces.invitations(space_id)
    assert seen.role == "viewer"
    await ada.sync()
    roles = {one.account_id: one.role for one in ada.keys(space_id).members}
    assert roles == {ada.id: "owner", bo.id: "viewer"}


async def test_an_acceptance_counts_once(home: Household) -> None:
    """An acceptance that the hub shows again after a removal brings nobody back.

    Neither where the own record is gone, nor where a crash left it.
    """
    space_id, (ada,) = await family(home)
    bo = await someone(home, "bo")
    invitation = await ada.spaces.invite(space_id, "member")
    await bo.spaces.join(invitation.link)
    accepted = await ada.book.hub.invitations(space_id)
    view = await ada.book.view(INVITATIONS.name, invitation.invitation_id)
    assert view is not None
    await ada.sync()
    assert len(ada.keys(space_id).members) == 2
    await ada.spaces.remove_member(space_id, bo.id)
    replayed = msgspec.to_builtins(accepted)
    ada.forge("/invitations", lambda body: {"invitations": replayed})
    ada.place.wire.seen.clear()
    await ada.sync()
    assert len(ada.keys(space_id).members) == 1
    restored: dict[str, Json] = {"deletedAt": None, "secret": view.values["secret"]}
    change = Change(INVITATIONS.name, view.id, ChangeKind.UPDATE, restored)
    await ada.book.commit([Write(change, operations(ada.device).opened.person)])
    await ada.sync()
    assert [one.account_id for one in ada.keys(space_id).members] == [ada.id]
    assert not [path for _, path, _ in ada.place.wire.seen if path.endswith("/members")]
    assert await ada.book.views(INVITATIONS.name) == []
    ada.honest()
    await let_in(ada, bo, space_id)
    assert len(ada.keys(space_id).members) == 2


async def test_a_link_ends(home: Household) -> None:
    """A withdrawn link, an expired one, a used one and another text let nobody in."""
    space_id, (ada,) = await family(home)
    bo, cy = await someone(home, "bo"), await someone(home, "cy")
    withdrawn = await ada.spaces.invite(space_id, "member")
    await ada.spaces.withdraw_invitation(space_id, withdrawn.invitation_id)
    with pytest.raises(InvitationEnded):
        await bo.spaces.join(withdrawn.link)
    assert await bo.spaces.joining() == []
    used = await ada.spaces.invite(space_id, "member")
    await bo.spaces.join(used.link)
    with pytest.raises(InvitationUsed):
        await cy.spaces.join(used.link)
    await bo.spaces.join(used.link)
    with pytest.raises(AlreadyMember):
        await ada.spaces.join(used.link)
    with pytest.raises(LinkMalformed):
        await cy.spaces.join(used.link[:-1])
    late = await ada.spaces.invite(space_id, "member", days=1)
    home.served.clock.now_ms += 2 * 24 * 60 * 60 * 1_000
    with pytest.raises(InvitationEnded):
        await cy.spaces.join(late.link)


async def test_an_answer_for_another_invitation_is_not_believed(home: Household) -> None:
    """A hub that answers an acceptance with another space or invitation is distrusted."""
    space_id, (ada,) = await family(home)
    bo = await someone(home, "bo")
    invitation = await ada.spaces.invite(space_id, "member")
    for lie in ({"spaceId": "ab" * 32}, {"invitationId": str(uuid.uuid4())}):
        bo.forge(invitation.invitation_id, partial(_with, lie), method="POST")
        with pytest.raises(HubDistrusted):
            await bo.spaces.join(invitation.link)


def _with(lie: dict[str, str], body: dict[str, Json]) -> dict[str, Json]:
    return {**body, **lie}


async def test_a_withdrawn_acceptance_waits_for_nobody(home: Household) -> None:
    """An invitation that is withdrawn after somebody accepted it lets them not in."""
    space_id, (ada,) = await family(home)
    bo = await someone(home, "bo")
    invitation = await ada.spaces.invite(space_id, "member")
    await bo.spaces.join(invitation.link)
    accepted = msgspec.to_builtins(await ada.book.hub.invitations(space_id))
    await ada.spaces.withdraw_invitation(space_id, invitation.invitation_id)
    ada.forge("/invitations", lambda body: {"invitations": accepted})
    await ada.sync()
    assert len(ada.keys(space_id).members) == 1


async def test_an_invitation_that_is_long_over_lets_nobody_in(home: Household) -> None:
    """A hub that shows an acceptance after the invitation's end is not followed."""
    space_id, (ada,) = await family(home)
    bo = await someone(home, "bo")
    invitation = await ada.spaces.invite(space_id, "member", days=1)
    await bo.spaces.join(invitation.link)
    home.clock.ahead_ms += 3 * 24 * 60 * 60 * 1_000
    home.served.clock.now_ms = home.clock()
    await ada.sync()
    assert len(ada.keys(space_id).members) == 1
    (seen,) = await ada.spaces.invitations(space_id)
    assert seen.state == "expired"


@pytest.mark.parametrize("lie", ["hidden", "shorter", "forked", "left"])
async def test_a_hub_that_lies_about_a_space_is_refused(home: Household, lie: str) -> None:
    """A hidden space, a log without its last entry, another log and a made-up departure."""
    space_id, (ada, bo) = await family(home, "bo")
    before = bo.keys(space_id)
    forked = msgspec.to_builtins(
        membership.rotate(
            _until(ada.keys(space_id), 1),
            membership.Hand(ada.book.inner().vault.identity, START_MS),
        ).entry
    )

    def change(body: Any) -> Any:
        (found,) = [one for one in body["spaces"] if one["spaceId"] == space_id]
        rest = [one for one in body["spaces"] if one["spaceId"] != space_id]
        if lie == "hidden":
            return {"spaces": rest}
        if lie == "left":
            return {"spaces": rest, "departed": [{"spaceId": space_id, "log": found["log"]}]}
        log = found["log"][:-1] if lie == "shorter" else [found["log"][0], forked]
        return {"spaces": [*rest, {**found, "log": log}]}

    bo.forge("/api/v1/spaces", change)
    with pytest.raises(ManaError) as caught:
        await bo.sync()
    assert caught.value.code == HubDistrusted.code
    assert bo.keys(space_id).log == before.log
    assert not bo.keys(space_id).former
    bo.honest()
    await bo.sync()
    assert bo.keys(space_id).verified == before.verified


def _until(space: SpaceKeys, count: int) -> SpaceKeys:
    """Return a space as it was when its log had so many entries."""
    verified = verify_log(space.space_id, space.log[:count])
    return replace(space, verified=verified, version=verified.newest.key_version)


# What a crash or a lost answer leaves


async def restarted(party: Party) -> Party:
    """Lock and unlock: what was only in memory is gone."""
    host = party.place.host
    (known,) = host.accounts()
    party.honest()
    await host.lock(known.account_id)
    device = await host.sign_in(known.login, PASSWORD)
    return wired(device, party.place)


async def test_a_lost_answer_founds_one_space(home: Household) -> None:
    """Founding again after a lost answer is the same space; left alone, it still gets its name."""
    ada = await someone(home, "ada")
    ada.lose("/api/v1/spaces")
    with pytest.raises(Offline):
        await ada.spaces.create_space("The house", "family")
    ada.honest()
    first = await ada.spaces.create_space("The house", "family")
    ada.lose("/api/v1/spaces")
    with pytest.raises(Offline):
        await ada.spaces.create_space("The club", "club")
    again = await restarted(ada)
    await again.sync()
    await again.sync()
    listed = await again.spaces.spaces()
    assert [view.name for view in listed] == ["Personal", "The club", "The house"]
    views = {view.name: view for view in listed}
    assert views["The house"].space_id == first
    club = views["The club"].space_id
    names = await again.book.in_space(club).views(MEMBER_NAMES.name)
    assert [view.text("displayName") for view in names] == ["Ada"]
    tablet = await another_device(home, "ada")
    await tablet.sync()
    assert {view.name for view in await tablet.spaces.spaces()} == set(views)


async def test_what_needs_the_hub_leaves_nothing_half_done(home: Household) -> None:
    """Without a hub every change of members says OFFLINE, and afterwards all is as it was."""
    space_id, (ada, bo) = await family(home, "bo")
    link = (await ada.spaces.invite(space_id, "member")).link
    open_before = len(await ada.book.views(INVITATIONS.name))
    cy = await someone(home, "cy")
    before = ada.keys(space_id)
    for one in (ada, bo, cy):
        one.place.wire.is_cut = True
    for attempt in (
        ada.spaces.create_space("Another", "team"),
        ada.spaces.invite(space_id, "member"),
        ada.spaces.invitations(space_id),
        ada.spaces.set_role(space_id, bo.id, "viewer"),
        ada.spaces.remove_member(space_id, bo.id),
        ada.spaces.transfer(space_id, bo.id),
        ada.spaces.close_space(space_id),
        bo.spaces.leave(space_id),
        bo.spaces.joining(),
        cy.spaces.join(link),
    ):
        with pytest.raises(Offline):
            await attempt
    assert ada.keys(space_id) == before
    assert len(await ada.book.views(INVITATIONS.name)) == open_before
    await ada.spaces.edit_space(space_id, name="Renamed offline")
    for one in (ada, bo, cy):
        one.place.wire.is_cut = False
        await one.sync()
    await ada.sync()
    await bo.sync()
    assert ada.keys(space_id).log == before.log
    for one in (ada, bo):
        names = {view.name for view in await one.spaces.spaces()}
        assert names == {"Personal", "Renamed offline"}
    assert [one.state for one in await ada.spaces.invitations(space_id)].count("open") == 1


async def test_a_lost_answer_of_a_move_is_not_a_second_move(home: Household) -> None:
    """A change whose answer was lost stands once, and asking again changes nothing."""
    space_id, (ada, bo) = await family(home, "bo")
    count = len(ada.keys(space_id).entries)
    ada.lose("/members")
    with pytest.raises(Offline):
        await ada.spaces.set_role(space_id, bo.id, "viewer")
    ada.honest()
    await ada.spaces.set_role(space_id, bo.id, "viewer")
    await ada.sync()
    assert len(ada.keys(space_id).entries) == count + 1
    ada.lose("/members")
    with pytest.raises(Offline):
        await ada.spaces.remove_member(space_id, bo.id)
    ada.honest()
    await ada.spaces.remove_member(space_id, bo.id)
    assert len(ada.keys(space_id).entries) == count + 2
    assert [one.account_id for one in ada.keys(space_id).members] == [ada.id]


async def test_a_lost_answer_of_leaving_is_not_a_stay(home: Household) -> None:
    """Who left and did not hear of it finds out by the log, not by a hub that knows nothing."""
    space_id, (ada, bo) = await family(home, "bo")
    bo.lose("/members")
    with pytest.raises(Offline):
        await bo.spaces.leave(space_id)
    bo.honest()
    with pytest.raises(SpaceLeft):
        await bo.spaces.leave(space_id)
    assert bo.keys(space_id).former
    await ada.sync()
    ada.lose(f"/{space_id}", method="DELETE")
    with pytest.raises(Offline):
        await ada.spaces.close_space(space_id)
    ada.honest()
    with pytest.raises(SpaceLeft):
        await ada.spaces.close_space(space_id)
    assert ada.keys(space_id).closed


async def test_a_lost_answer_while_joining_lets_in_once(home: Household) -> None:
    """Lost answers on both sides of an invitation: one entry, no record left, the name written."""
    space_id, (ada,) = await family(home)
    bo = await someone(home, "bo")
    invitation = await ada.spaces.invite(space_id, "member")
    bo.lose(invitation.invitation_id)
    with pytest.raises(Offline):
        await bo.spaces.join(invitation.link)
    ada.lose("/members")
    await ada.sync()
    ada.honest()
    await ada.sync()
    again = await restarted(bo)
    await again.sync()
    await again.sync()
    await ada.sync()
    assert [one.account_id for one in ada.keys(space_id).members] == [ada.id, bo.id]
    assert len(ada.keys(space_id).entries) == 2
    assert await ada.book.views(INVITATIONS.name) == []
    names = {one.account_id: one.name for one in await ada.spaces.members(space_id)}
    assert names[bo.id] == "Bo"
    assert again.keys(space_id).private_keys


async def test_a_lost_invitation_leaves_no_secret(home: Household) -> None:
    """An invitation whose making was cut off has no link and no record, and can be withdrawn."""
    space_id, (ada,) = await family(home)
    ada.lose("/invitations")
    with pytest.raises(Offline):
        await ada.spaces.invite(space_id, "member")
    ada.honest()
    assert await ada.book.views(INVITATIONS.name) == []
    (gone,) = await ada.book.views(INVITATIONS.name, include_deleted=True)
    assert gone.values.get("secret") is None
    (dangling,) = await ada.spaces.invitations(space_id)
    assert (dangling.state, dangling.link) == ("open", "")
    await ada.spaces.withdraw_invitation(space_id, dangling.invitation_id)
    assert [one.state for one in await ada.spaces.invitations(space_id)] == ["withdrawn"]


async def test_a_move_on_an_old_log_is_said_again(home: Household) -> None:
    """Ada's tablet did not hear of a change; its own goes through, on top of that."""
    space_id, (ada, bo) = await family(home, "bo")
    tablet = await another_device(home, "ada")
    cy = await someone(home, "cy")
    await tablet.sync()
    await let_in(ada, cy, space_id)
    assert len(tablet.keys(space_id).members) == 2
    await tablet.spaces.set_role(space_id, bo.id, "viewer")
    roles = {one.account_id: one.role for one in tablet.keys(space_id).members}
    assert roles == {ada.id: "owner", bo.id: "viewer", cy.id: "member"}
    await ada.sync()
    await ada.spaces.remove_member(space_id, cy.id)
    with pytest.raises(NotFound):
        await tablet.spaces.set_role(space_id, cy.id, "viewer")


async def test_two_devices_complete_an_invitation_once(home: Household) -> None:
    """Both devices of the inviter see an acceptance; the log gets one entry."""
    space_id, (ada,) = await family(home)
    bo = await someone(home, "bo")
    tablet = await another_device(home, "ada")
    invitation = await ada.spaces.invite(space_id, "member")
    await bo.spaces.join(invitation.link)
    tablet.book.inner().syncer.after_spaces = None
    await tablet.sync()
    accepted = msgspec.to_builtins(await ada.book.hub.invitations(space_id))
    await ada.sync()
    tablet.forge("/invitations", lambda body: {"invitations": accepted})
    assert len(tablet.keys(space_id).entries) == 1
    assert await tablet.spaces.after_spaces() is False
    assert len(tablet.keys(space_id).entries) == 2
    assert ada.keys(space_id).log == tablet.keys(space_id).log


async def test_a_link_to_another_log_is_not_followed(home: Household) -> None:
    """Who arrives in a space whose log lacks what the link names is told, and writes no name."""
    space_id, (ada,) = await family(home)
    bo = await someone(home, "bo")
    invitation = await ada.spaces.invite(space_id, "member")
    await bo.spaces.join(invitation.link[:-64] + "ab" * 32)
    await ada.sync()
    await bo.sync()
    assert Notice("spaces") in bo.notices
    assert [one.state for one in await bo.spaces.joining()] == ["refused"]
    own = [view.id for view in await bo.book.in_space(space_id).views(MEMBER_NAMES.name)]
    assert own == [ada.id]
    await bo.spaces.leave(space_id)
    assert await bo.spaces.joining() == []


async def test_nobody_is_named_where_they_were_merely_put(home: Household) -> None:
    """A device that did not choose the space writes no name there; the one that did, does."""
    space_id, (ada,) = await family(home)
    bo = await someone(home, "bo")
    tablet = await another_device(home, "bo")
    invitation = await ada.spaces.invite(space_id, "member")
    await bo.spaces.join(invitation.link)
    await ada.sync()
    await tablet.sync()
    await tablet.sync()
    assert tablet.keys(space_id).private_keys
    own = [view.id for view in await tablet.book.in_space(space_id).views(MEMBER_NAMES.name)]
    assert own == [ada.id]
    await bo.sync()
    await bo.sync()
    await ada.sync()
    names = {one.account_id: one.name for one in await ada.spaces.members(space_id)}
    assert names[bo.id] == "Bo"
    await tablet.sync()
    await tablet.device.set_display_name("Bob")
    await tablet.sync()
    await tablet.sync()
    await ada.sync()
    names = {one.account_id: one.name for one in await ada.spaces.members(space_id)}
    assert names[bo.id] == "Bob"


async def test_nobody_names_another(home: Household) -> None:
    """A member writes neither another's name nor the space's."""
    space_id, (ada, bo) = await family(home, "bo")
    book = bo.book.in_space(space_id)
    change = Change(
        MEMBER_NAMES.name, RecordId(ada.id), ChangeKind.UPDATE, {"displayName": "Somebody"}
    )
    with pytest.raises(Forbidden):
        await book.commit([Write(change, operations(bo.device).opened.person)])
    with pytest.raises(Forbidden):
        await bo.spaces.edit_space(space_id, name="Bo's")
    profile = await book.view(PROFILE.name, PROFILE_ID)
    assert profile is not None
    assert profile.text("name") == "The house"
