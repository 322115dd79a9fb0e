"""What follows from a change of keys: every space comes along, whatever stops it on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from mana.crypto.identity import revoke_device
from mana.crypto.primitives import b64
from mana.device.desk import Device
from mana.device.errors import Offline
from mana.device.fingerprints import FingerprintMoved
from mana.device.rotation import RETIRED_AFTER_MS, Rotation
from mana.device.vault import OpenedVault, SpaceKeys
from mana.device.views import MemberView, RotationView
from mana.domain.clock import iso_ms
from mana.domain.spaces import MembershipRefused
from mana.protocol.messages import DeviceRevocation, DevicesAnswer
from mana.testing.accounts import PASSWORD
from mana.testing.postgres import Database
from tests.device.household import (
    Household,
    household,
    let_in,
    operations,
    planned_mission,
    shared_space,
)

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


def vault_of(device: Device) -> OpenedVault:
    return operations(device).opened.book.inner().vault


def rotation_of(device: Device) -> Rotation:
    return operations(device).spaces.rotation


def keys_of(device: Device, space_id: str) -> SpaceKeys:
    return vault_of(device).space(space_id)


async def new_identity(device: Device) -> None:
    """Give the account another identity; its other devices take it when they sync."""
    await device.security.rotate_identity()


def names_new_identity(device: Device, space: SpaceKeys) -> bool:
    own = space.entries[-1].member(device.account_id)
    public = vault_of(device).identity.public()
    return own is not None and own.keys == (
        b64(public.signing_key.to_bytes()),
        b64(public.hpke_key.to_bytes()),
    )


def followed(device: Device) -> bool:
    return all(names_new_identity(device, space) for space in vault_of(device).spaces.values())


async def party(home: Household) -> tuple[Device, Device, str, str]:
    """Return Ada and Bob, Ada's team with Bob in it, and Bob's family with Ada in it."""
    ada, bob = await home.person("ada"), await home.person("bob")
    team, family = await shared_space(ada), await shared_space(bob, "family")
    await let_in(ada, team, bob)
    await let_in(bob, family, ada)
    await ada.sync_now()
    return ada, bob, team, family


async def written(device: Device, space_id: str, title: str) -> str:
    note = await device.in_space(space_id).create("notes", {"title": title})
    await device.sync_now()
    return note


async def title(device: Device, space_id: str, note: str) -> str:
    await device.sync_now()
    return (await device.in_space(space_id).get("notes", note)).text("title")


async def test_every_space_follows_to_a_new_identity(home: Household) -> None:
    """All logs name it, what was written opens for everybody, who manages has changed the space's
    key too, and the hub holds no wrap that an identity before opens."""
    ada, bob, team, family = await party(home)
    spaces = [ada.space_id, team, family]
    notes = {space: await written(ada, space, f"in {space[:4]}") for space in spaces}
    private = await ada.in_space(family).create("notes", {"title": "mine"}, visibility="private")
    await ada.sync_now()
    before = {space: keys_of(ada, space).version for space in spaces}
    await new_identity(ada)
    former = {b64(one.public().signing_key.to_bytes()) for one in vault_of(ada).identities[1:]}
    wraps_before = await operations(ada).opened.hub.spaces()
    assert (await rotation_of(ada).counted()).identities == former
    assert await ada.security.rotations() == [RotationView("", "identity", 2, 0, 4)]
    await ada.sync_now()
    assert followed(ada)
    after = {space: keys_of(ada, space).version - before[space] for space in spaces}
    assert after == {ada.space_id: 1, team: 1, family: 0}
    assert (await rotation_of(ada).counted()).identities == frozenset()
    for space in (team, family):
        assert await title(bob, space, notes[space]) == f"in {space[:4]}"
        assert (await bob.in_space(space).members())[0].account_id
    for space in spaces:
        assert await title(ada, space, notes[space]) == f"in {space[:4]}"
    assert await title(ada, family, private) == "mine"
    wire = home.places[0].wire
    wire.seen.clear()
    operations(ada).opened.book.inner().syncer.spaces_moved()
    await ada.sync_now()
    assert not [path for _, path, _ in wire.seen if path.endswith("/members")], "all is said"
    late = await written(ada, family, "after")
    assert await title(bob, family, late) == "after"
    again = await home.second("ada")
    assert [await title(again, space, notes[space]) for space in spaces] == [
        f"in {space[:4]}" for space in spaces
    ]
    assert await title(again, family, private) == "mine"

    async def older(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
        if request.url.path != "/api/v1/spaces":
            return None
        return httpx.Response(200, content=msgspec.json.encode(wraps_before), request=request)

    wire.on_request = older
    assert (await rotation_of(ada).counted()).identities == former, "by wraps alone"


@pytest.mark.parametrize("does", [True, False], ids=["answer lost", "request lost"])
async def test_it_goes_on_wherever_it_was_stopped(home: Household, does: bool) -> None:
    """Cut at each of its calls in turn, with and without effect, and begun again from what the
    replica keeps, it ends where it would have."""
    ada, bob, team, family = await party(home)
    note = await written(ada, team, "kept")
    place, cut = home.places[0], list[str]()

    async def lose(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
        name = request.url.path
        if name in cut or not name.endswith("/members"):
            return None
        cut.append(name)
        if does:
            await under.handle_async_request(request)
        raise httpx.ReadError("lost", request=request)

    # From here on: whatever follows the new identity first, it is cut.
    place.wire.on_request = lose
    await new_identity(ada)
    for stopped in range(1, 5):
        await ada.sync_now()
        assert len(cut) == stopped, "once in each of the four spaces"
        await place.host.lock(ada.account_id)
        ada = await place.host.sign_in("ada", PASSWORD)
    await ada.sync_now()
    assert followed(ada)
    assert len(cut) == 4
    lengths = {space: len(keys_of(ada, space).log) for space in (team, family)}
    assert lengths == {team: 3, family: 3}, "and nothing was said twice"
    place.wire.on_request = None
    assert await title(bob, team, note) == "kept"


async def test_two_syncs_at_once_say_it_once(home: Household) -> None:
    """Where the sync in the background and one that was asked for meet lost answers in turn, each
    space follows all the same, and its log says so once."""
    ada, _, team, family = await party(home)
    wire, lost = home.places[0].wire, set[str]()

    async def lose(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
        if request.url.path in lost or not request.url.path.endswith("/members"):
            return None
        lost.add(request.url.path)
        await under.handle_async_request(request)
        raise httpx.ReadError("lost", request=request)

    wire.on_request = lose
    await new_identity(ada)
    for _ in range(5):
        await asyncio.gather(ada.sync_now(), ada.sync_now())
    assert len(lost) == 4
    assert followed(ada)
    assert {len(keys_of(ada, space).log) for space in (team, family)} == {3}


@pytest.mark.parametrize("what", ["role", "key", "leave"])
async def test_others_may_change_the_space_at_the_same_time(home: Household, what: str) -> None:
    """Another member's entry that comes between is read, and the identity follows after it."""
    ada, bob, _, family = await party(home)
    cem = await home.person("cem")
    await let_in(bob, family, cem)
    await ada.sync_now()
    await new_identity(ada)
    wire, left = home.places[0].wire, [1]

    async def first(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
        if request.url.path.endswith(f"{family}/members") and left:
            left.pop()
            if what == "role":
                await bob.in_space(family).set_role(ada.account_id, "viewer")
            elif what == "key":
                await rotation_of(bob).rotate_space(family)
            else:
                await cem.in_space(family).leave()
        return None

    wire.on_request = first
    await ada.sync_now()
    assert not left
    assert followed(ada)
    space = keys_of(ada, family)
    assert not space.spoiled
    assert len(space.log) == 5
    await bob.sync_now()
    assert keys_of(bob, family).verified.head in keys_of(bob, family).verified.hashes


async def test_a_former_identity_is_dropped_when_nothing_counts_on_it(home: Household) -> None:
    """Not before every space has followed, and not while somebody may still let the account in
    under it; devices that were away open what they keep, and go on."""
    ada, bob, team, _ = await party(home)
    away = await home.second("ada")
    note = await written(ada, team, "kept")
    await away.sync_now()
    away_place = home.places[-1]
    away_place.wire.is_cut = True
    late = await away.in_space(team).create("notes", {"title": "from afar"})
    later = await shared_space(bob, "club")
    link = (await bob.in_space(later).invite("member")).link
    await ada.join(link)
    await ada.security.rotate_identity()
    assert not await ada.security.let_go(), "spaces have yet to follow"
    await ada.sync_now()
    assert not await ada.security.let_go(), "an invitation was accepted with it"
    await bob.sync_now()
    await ada.sync_now()
    await ada.sync_now()
    assert followed(ada), "let in under the keys of then, and followed"
    assert later in vault_of(ada).spaces
    assert await ada.security.let_go()
    assert vault_of(ada).keys.former_identities == ()
    host = away_place.host
    await host.lock(ada.account_id)
    away_place.wire.is_cut = False
    only_vault = [1, 1]

    async def first_the_vault(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
        if only_vault and request.url.path == "/api/v1/spaces":
            only_vault.pop()
            raise httpx.ConnectError("cut", request=request)
        return None

    away = await host.sign_in("ada", PASSWORD)
    away_place.wire.on_request = first_the_vault
    with pytest.raises(Offline):
        await away.sync_now()
    assert vault_of(away).keys.former_identities == ()
    await host.lock(ada.account_id)
    away = await host.sign_in("ada", PASSWORD)
    away_place.wire.on_request = None
    assert await title(away, team, note) == "kept"
    assert await title(bob, team, late) == "from afar"
    fresh = await home.second("ada")
    assert await title(fresh, team, note) == "kept"


async def test_zero_knowledge_gives_every_space_new_keys(home: Household) -> None:
    """After the switch each space names the new identity, those that the account manages have
    another key, all private keys come from the new master key, and what was written is there."""
    ada, bob, team, family = await party(home)
    note = await written(ada, team, "kept")
    private = await ada.in_space(family).create("notes", {"title": "mine"}, visibility="private")
    await ada.sync_now()
    spaces = (ada.space_id, team, family)
    before = {space: keys_of(ada, space) for space in spaces}
    await ada.security.set_mode("zero-knowledge", PASSWORD)
    await ada.sync_now()
    assert followed(ada)
    for space in spaces:
        after = keys_of(ada, space)
        assert not after.owes_private_key
        assert after.version - before[space].version == (0 if space == family else 1)
        assert after.private_version == before[space].private_version + 1
    await operations(ada).reseal()
    await ada.sync_now()
    assert await ada.security.rotations() == []
    assert await title(ada, family, private) == "mine"
    assert await title(bob, team, note) == "kept"


async def test_two_devices_of_the_account_at_once(home: Household) -> None:
    """Both set out, one says it, and both go on with the same keys."""
    ada, _, team, family = await party(home)
    second = await home.second("ada")
    note = await written(ada, team, "kept")
    await second.sync_now()
    await new_identity(ada)
    await asyncio.gather(ada.sync_now(), second.sync_now())
    for device in (ada, second):
        await device.sync_now()
        assert followed(device)
        assert await title(device, team, note) == "kept"
    for space in (ada.space_id, team, family):
        one, other = keys_of(ada, space), keys_of(second, space)
        assert one.verified.hashes == other.verified.hashes
        assert one.space_keys == other.space_keys
        entries = [entry.member(ada.account_id) for entry in one.entries]
        assert len({entry.keys for entry in entries if entry is not None}) == 2


async def test_a_space_is_given_its_next_key(home: Household) -> None:
    """Owners do it, members cannot; what stands comes along and is shown until it is all."""
    ada, bob, team, _ = await party(home)
    notes = [await written(ada, team, f"t{number}") for number in range(3)]
    await bob.sync_now()
    with pytest.raises(MembershipRefused):
        await rotation_of(bob).rotate_space(team)
    await rotation_of(ada).rotate_space(team)
    await rotation_of(ada).rotate_space(ada.space_id)
    await ada.sync_now()
    assert keys_of(ada, team).version == 2
    views = {view.space_id: view for view in await rotation_of(ada).views()}
    assert (views[team].what, views[team].version, views[team].percent) == ("key", 2, 0)
    await operations(ada).reseal()
    await ada.sync_now()
    assert await rotation_of(ada).views() == []
    assert [await title(bob, team, note) for note in notes] == ["t0", "t1", "t2"]


async def seen(device: Device, space_id: str, account_id: str) -> MemberView:
    members = await device.in_space(space_id).members()
    return next(one for one in members if one.account_id == account_id)


async def test_other_keys_of_a_member_warn_until_they_are_compared(home: Household) -> None:
    """A first meeting is not compared; what was compared is known on all own devices and in every
    space; other keys are a warning, with the moment, until the person compared those."""
    ada, bob, team, family = await party(home)
    view = await seen(bob, family, ada.account_id)
    assert (view.comparison, view.keys_changed_at) == ("not-compared", None)
    assert (await seen(bob, family, bob.account_id)).comparison == "own"
    old = view.fingerprint
    await bob.in_space(family).confirm_fingerprint(ada.account_id, old)
    await bob.sync_now()
    second = await home.second("bob")
    await second.sync_now()
    for device in (bob, second):
        for space in (family, team):
            assert (await seen(device, space, ada.account_id)).comparison == "compared"
    await ada.security.rotate_identity()
    await ada.sync_now()
    for device in (bob, second):
        await device.sync_now()
        view = await seen(device, family, ada.account_id)
        assert view.comparison == "changed"
        assert view.keys_changed_at == keys_of(ada, family).entries[-1].created_at
    with pytest.raises(FingerprintMoved):
        await bob.in_space(family).confirm_fingerprint(ada.account_id, old)
    await bob.in_space(family).confirm_fingerprint(ada.account_id, view.fingerprint)
    await bob.sync_now()
    await second.sync_now()
    assert (await seen(second, team, ada.account_id)).comparison == "compared"
    cem = await home.person("cem")
    await let_in(bob, family, cem)
    assert (await seen(cem, family, ada.account_id)).comparison == "not-compared", "they just met"


async def test_a_new_space_does_not_hide_that_somebody_has_other_keys(home: Household) -> None:
    """Whom the person compared before is not a first meeting where they meet with other keys; in a
    space where they saw the keys change it is a change without having compared any."""
    ada, bob, _, family = await party(home)
    cem = await home.person("cem")
    await let_in(bob, family, cem)
    await ada.sync_now()
    view = await seen(bob, family, ada.account_id)
    await bob.in_space(family).confirm_fingerprint(ada.account_id, view.fingerprint)
    await ada.security.rotate_identity()
    later = await shared_space(ada)
    await let_in(ada, later, bob)
    view = await seen(bob, later, ada.account_id)
    assert (view.comparison, view.keys_changed_at) == ("changed", None)
    await ada.sync_now()
    await cem.sync_now()
    assert (await seen(cem, family, ada.account_id)).comparison == "changed"


async def month_later(home: Household, *devices: Device) -> None:
    home.clock.ahead_ms += RETIRED_AFTER_MS
    home.served.clock.now_ms = home.clock()
    for device in devices:
        await device.sync_now()


async def on_hub(device: Device, space_id: str) -> set[str]:
    answer = await operations(device).opened.hub.spaces()
    info = next(one for one in answer.spaces if one.space_id == space_id)
    return {f"{wrap.kind}{wrap.version}" for wrap in info.wraps}


async def test_an_older_key_goes_when_nothing_counts_on_it(home: Household) -> None:
    """Not before a month, not while a record bears it, and not for others; whoever was away
    meanwhile still sends what they wrote under it, and nothing that stands is lost."""
    ada, bob, team, _ = await party(home)
    away = await home.second("ada")
    await away.sync_now()
    note = await written(ada, team, "first")
    await away.sync_now()
    home.places[-1].wire.is_cut = True
    late = await away.in_space(team).create("notes", {"title": "from afar"})
    await rotation_of(ada).rotate_space(team)
    await ada.sync_now()
    await operations(ada).reseal()
    await ada.sync_now()
    assert await rotation_of(ada).retire() == 0, "it is too early"
    assert "s1" in await on_hub(ada, team)
    await month_later(home, ada)
    await operations(ada).reseal()
    assert await on_hub(ada, team) == {"s2", "p1"}
    assert "s1" in await on_hub(bob, team)
    home.places[-1].wire.is_cut = False
    assert await title(away, team, note) == "first"
    assert await title(ada, team, late) == "from afar"
    assert await title(bob, team, late) == "from afar"
    new = await home.second("ada")
    assert [await title(new, team, one) for one in (note, late)] == ["first", "from afar"]


async def test_what_the_runner_signed_keeps_its_key(home: Household) -> None:
    """Its records are shown as kept, all else comes to the end, and the older key stays for them."""
    ada = await home.person("ada")
    mission, _, _ = await planned_mission(ada)
    await ada.sync_now()
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    await rotation_of(ada).rotate_space(ada.space_id)
    await ada.sync_now()
    await operations(ada).reseal()
    await ada.sync_now()
    (view,) = await rotation_of(ada).views()
    assert (view.what, view.percent, view.done) == ("key", 100, view.all)
    assert view.kept > 0
    (proposal, *_) = await ada.inbox()
    assert (await ada.proposal(proposal.step_id)).step_id == proposal.step_id
    await month_later(home, ada)
    await operations(ada).reseal()
    assert "s1" in await on_hub(ada, ada.space_id)


async def test_private_keys_come_from_the_master_key_of_now(home: Household) -> None:
    """After another master key each space has another private key, what is private comes under it,
    the former master counts until then, and afterwards no more."""
    ada, _, team, family = await party(home)
    private = await ada.in_space(family).create("notes", {"title": "mine"}, visibility="private")
    await ada.sync_now()
    await ada.security.rotate_master(PASSWORD)
    assert (await rotation_of(ada).counted()).masters
    await ada.sync_now()
    assert {keys_of(ada, space).private_version for space in (team, family)} == {2}
    (view,) = [one for one in await rotation_of(ada).views() if one.what == "private"]
    assert (view.space_id, view.version, view.percent) == (family, 2, 0)
    await operations(ada).reseal()
    await ada.sync_now()
    assert [one for one in await rotation_of(ada).views() if one.what == "private"] == []
    await operations(ada).reseal()
    assert await on_hub(ada, family) == {"s1", "p2"}
    assert not (await rotation_of(ada).counted()).masters
    assert await title(ada, family, private) == "mine"


async def test_a_revoked_device_stays_revoked_when_the_identity_moves(home: Household) -> None:
    """The identity of now repeats what the one before said, once every space names it; what the
    device flipped before it was revoked still comes to the other devices."""
    ada, bob, team, _ = await party(home)
    lost, away = await home.second("ada"), await home.second("ada")
    for device in (lost, away):
        await device.sync_now()
    note = await lost.in_space(team).create("notes", {"title": "ours"})
    await lost.sync_now()
    await away.sync_now()
    await lost.in_space(team).set_visibility("notes", note, "private")
    await lost.sync_now()
    opened, gone = operations(ada).opened, operations(lost).opened.device_id
    word = revoke_device(
        vault_of(ada).identity.signing_key, ada.account_id, gone, iso_ms(home.clock() + 1_000)
    )
    await opened.hub.revoke_device(
        DeviceRevocation(
            account_id=word.account_id,
            device_id=word.device_id,
            revoked_at=word.revoked_at,
            signature=b64(word.signature),
        )
    )
    await new_identity(ada)
    await ada.sync_now()
    await ada.sync_now()
    assert await rotation_of(ada).revoke_anew() == 0, "it was said already"
    assert await title(away, team, note) == "ours"
    syncer = operations(bob).opened.book.inner().syncer
    syncer.spaces_moved()
    await bob.sync_now()
    assert syncer.authority(team).revoked == {gone: word.revoked_at}

    async def unsay(request: httpx.Request, under: httpx.AsyncBaseTransport) -> Any:
        if not request.url.path.endswith("/devices"):
            return None
        given = await under.handle_async_request(request)
        body = msgspec.json.decode(await given.aread(), type=DevicesAnswer)
        kept = msgspec.structs.replace(body, revoked=[])
        return httpx.Response(200, content=msgspec.json.encode(kept), request=request)

    home.places[1].wire.on_request = unsay
    syncer.spaces_moved()
    await bob.sync_now()
    assert syncer.authority(team).revoked == {gone: word.revoked_at}, "a hub unsays nothing"
