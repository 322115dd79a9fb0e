"""The main job on a real hub with a real runner, as the page and the terminal do it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mana.testing.postgres import Database
from tests.device.household import Household, household, planned_mission

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def test_granted_mission_is_proposed_approved_and_reverted(home: Household) -> None:
    """What was granted is planned on the hub, approved on the device, shown and undone."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    consent = await ada.consent(mission)
    assert "Offer" in " ".join(consent.lines)
    assert "2 notes and 2 tasks" in consent.lines[0]
    grant = await ada.grant(mission)
    assert grant.state == "active"
    assert set(grant.titles) == {"Offer", "Garden", "Hand in the tax form", "Oil the chain"}
    run = await ada.run_now(mission)
    assert run is not None
    await home.tick()
    await ada.sync_now()
    waiting = await ada.inbox()
    assert waiting, (await ada.mission(mission)).runs
    assert all(one.verified for one in waiting), [one.trouble for one in waiting]
    approved, rejected = waiting[0], waiting[1]
    before = len(await ada.list("tasks"))
    done = await ada.approve(approved.step_id)
    assert done.state == "approved"
    assert len(await ada.list("tasks")) == before + 1
    assert (await ada.reject(rejected.step_id, reason="not now")).state == "rejected"
    buckets = await ada.timeline()
    states = {line.step_id: line.state for line in buckets[0].lines}
    assert states[approved.step_id] == "done"
    assert states[rejected.step_id] == "rejected"
    assert buckets[0].revertible
    preview = await ada.revert_preview(f"iteration:{buckets[0].iteration_id}")
    assert preview == await ada.revert(f"iteration:{buckets[0].iteration_id}")
    assert len(preview.restored) == 1
    assert preview.conflicts == ()
    assert len(await ada.list("tasks")) == before
    assert (await ada.timeline())[0].reverted
    access = await ada.data_access()
    assert access.chain_ok, access.chain_words
    assert access.entries == len(access.readings) >= 4
    assert any("“Offer” for “Weekly review”" in one.sentence for one in access.readings)
    await ada.revoke(grant.grant_id)
    assert [one.state for one in await ada.grants()] == ["revoked"]
    status = await ada.sync_now()
    assert (status.waiting, status.refused) == (0, 0)
