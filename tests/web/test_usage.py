"""Use by day: the picture, its table, and the caps of the account."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, timedelta

import pytest

from mana.device.views import UsageDay
from mana.web.charts import chart, sums
from tests.web.fake_device import FakeDevice, FakeHost
from tests.web.test_missions_page import said
from tests.web.test_requests import NASTY, app_of, in_demo, post, token, visitor

TODAY = date(2026, 11, 21)


def used(days_ago: int, scope: str, name: str, tokens: int, cost: int = 0) -> UsageDay:
    """Return one line of the ledger."""
    day = (TODAY - timedelta(days=days_ago)).isoformat()
    return UsageDay(day, scope, name, name.title(), tokens, cost, 1)


def test_a_days_shares_stand_on_each_other() -> None:
    """The agents' bars of a day add up to the account's, and what nobody is named for is on top."""
    lines = [used(0, "account", "a", 100), used(0, "agent", "bo", 30), used(0, "agent", "mira", 50)]
    found = chart(lines, "tokens", today=TODAY, days=7, cap=None)
    assert [(one.agent_id, one.amount) for one in found.bars] == [
        ("mira", 50),
        ("bo", 30),
        ("", 20),
    ]
    assert sum(one.height for one in found.bars) == pytest.approx(100)
    assert found.bars[0].y + found.bars[0].height == pytest.approx(100)
    for below, above in zip(found.bars, found.bars[1:], strict=False):
        assert above.y + above.height == pytest.approx(below.y)
    assert all(one.x >= 6 and one.x + one.width <= 7 for one in found.bars)


def test_only_the_days_that_are_asked_for_are_drawn() -> None:
    """A day before the first one has no bar, and no day is drawn outside of the picture."""
    lines = [used(ago, "agent", "mira", 10) for ago in (0, 6, 7, 40)]
    found = chart(lines, "tokens", today=TODAY, days=7, cap=None)
    assert [one.day for one in found.bars] == [TODAY - timedelta(days=6), TODAY]


@pytest.mark.parametrize(
    ("cap", "top", "line"), [(150, 150, 0.0), (50, 100, 50.0), (1_000, 100, None), (0, 100, None)]
)
def test_a_cap_is_a_line_where_it_is_in_sight(cap: int, top: int, line: float | None) -> None:
    """A cap is drawn at its height; one that is far above would press all bars to the ground."""
    found = chart([used(0, "account", "a", 100)], "tokens", today=TODAY, days=7, cap=cap)
    assert found.top == top
    assert found.cap_y == (None if line is None else pytest.approx(line))


def test_nothing_used_is_no_picture() -> None:
    """Where nothing was used there are no bars, and nothing is divided by nothing."""
    assert chart([], "cost", today=TODAY, days=30, cap=5).bars == ()
    assert chart([used(0, "account", "a", 100)], "cost", today=TODAY, days=7, cap=None).bars == ()


def test_sums_are_by_name_and_the_dearest_is_first() -> None:
    """Each agent or mission has one line over all days."""
    lines = [
        used(0, "agent", "bo", 5, 1),
        used(1, "agent", "bo", 5, 1),
        used(0, "agent", "mira", 1, 9),
    ]
    assert [(one.name, one.tokens, one.cost, one.model_calls) for one in sums(lines, "agent")] == [
        ("Mira", 1, 9, 1),
        ("Bo", 10, 2, 2),
    ]


async def worked(device: FakeDevice) -> None:
    """Leave the use of some days, by an agent of a hostile name."""
    day = date.today().isoformat()  # noqa: DTZ011 - the zone of the fake's person is not far
    device.days = (
        UsageDay(day, "account", device.account_id, "", 1_500, 250_000, 3),
        UsageDay(day, "agent", "mira", NASTY, 1_200, 200_000, 2),
        UsageDay(day, "mission", "weekly", NASTY, 1_200, 200_000, 2),
    )


@pytest.mark.anyio
async def test_usage_is_a_picture_and_a_table() -> None:
    """What the picture shows can be read as a table too, and names are never markup."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        await worked(device)
        for days in ("7", "30", "90"):
            answer = await client.get(f"/usage?days={days}")
            assert answer.status_code == 200
            assert f'viewBox="0 0 {days} 100"' in answer.text
            assert len(re.findall(r"<rect class=", answer.text)) == 2
            assert "<script>alert" not in answer.text
            assert not re.search(r"<style|\sstyle=", answer.text)
        words = said(answer)
        assert "1,200 tokens" in words
        assert "300 tokens" in words
        assert NASTY in words
        cost = said(await client.get("/usage?show=cost&days=nonsense"))
        assert "0.25 EUR" in cost
        assert "worst case" not in words
        device.days = tuple(replace(one, unconfirmed_tokens=200) for one in device.days)
        assert "Of it a worst case: 200 tokens, reserved" in said(
            await client.get("/usage?days=90")
        )
        assert "in 30 days" in (await client.get("/usage?days=nonsense")).text


@pytest.mark.anyio
async def test_caps_are_set_and_taken_away() -> None:
    """What is typed is the cap of a day; an empty field means none."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        answer = await post(client, "/usage", tokens="20,000", cost="2.50")
        assert answer.headers["location"] == "/usage"
        work = await device.work_state()
        assert (work.tokens_per_day_max, work.cost_per_day_max) == (20_000, 2_500_000)
        page = await client.get("/usage")
        assert 'value="20000"' in page.text
        assert 'value="2.50"' in page.text
        assert 'id="at-cap"' not in page.text
        await post(client, "/usage", tokens="640", cost="")
        assert "Your cap is used up" in said(await client.get("/usage"))
        await post(client, "/usage", tokens="", cost="")
        work = await device.work_state()
        assert (work.tokens_per_day_max, work.cost_per_day_max) == (None, None)


@pytest.mark.anyio
async def test_a_cap_that_cannot_be_is_told_at_its_field() -> None:
    """A wrong number changes nothing, and both fields keep what was typed."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        data = {"csrf": await token(client), "tokens": "many", "cost": "3.20"}
        answer = await client.post("/usage", data=data)
        assert answer.status_code == 422
        assert 'id="fault-tokens"' in answer.text
        assert 'value="many"' in answer.text
        assert 'value="3.20"' in answer.text
        assert (await device.work_state()).cost_per_day_max is None


@pytest.mark.anyio
async def test_offline_usage_is_what_is_known_here() -> None:
    """Without the hub the page says so; a cap that cannot be set keeps what was typed."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        await worked(device)
        device.online = False
        assert "what this device knows" in said(await client.get("/usage"))
        answer = await post(client, "/usage", tokens="777", cost="")
        assert answer.status_code == 503
        assert 'value="777"' in answer.text
        assert "OFFLINE" in answer.text


@pytest.mark.anyio
async def test_the_operators_cap_is_told_and_counts_where_it_is_smaller() -> None:
    """The line in the picture is the smaller of the two caps."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        await worked(device)
        await device.set_caps(tokens_per_day_max=3_000, hub_tokens_per_day_max=2_000)
        words = said(await client.get("/usage"))
        assert "cap: 2,000 tokens" in words
        assert "The hub’s own limit for each account: At most 2,000 tokens a day." in words
