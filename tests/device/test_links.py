"""Unlocking a new device by another one, with the hub between them as an attacker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.crypto.linking import link_digits
from mana.crypto.primitives import b64, unb64
from mana.device.errors import Offline
from mana.device.links import LINKS_MAX, Handover, LinkNotApproved, LinkNotShown, begin_link
from mana.domain.errors import Invalid, ManaError
from mana.protocol.errors import LinkEnded, VaultMoved
from mana.protocol.messages import ApproveLink, LinkInfo, LinkReveal, LinkState
from mana.protocol.replication import HubDistrusted
from tests.device.relay import ADA, MALLORY, Attacker, Relay, new_device, old_device

pytestmark = pytest.mark.anyio

REVEALED = ("hpke_key", "device_key", "device_id", "nonce")


@dataclass
class Played:
    """What came of a link: the digits on either side, and the errors."""

    new: str | None = None
    old: str | None = None
    given: Handover | None = None
    error: ManaError | None = None


async def play(relay: Relay, attacker: Attacker | None = None, *, forges: bool = False) -> Played:
    """Go through a link as two people would who compare the digits; stop where they differ."""
    played = Played()
    links, pending = old_device(relay), await new_device(relay)
    if forges and attacker is not None:
        # The hub plays the old device to the end, whatever that one does.
        newcomer = pending._newcomer
        relay.twists["handover"] = lambda state: attacker.swap_handover(state, newcomer)
    try:
        (waiting,) = await links.waiting()
        await links.answer(waiting.link_id)
        played.new = (await pending.poll()).digits
        (shown,) = await links.waiting()
        played.old = shown.digits
        if played.new is None or played.new != played.old:
            return played
        await links.approve(shown.link_id)
        await pending.poll()
        played.given = await pending.finish()
    except ManaError as error:
        played.error = error
    return played


async def test_a_new_device_is_unlocked_by_an_old_one() -> None:
    """With equal digits on both sides the new device gets the master key, and nobody else can."""
    relay = Relay()
    played = await play(relay)
    assert played.error is None
    assert played.new == played.old
    assert played.new is not None
    assert [len(group) for group in played.new.split(" ")] == [6, 6]
    assert played.given is not None
    assert played.given.master_key == ADA.master_key
    assert played.given.account_id == ADA.account_id
    assert played.given.device.certificate.account_id == ADA.account_id
    assert ADA.master_key not in msgspec.json.encode([repr(one) for one in relay.heard])


async def test_each_link_has_digits_of_its_own() -> None:
    """What was compared for one link says nothing of another."""
    first, second = await play(Relay()), await play(Relay())
    assert first.new != second.new


TWISTS = ("commitment", "keys", *REVEALED, "answer", "account", "handover")


@given(st.sets(st.sampled_from(TWISTS), min_size=1))
def test_a_hub_between_them_is_seen(swaps: set[str]) -> None:
    """Whatever the hub swaps, the digits differ or a code is raised, and MK never leaves."""
    attacker, relay = Attacker(), Relay()
    if "commitment" in swaps:
        relay.twists["request"] = attacker.swap_commitment
    reveals = [name for name in REVEALED if name in swaps or "keys" in swaps]

    def reveal(info: LinkInfo) -> LinkInfo:
        for name in reveals:
            info = attacker.swap_one(name)(info)
        return info

    def answer(state: LinkState) -> LinkState:
        state = attacker.swap_answer(state) if "answer" in swaps else state
        return attacker.swap_account(state) if "account" in swaps else state

    relay.twists |= {"reveal": reveal, "answer": answer}
    played = asyncio.run(play(relay, attacker, forges="handover" in swaps))
    assert played.error is not None or played.new != played.old
    assert played.given is None
    if swaps != {"handover"}:
        assert not any(isinstance(one, ApproveLink) for one in relay.heard)


async def test_a_hub_hands_over_no_key_of_its_own() -> None:
    """Once the digits were compared, a hub that wraps another master key is found out."""
    played = await play(Relay(), Attacker(), forges=True)
    assert played.new == played.old
    assert played.error is not None
    assert played.error.code == "WRAP_REJECTED"
    assert played.given is None


async def test_the_key_shown_is_the_one_committed_to() -> None:
    """A key that was chosen after the nonce shows no digits, and nothing can be approved."""
    attacker, relay = Attacker(), Relay()
    relay.twists["reveal"] = attacker.swap_keys
    links, pending = old_device(relay), await new_device(relay)
    await links.answer(pending.link_id)
    await pending.poll()
    (view,) = await links.waiting()
    assert (view.state, view.digits) == ("forged", None)
    with pytest.raises(LinkNotShown):
        await links.approve(pending.link_id)


async def test_another_commitment_is_another_nonce() -> None:
    """A hub that commits to keys of its own once it has a nonce does not know the digits' one."""
    attacker, relay = Attacker(), Relay()
    links, pending = old_device(relay), await new_device(relay)
    await links.answer(pending.link_id)
    await pending.poll()
    assert relay.link is not None
    assert relay.link.own_nonce is not None
    relay.link = attacker.swap_commitment(attacker.swap_keys(relay.link))
    (view,) = await links.waiting()
    known = unb64(str(relay.link.own_nonce))
    guessed = link_digits(
        pending.link_id, "ada", ADA.account_id, attacker.keys(), attacker.nonce, known
    )
    assert view.digits is not None
    assert view.digits != guessed


