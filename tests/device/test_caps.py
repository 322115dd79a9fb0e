"""Who pays signs: a cap that another member raised does not hold before the payer has agreed to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from mana.device.desk import Device
from mana.device.grants import ConsentStale, HeaderRefused
from mana.domain.clock import parse_iso_ms
from mana.domain.grants import GrantCaps, GrantHeader
from mana.domain.money import FREE
from mana.planning.ports import BudgetExceeded, ModelCall
from mana.testing.postgres import Database
from tests.device.household import (
    Household,
    household,
    let_in,
    operations,
    planned_mission,
    shared_space,
)
from tests.device.test_minting import active, headers

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def team(home: Household) -> tuple[Device, Device]:
    """Return the space of a team, as its owner and a member have it."""
    ada, bob = await home.person(), await home.person("bob")
    space = await shared_space(ada)
    await let_in(ada, space, bob)
    await ada.sync_now()
    return ada.in_space(space), bob.in_space(space)


async def edit(who: Device, other: Device, mission: str, tokens: int | None) -> None:
    """Let one of two people set the cap of a mission, and the other hear of it."""
    await who.edit_mission(mission, tokens_per_day_max=tokens)
    await who.sync_now()
    await other.sync_now()


def caps(header: GrantHeader) -> GrantCaps:
    assert header.caps is not None
    return header.caps


async def test_a_member_who_does_not_pay_raises_nothing(home: Household) -> None:
    """What the grantor granted holds in the signed header, whatever a member sets; the grantor is
    told who raised it, and signs it by granting again. A cap of their own is signed by itself."""
    ada, bob = await team(home)
    mission, _, _ = await planned_mission(ada, tokens_per_day_max=5_000)
    (agent,) = await ada.agents()
    lines = " ".join((await ada.consent(mission)).lines)
    assert "the mission 5,000 tokens" in lines
    await ada.grant(mission)
    first = await active(ada)
    assert caps(first) == GrantCaps(5_000, None, None, None)
    await bob.sync_now()
    for tokens, is_raised in ((3_000, False), (50_000, True), (None, True)):
        await edit(bob, ada, mission, tokens)
        (grant,) = [one for one in await ada.grants() if one.state in ("active", "stale")]
        assert ("raised a limit" in grant.stale_reason) is is_raised
        assert grant.state == "active", "the grant works as it is"
        assert await active(ada) == first
    await edit(ada, bob, mission, 60_000)
    second = await active(ada)
    assert caps(second) == GrantCaps(60_000, None, None, None)
    assert parse_iso_ms(second.expires_at) < parse_iso_ms(first.expires_at)
    assert (await headers(ada))[first.grant_id][0] == "replaced"
    # The agent's cap is another word: none was granted, so whoever sets one only lowers it.
    await bob.edit_agent(agent.agent_id, tokens_per_day_max=9)
    await edit(bob, ada, mission, 70_000)
    assert await active(ada) == second
    await ada.consent(mission)
    await edit(bob, ada, mission, 80_000)
    with pytest.raises(ConsentStale):
        await ada.grant(mission)
    await ada.consent(mission)
    await ada.grant(mission)
    assert caps(await active(ada)) == GrantCaps(80_000, None, 9, None)


async def test_a_hub_that_leaves_out_the_caps_is_refused(home: Household) -> None:
    """A header without the caps that were asked for, or with others, is sealed by nobody."""
    ada, _ = await team(home)
    mission, _, _ = await planned_mission(ada, tokens_per_day_max=5_000)
    hub = operations(ada).opened.hub
    request = hub.request_grant
    for lie in (None, {"mission_tokens": 6_000}):

        async def lying(asked: object, lie: object = lie) -> GrantHeader:
            return await request(
                msgspec.structs.replace(asked, caps=lie and type(asked.caps)(**lie))
            )  # type: ignore[arg-type,attr-defined]

        hub.request_grant = lying  # type: ignore[method-assign]
        with pytest.raises(HeaderRefused):
            await ada.grant(mission)
    assert await headers(ada) == {}


async def test_a_cap_that_was_lowered_since_the_consent_is_asked_for_again(home: Household) -> None:
    """What the grant itself learns at its sync is not granted over: the person reads it first."""
    ada, bob = await team(home)
    mission, _, _ = await planned_mission(ada, tokens_per_day_max=60_000)
    await ada.sync_now()
    await bob.sync_now()
    await ada.consent(mission)
    await bob.edit_mission(mission, tokens_per_day_max=5_000)
    await bob.sync_now()
    with pytest.raises(ConsentStale):
        await ada.grant(mission)
    assert await headers(ada) == {}


async def test_alone_nobody_else_sets_a_cap(home: Household) -> None:
    """In a person's own space the header names no caps, as it always was."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada, tokens_per_day_max=5_000)
    await ada.grant(mission)
    assert (await active(ada)).caps is None


async def test_what_runs_on_a_device_is_paid_as_its_person_agreed(home: Household) -> None:
    """A member raises the cap of a mission that runs on another's device: until that person agrees,
    the hub reserves within the old one, and what was agreed to stands through a lower one between."""
    ada, bob = await team(home)
    mission, _, _ = await planned_mission(ada, runs_on="device", tokens_per_day_max=1_000)
    assert (await ada.mission(mission)).raised_words == ""
    await ada.sync_now()
    await bob.sync_now()
    assert await reserved(ada, mission, 1_000) == 1_000
    await edit(bob, ada, mission, 500)
    assert (await ada.mission(mission)).raised_words == ""
    await edit(bob, ada, mission, 9_000)
    assert "raised a limit" in (await ada.mission(mission)).raised_words
    with pytest.raises(BudgetExceeded) as refused:
        await reserved(ada, mission, 1)
    assert (refused.value.cap, refused.value.left) == (1_000, 0)
    await ada.agree_to_caps(mission)
    assert (await ada.mission(mission)).raised_words == ""
    assert await reserved(ada, mission, 9_000) == 8_000
    await edit(bob, ada, mission, 50_000)
    await edit(ada, bob, mission, 20_000)
    assert (await ada.mission(mission)).raised_words == ""
    assert await reserved(ada, mission, 9_000) == 9_000


async def reserved(device: Device, mission_id: str, tokens: int) -> int:
    """Return how many tokens a call of a run on this device is granted."""
    of = operations(device)
    mission = await of.opened.mission(mission_id)
    purse = await of.runner._purse(mission, await of.opened.agent(mission.agent_id))
    call = ModelCall("https://model.test", "some", FREE)
    got = await of.runner._budgets.reserve(purse, 0, tokens, call)
    return got.completion_tokens_max
