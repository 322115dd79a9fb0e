"""A hub between a new device and an old one, where the old one is in zero-knowledge mode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest

from mana.crypto.linking import LinkKeys, commit, hand_over, new_nonce
from mana.crypto.primitives import b64
from mana.device.desk import Device
from mana.device.links import Newcomer, PendingLink
from mana.testing.postgres import Cluster
from tests.hostile_hub.tools import Body, Mouth, Scene, code_of, opened, picture, scene_on

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

LINKS: Final = "/api/v1/me/links"
POLL: Final = "/api/v1/auth/links/[0-9a-f]{32}/poll"


@pytest.fixture(scope="module")
async def scene(postgres: Cluster) -> AsyncIterator[Scene]:
    async with scene_on(postgres) as made:
        yield made


@dataclass
class Between:
    """A link as the hub has it: what it says to the old device, and what to the new one."""

    scene: Scene
    old: Mouth
    new: Mouth
    pending: PendingLink[Device]
    spy: Newcomer
    """The hub's own keys, with which it stands in for the new device."""

    async def state(self) -> str:
        """Return how the old device shows the link."""
        shown = await self.scene.ada.links.waiting()
        return next(one.state for one in shown if one.link_id == self.pending.link_id)

    async def digits(self) -> tuple[str | None, str | None]:
        """Go on with the link until both devices show what they have; return their digits."""
        links = self.scene.ada.links
        await links.waiting()
        await links.answer(self.pending.link_id)
        await self.pending.poll()
        shown = [one for one in await links.waiting() if one.link_id == self.pending.link_id]
        return shown[0].digits, (await self.pending.poll()).digits


async def begun(scene: Scene) -> Between:
    place, mouth = scene.newcomer()
    pending = await place.host.begin_link("ada", "Laptop")
    return Between(scene, scene.mouth, mouth, pending, Newcomer("ada"))


def of_links(between: Between, **members: Any) -> Callable[[Body], Body]:
    """Return a lie to the old device about the members of this link that are there."""

    def change(body: Body) -> Body:
        for one in body["links"]:
            if one["linkId"] == between.pending.link_id:
                one.update({name: value for name, value in members.items() if name in one})
        return body

    return change


def hubs_key(between: Between) -> None:
    keys = between.spy._keys
    between.old.lie(
        LINKS,
        of_links(
            between,
            hpkeKey=b64(keys.hpke_key.to_bytes()),
            deviceKey=b64(keys.device_key.to_bytes()),
            deviceId=keys.device_id,
        ),
    )


def hubs_commitment(between: Between) -> None:
    """From the first word on the hub speaks for a device of its own."""
    keys, nonce = between.spy._keys, new_nonce()
    made = commit(
        between.pending.link_id,
        "ada",
        LinkKeys(keys.hpke_key, keys.device_key, keys.device_id),
        nonce,
    )
    between.old.lie(LINKS, of_links(between, commitment=b64(made), nonce=b64(nonce)))
    hubs_key(between)


def hubs_nonce(between: Between) -> None:
    nonce = b64(new_nonce())
    between.new.lie(
        POLL,
        lambda body: {**body, "nonce": nonce} if "nonce" in body else body,
        method="POST",
    )


def another_account(between: Between) -> None:
    between.new.lie(
        POLL,
        lambda body: (
            {**body, "accountId": between.scene.bob.account_id} if "accountId" in body else body
        ),
        method="POST",
    )


SEEN: Final[dict[str, tuple[Callable[[Between], None], str]]] = {
    "the hub's key in the place of the new device's": (hubs_key, "forged"),
    "a link of the hub's own under the new device's name": (hubs_commitment, "revealed"),
    "a nonce of the hub's own": (hubs_nonce, "revealed"),
    "another account": (another_account, "revealed"),
}


@pytest.mark.parametrize("name", SEEN)
async def test_a_hub_between_two_devices_is_seen(scene: Scene, name: str) -> None:
    """Whatever it swaps while they meet: the digits differ, or the old device calls it forged."""
    between = await begun(scene)
    lie, state = SEEN[name]
    lie(between)
    link = between.pending.link_id
    try:
        old, new = await between.digits()
        assert between.old.told or between.new.told
        assert await between.state() == state
        assert new is not None
        assert old != new
        if state == "forged":
            assert old is None
            assert await code_of(scene.ada.links.approve(link)) == "LINK_NOT_SHOWN"
    finally:
        scene.mouth.honest()
        await code_of(scene.ada.links.refuse(link))
        await between.pending.close()


def hubs_master_key(between: Between, body: Body) -> None:
    keys = between.pending._newcomer._keys
    digits = between.pending._newcomer.digits
    assert digits is not None
    wrapped = hand_over(bytes(32), between.pending.link_id, body["accountId"], digits, keys)
    body["wrapped"] = b64(wrapped)


def anothers_wrap(between: Between, body: Body) -> None:
    keys = between.spy._keys
    digits = between.pending._newcomer.digits
    assert digits is not None
    key = opened(between.scene.bob).master_key
    body["wrapped"] = b64(hand_over(key, between.pending.link_id, body["accountId"], digits, keys))


def anothers_certificate(between: Between, body: Body) -> None:
    body["certificate"]["deviceId"] = "00000000-0000-4000-8000-000000000005"


def nobodys_certificate(between: Between, body: Body) -> None:
    body["certificate"]["signature"] = "A" * 86 + "=="


def anothers_session(between: Between, body: Body) -> None:
    body["tokens"]["accountId"] = between.scene.bob.account_id


def half(between: Between, body: Body) -> None:
    del body["certificate"]


HANDED: Final[dict[str, tuple[Callable[[Between, Body], None], str]]] = {
    "a master key of the hub's own": (hubs_master_key, "WRAP_REJECTED"),
    "a key that is wrapped to somebody else": (anothers_wrap, "WRAP_REJECTED"),
    "a certificate of another device": (anothers_certificate, "HUB_DISTRUSTED"),
    "a certificate that nobody signed": (nobodys_certificate, "HUB_DISTRUSTED"),
    "a session of somebody else": (anothers_session, "HUB_DISTRUSTED"),
    "a part of it": (half, "HUB_DISTRUSTED"),
}


@pytest.mark.parametrize("name", HANDED)
async def test_nothing_of_the_hubs_is_handed_over(scene: Scene, name: str) -> None:
    """After the digits were compared a new device takes only what the old one gave."""
    lie, code = HANDED[name]
    between = await begun(scene)
    before = await picture(scene.ada)
    old, new = await between.digits()
    assert old is not None
    assert old == new
    await scene.ada.links.approve(between.pending.link_id)

    def change(body: Body) -> Body:
        if "wrapped" in body:
            lie(between, body)
        return body

    between.new.lie(POLL, change, method="POST")

    async def taken() -> None:
        await between.pending.poll()
        await between.pending.finish()

    assert await code_of(taken()) == code
    assert between.new.told
    await between.pending.close()
    assert await picture(scene.ada) == before
    assert [one.host.accounts() for one in scene.home.places[3:]][-1] == []


async def test_an_older_vault_is_not_handed_over(scene: Scene) -> None:
    """A device that is let in by another is shown no vault of before: its master key is another."""
    between = await begun(scene)
    old, new = await between.digits()
    assert old == new
    await scene.ada.links.approve(between.pending.link_id)
    between.new.lie("/api/v1/me/vault", lambda body: scene.signed_up)
    between.new.lie("/api/v1/spaces", lambda body: scene.spaces_before)
    await between.pending.poll()
    assert await code_of(between.pending.finish()) == "HUB_DISTRUSTED"
    await between.pending.close()