async def test_what_was_shown_is_what_is_approved() -> None:
    """Other keys under a link whose digits are on a screen end it, also after it was hidden."""
    for hides in (False, True):
        attacker, relay = Attacker(), Relay()
        links, pending = old_device(relay), await new_device(relay)
        await links.answer(pending.link_id)
        await pending.poll()
        (shown,) = await links.waiting()
        assert shown.digits is not None
        honest = relay.link
        assert honest is not None
        if hides:
            relay.link = None
            assert await links.waiting() == []
        for told in (attacker.swap_commitment(attacker.swap_keys(honest)), honest):
            relay.link = told
            (view,) = await links.waiting()
            assert (view.state, view.digits) == ("forged", None)
            with pytest.raises(LinkNotShown):
                await links.approve(pending.link_id)


async def test_the_own_nonce_is_never_the_hubs() -> None:
    """The digits of the old device come from its own nonce, whatever the hub names."""
    relay = Relay()
    links, pending = old_device(relay), await new_device(relay)
    await links.answer(pending.link_id)
    await pending.poll()
    (shown,) = await links.waiting()
    assert relay.link is not None
    relay.link = msgspec.structs.replace(relay.link, own_nonce=b64(bytes(32)))
    (again,) = await links.waiting()
    assert again.digits == shown.digits


async def test_the_first_answer_counts() -> None:
    """A hub that names another nonce or account after the key was shown is distrusted."""
    for name, value in (("nonce", b64(bytes(32))), ("account_id", MALLORY.account_id)):
        relay = Relay()
        links, pending = old_device(relay), await new_device(relay)
        await links.answer(pending.link_id)
        shown = (await pending.poll()).digits
        changes = {name: value}
        relay.twists["answer"] = lambda state, to=changes: msgspec.structs.replace(state, **to)
        with pytest.raises(HubDistrusted):
            await pending.poll()
        assert pending._newcomer.digits == shown


async def test_nothing_is_shown_before_the_other_nonce_is_known() -> None:
    """Key and nonce of the new device leave it only after the old device has answered."""
    for state in ("waiting", "revealed", "approved"):
        relay = Relay()
        pending = await new_device(relay)
        assert relay.link is not None
        relay.link = msgspec.structs.replace(relay.link, state=state, own_nonce=b64(bytes(32)))
        if state == "waiting":
            assert (await pending.poll()).digits is None
        else:
            with pytest.raises(HubDistrusted):
                await pending.poll()
        assert not any(isinstance(one, LinkReveal) for one in relay.heard)


async def test_digits_come_when_both_nonces_are_known() -> None:
    """Neither side shows digits that the hub could still choose."""
    relay = Relay()
    links, pending = old_device(relay), await new_device(relay)
    assert (await pending.poll()).digits is None
    await links.answer(pending.link_id)
    (answered,) = await links.waiting()
    assert (answered.state, answered.digits) == ("answered", None)
    assert (await pending.poll()).digits is not None
    (revealed,) = await links.waiting()
    assert revealed.state == "revealed"
    assert revealed.digits is not None


async def test_nobody_approves_what_was_not_shown() -> None:
    """Without the digits on this screen nobody can have compared them."""
    relay = Relay()
    links, pending = old_device(relay), await new_device(relay)
    with pytest.raises(LinkNotShown):
        await links.approve(pending.link_id)
    await links.answer(pending.link_id)
    await pending.poll()
    with pytest.raises(LinkNotShown):
        await links.approve(pending.link_id)
    assert relay.approval is None
    with pytest.raises(LinkNotApproved):
        await pending.finish()


async def test_any_device_of_the_person_goes_on() -> None:
    """A link that one device answered can be approved by another, or after a restart."""
    relay = Relay()
    pending = await new_device(relay)
    await old_device(relay).answer(pending.link_id)
    shown = await pending.poll()
    second = old_device(relay)
    (view,) = await second.waiting()
    assert view.digits == shown.digits
    await second.approve(pending.link_id)
    await pending.poll()
    assert (await pending.finish()).master_key == ADA.master_key


async def test_a_lost_answer_is_sent_again() -> None:
    """If the connection breaks at an answer, the same nonce is sent again, not another."""
    relay = Relay()
    links, pending = old_device(relay), await new_device(relay)
    whole, sent = relay.answer_link, []

    async def lost(link_id: str, nonce: bytes) -> None:
        sent.append(nonce)
        raise Offline("the connection broke")

    relay.answer_link = lost  # type: ignore[method-assign]
    with pytest.raises(Offline):
        await links.answer(pending.link_id)
    relay.answer_link = whole  # type: ignore[method-assign]
    await links.answer(pending.link_id)
    assert [one for one in relay.heard if isinstance(one, bytes)] == sent


