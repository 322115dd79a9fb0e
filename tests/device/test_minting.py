"""Grants follow a change of keys by themselves: never wider, never longer, never over the person."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from mana.crypto.primitives import b64
from mana.crypto.runners import RunnerPrivateKey
from mana.device.desk import Device
from mana.device.grants import ConsentStale
from mana.device.hub_client import HubClient
from mana.domain.clock import parse_iso_ms
from mana.domain.errors import Conflict, Unavailable
from mana.domain.grants import GrantHeader, header_from_wire
from mana.domain.missions import InputRef
from mana.hub.runner.files import write_secret
from mana.hub.runner.keys import DAY_MS, PRIVATE_FILE, PUBLIC_FILE, RunnerKeys
from mana.protocol.messages import GrantCompletion, GrantInfo, Signature
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


def replace_runner_key(home: Household) -> str:
    """Let the runner's pair be sixteen days old, and take a new one; return its id."""
    settings = home.runner_settings()
    old = time.time() - 16 * DAY_MS / 1_000
    os.utime(settings.secrets_dir / PRIVATE_FILE, (old, old))
    return RunnerKeys(settings).key_id


async def both(one: Device, other: Device) -> None:
    """Let two devices come to the same."""
    for device in (one, other, one):
        await device.sync_now()


async def headers(device: Device) -> dict[str, tuple[str, GrantHeader]]:
    """Return state and header of each grant that the hub lists."""
    found = await operations(device).opened.hub.grants()
    read = [(one.state, header_from_wire(one.header)) for one in found]
    return {header.grant_id: (state, header) for state, header in read}


async def active(device: Device) -> GrantHeader:
    """Return the one grant that is in force."""
    (found,) = [header for state, header in (await headers(device)).values() if state == "active"]
    return found


def scope(header: GrantHeader) -> tuple[Any, ...]:
    return (
        header.account_id,
        header.space_id,
        header.mission_id,
        header.agent_id,
        header.tables,
        header.record_ids,
        header.endpoints,
    )


async def ran(home: Household, device: Device, mission: str) -> str:
    await device.run_now(mission)
    await home.tick()
    await device.sync_now()
    run = (await device.mission(mission)).runs[0]
    return f"{run.state} {run.reason}".strip()


async def test_a_new_runner_key_that_the_old_one_signed_is_taken(home: Household) -> None:
    """At the next sync the same scope is granted to the new key, to an end that is earlier, and
    the person is told of the succession where they grant."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    old = await active(ada)
    key_id = replace_runner_key(home)
    assert "signed this one" in " ".join((await ada.consent(mission)).lines)
    await ada.sync_now()
    new = await active(ada)
    assert (new.runner_key_id, scope(new)) == (key_id, scope(old))
    assert parse_iso_ms(old.expires_at) - parse_iso_ms(new.expires_at) >= 1_000
    assert (await headers(ada))[old.grant_id][0] == "replaced"
    assert await ran(home, ada, mission) == "done"
    waiting = await ada.inbox()
    assert waiting
    assert all(one.verified for one in waiting)
    await ada.sync_now()
    assert len(await headers(ada)) == 2
    lines = " ".join((await ada.consent(mission)).lines)
    assert "signed this one" not in lines
    assert "not the runner" not in lines


async def test_a_new_runner_key_that_nobody_signed_is_asked_for(home: Household) -> None:
    """Nothing is granted to a key that no known one leads to, until a consent showed it."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    old = await active(ada)
    secrets = home.runner_settings().secrets_dir
    other = RunnerPrivateKey.generate()
    write_secret(secrets / PRIVATE_FILE, other.to_pem())
    write_secret(secrets / PUBLIC_FILE, other.public().to_pem())
    await ada.sync_now()
    assert await active(ada) == old
    with pytest.raises(ConsentStale):
        await ada.grant(mission)
    assert "not the runner of your earlier grants" in " ".join((await ada.consent(mission)).lines)
    await ada.grant(mission)
    assert (await active(ada)).runner_key_id == other.public().key_id()