async def test_a_lost_reveal_is_sent_again() -> None:
    """If the connection breaks while the key is shown, the link goes on at the next look."""
    for arrives in (False, True):
        relay = Relay()
        links, pending = old_device(relay), await new_device(relay)
        await links.answer(pending.link_id)
        whole = relay.reveal_link

        async def lost(
            link_id: str, reveal: LinkReveal, to: Relay = relay, arrived: bool = arrives
        ) -> None:
            if arrived:
                await Relay.reveal_link(to, link_id, reveal)
            raise Offline("the connection broke")

        relay.reveal_link = lost  # type: ignore[method-assign]
        with pytest.raises(Offline):
            await pending.poll()
        relay.reveal_link = whole  # type: ignore[method-assign]
        shown = await pending.poll()
        (view,) = await links.waiting()
        assert shown.digits == view.digits
        assert view.digits is not None


async def test_what_is_handed_over_is_bound_to_the_link() -> None:
    """A wrap, certificate or session that is not this device's is refused with a code."""

    async def handed(twist: object) -> ManaError:
        relay = Relay(twists={"handover": twist})  # type: ignore[dict-item]
        played = await play(relay)
        assert played.given is None
        assert played.error is not None
        return played.error

    other = await play(Relay())
    assert other.given is not None
    foreign = other.given.device.certificate

    def with_certificate(state: LinkState) -> LinkState:
        return msgspec.structs.replace(state, certificate=foreign)

    def without_wrap(state: LinkState) -> LinkState:
        return msgspec.structs.replace(state, wrapped=None)

    def cut(state: LinkState) -> LinkState:
        assert state.wrapped is not None
        raw = bytearray(unb64(state.wrapped))
        raw[-1] ^= 1
        return msgspec.structs.replace(state, wrapped=b64(bytes(raw)))

    assert (await handed(with_certificate)).code == "HUB_DISTRUSTED"
    assert (await handed(without_wrap)).code == "HUB_DISTRUSTED"
    assert (await handed(cut)).code == "WRAP_REJECTED"


async def test_the_keys_in_force_are_handed_over() -> None:
    """A device that another one has overtaken hands no outdated master key on."""
    relay = Relay()
    links, pending = old_device(relay), await new_device(relay)
    await links.answer(pending.link_id)
    await pending.poll()
    await links.waiting()
    whole = relay.vault

    async def moved() -> object:
        return msgspec.structs.replace(await whole(), master_check=b64(bytes(16)))

    relay.vault = moved  # type: ignore[assignment,method-assign]
    with pytest.raises(VaultMoved):
        await links.approve(pending.link_id)
    assert relay.approval is None


async def test_a_spent_challenge_is_asked_for_again() -> None:
    """A proof that another device's proof came before is made anew over the next challenge."""
    relay = Relay()
    links, pending = old_device(relay), await new_device(relay)
    await links.answer(pending.link_id)
    await pending.poll()
    await links.waiting()
    whole, asked = relay.vault, []

    async def raced() -> object:
        wire = await whole()
        asked.append(wire.challenge)
        if len(asked) == 1:
            relay.challenge = b64(bytes(32))
        return wire

    relay.vault = raced  # type: ignore[assignment,method-assign]
    await links.approve(pending.link_id)
    assert relay.approval is not None
    assert len(set(asked)) == 2


async def test_a_refused_link_ends() -> None:
    """After a refusal neither side goes on, and the digits are forgotten."""
    relay = Relay()
    links, pending = old_device(relay), await new_device(relay)
    await links.answer(pending.link_id)
    await pending.poll()
    await links.waiting()
    await links.refuse(pending.link_id)
    assert (await pending.poll()).state == "refused"
    with pytest.raises(LinkNotShown):
        await links.approve(pending.link_id)
    with pytest.raises(LinkNotApproved):
        await pending.finish()
    with pytest.raises(LinkEnded):
        await links.answer("0" * 32)


async def test_a_device_says_what_it_is_called() -> None:
    """A link without a name, or with an endless one, is not begun."""

    async def install(handover: Handover) -> Handover:
        return handover

    for name in ("", " ", "x" * 81):
        with pytest.raises(Invalid):
            await begin_link(cast(Any, Relay()), "ada", name, install)


async def test_an_id_that_is_none_is_not_certified() -> None:
    """What the old device certifies has the form of a device's id."""
    relay, newcomers = Relay(), []

    async def install(handover: Handover) -> Handover:
        return handover

    links = old_device(relay)
    pending = await begin_link(cast(Any, relay), "ada", "x", install, new_id=lambda: "none")
    await links.answer(pending.link_id)
    await pending.poll()
    newcomers += await links.waiting()
    assert [(one.state, one.digits) for one in newcomers] == [("forged", None)]


async def test_a_flood_of_links_is_no_hubs() -> None:
    """A hub that lists more links than it lets wait is distrusted, not shown."""
    relay = Relay()
    links, _ = old_device(relay), await new_device(relay)
    one = relay.link

    async def many() -> list[LinkInfo]:
        assert one is not None
        return [one] * (LINKS_MAX + 1)

    relay.links = many  # type: ignore[method-assign]
    with pytest.raises(HubDistrusted):
        await links.waiting()