async def test_what_the_person_changed_is_not_granted_again(home: Household) -> None:
    """A grant whose mission lost an input, or has another agent, is left to the person."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    old = await active(ada)
    view = await ada.mission(mission)
    await ada.edit_mission(mission, inputs=view.inputs[1:])
    replace_runner_key(home)
    await ada.sync_now()
    assert await active(ada) == old
    await ada.edit_mission(mission, inputs=view.inputs)
    await ada.edit_mission(mission, agent_id=await ada.create_agent("Other"))
    await ada.sync_now()
    assert await active(ada) == old


async def test_what_is_nearly_over_runs_out(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grant with less than an hour left is not minted anew."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission, days=1)
    old = await active(ada)
    replace_runner_key(home)
    home.clock.ahead_ms = DAY_MS - 59 * 60_000
    await operations(ada).grants.mint_anew()
    home.clock.ahead_ms = 0
    assert await active(ada) == old


@pytest.mark.parametrize("ahead_ms", [-4 * 60_000, 4 * 60_000])
async def test_clocks_apart(home: Household, ahead_ms: int) -> None:
    """Whose clock is ahead, the new grant ends before the old one."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    old = await active(ada)
    replace_runner_key(home)
    home.clock.ahead_ms = ahead_ms
    await ada.sync_now()
    new = await active(ada)
    assert new.grant_id != old.grant_id
    assert parse_iso_ms(old.expires_at) - parse_iso_ms(new.expires_at) >= 1_000


async def test_a_break_in_the_middle_is_gone_on_with(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that named the new grant and then lost the hub mints another one later."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    replace_runner_key(home)

    async def lost(self: HubClient, grant_id: str, done: GrantCompletion) -> None:
        raise Unavailable("the hub is gone")

    with monkeypatch.context() as patched:
        patched.setattr(HubClient, "complete_grant", lost)
        await ada.sync_now()
    assert (await ada.grants())[0].state == "stale"
    await ada.sync_now()
    assert (await ada.grants())[0].state == "active"
    assert await ran(home, ada, mission) == "done"


async def test_two_devices_at_once(home: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two devices that mint the same grant anew one comes first, and the mission names it."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    phone = await home.second()
    await phone.sync_now()
    replace_runner_key(home)
    complete, begun = HubClient.complete_grant, False

    async def late(self: HubClient, grant_id: str, done: GrantCompletion) -> None:
        nonlocal begun
        if not begun:
            begun = True
            await phone.sync_now()
        await complete(self, grant_id, done)

    monkeypatch.setattr(HubClient, "complete_grant", late)
    await ada.sync_now()
    await both(ada, phone)
    new = await active(ada)
    for device in (ada, phone):
        record = await operations(device).opened.mission_view(mission)
        assert record.text("grantId") == new.grant_id
    assert len(await headers(ada)) == 2
    assert await ran(home, ada, mission) == "done"


async def test_what_the_person_did_meanwhile_stands(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A narrower grant, or a revocation, on another device is not undone by minting."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    phone = await home.second()
    await phone.sync_now()
    inputs = (await phone.mission(mission)).inputs
    replace_runner_key(home)
    complete, begun = HubClient.complete_grant, False

    async def late(self: HubClient, grant_id: str, done: GrantCompletion) -> None:
        nonlocal begun
        if not begun:
            begun = True
            await phone.edit_mission(mission, inputs=inputs[:1])
            await phone.consent(mission)
            await phone.grant(mission)
        await complete(self, grant_id, done)

    monkeypatch.setattr(HubClient, "complete_grant", late)
    await ada.sync_now()
    await both(ada, phone)
    new = await active(ada)
    assert new.record_ids == (f"{inputs[0].table}:{inputs[0].id}",)
    assert (await operations(ada).opened.mission_view(mission)).text("grantId") == new.grant_id


async def test_a_rotated_space_is_followed(home: Household) -> None:
    """After the key of a space was changed and its records stand under the new one, the grantor's
    device grants the same to the same end, and the mission runs on."""
    ada, bob = await home.person("ada"), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    ours = ada.in_space(space)
    note = await ours.create("notes", {"title": "Offer", "content": "- [ ] Send it"})
    agent = await ours.create_agent("Mira")
    refs = [InputRef("notes", "notes", note)]
    mission = await ours.create_mission("R", "L", agent_id=agent, inputs=refs)
    await ours.grant(mission)
    old = await active(ours)
    await ours.remove_member(bob.account_id)
    await ada.sync_now()
    assert await active(ours) == old  # The records are under the old key still.
    await operations(ada).reseal()
    await ada.sync_now()
    new = await active(ours)
    assert (scope(new), new.runner_key_id) == (scope(old), old.runner_key_id)
    assert new.expires_at < old.expires_at
    assert await ran(home, ours, mission) == "done"
    await ada.sync_now()
    assert await active(ours) == new


async def test_runners_merge_key_by_key(home: Household) -> None:
    """Two devices that each learn of a runner offline both keep it: no list overwrites another."""
    ada = await home.person()
    phone = await home.second()
    keys = [RunnerPrivateKey.generate().public() for _ in range(2)]
    for device, key in zip((ada, phone), keys, strict=True):
        await operations(device).trust.remember_runners([key])
    await both(ada, phone)
    for device in (ada, phone):
        known = await operations(device).trust.granted_to()
        assert set(known) == {key.key_id() for key in keys}


@pytest.mark.parametrize("lie", ["unsigned", "another device's", "another scope", "a longer life"])
async def test_a_grant_that_the_hub_made_up(
    home: Household, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """A grant that no device of its grantor signed is shown as such, and counts as none."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    listed = HubClient.grants

    def told(info: GrantInfo) -> GrantInfo:
        header = {**info.header, "grantId": "00000000-0000-4000-8000-00000000000a"}
        if lie == "unsigned":
            return msgspec.structs.replace(info, header=header, signature=None)
        if lie == "another device's":
            return msgspec.structs.replace(
                info, signature=Signature(signer="nobody", value=b64(bytes(64)))
            )
        if lie == "another scope":
            records = sorted([*info.header["recordIds"], "notes:x"])
            return msgspec.structs.replace(info, header={**info.header, "recordIds": [*records]})
        expires = "2026-12-20T00:00:00.000Z"
        return msgspec.structs.replace(info, header={**info.header, "expiresAt": expires})

    async def lying(self: HubClient) -> list[GrantInfo]:
        return [told(one) for one in await listed(self)]

    monkeypatch.setattr(HubClient, "grants", lying)
    operations(ada).news.moved()
    (seen,) = await ada.grants()
    assert seen.state == "unverified"
    assert "signed" in seen.stale_reason
    assert (await ada.data_access()).grants == ()


async def test_a_revocation_is_seen_through_a_hub_that_hides_it(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was revoked by a signed word is shown as revoked, whatever state the hub names."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    grant = await ada.grant(mission)
    await ada.revoke(grant.grant_id)
    listed = HubClient.grants

    async def lying(self: HubClient) -> list[GrantInfo]:
        return [msgspec.structs.replace(one, state="active") for one in await listed(self)]

    monkeypatch.setattr(HubClient, "grants", lying)
    operations(ada).news.moved()
    (seen,) = await ada.grants()
    assert seen.state == "revoked"


async def test_a_refused_grant_leaves_the_mission_as_it_was(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the hub refuses a completion, the mission names the grant that it named before."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    grant = await ada.grant(mission)

    async def refused(self: HubClient, grant_id: str, done: GrantCompletion) -> None:
        raise Conflict("refused")

    with monkeypatch.context() as patched:
        patched.setattr(HubClient, "complete_grant", refused)
        with pytest.raises(Conflict):
            await ada.grant(mission)
    assert (await operations(ada).opened.mission_view(mission)).text("grantId") == grant.grant_id
    assert (await ada.grants())[0].state == "active"
    await ada.sync_now()
    assert await ran(home, ada, mission) == "done"
