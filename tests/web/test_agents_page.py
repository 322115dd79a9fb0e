"""An agent's portrait on the page, and what a space lets agents do without asking."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from html import unescape
from typing import NamedTuple

import httpx
import pytest
from playwright.sync_api import Browser, Page

from mana.device.views import AcceptRate, AcceptWeek, CapWait, PolicyChange, RunView
from mana.domain.errors import Invalid
from mana.domain.policy import EFFECTS
from mana.domain.tools import TASK
from mana.planning.subagents import may_delegate
from mana.web.accepting import HEIGHT, WIDTH, trend_words, week_bars
from mana.web.amounts import amount_field, amount_of
from mana.web.showing import marked_up
from tests.web.conftest import Served
from tests.web.fake_device import HOUR, FakeDevice, FakeHost, now
from tests.web.fitting import NARROW, require_fit
from tests.web.journey import Hands
from tests.web.test_requests import NASTY, app_of, in_demo, post, visitor

pytestmark = pytest.mark.anyio
TOOL = "update_note"


class Portrait(NamedTuple):
    """A browser without scripts, and the demo's one agent."""

    client: httpx.AsyncClient
    device: FakeDevice
    agent_id: str

    async def page(self, path: str = "") -> str:
        """Return a page that is there, by default the agent's."""
        answer = await self.client.get(path or f"/agents/{self.agent_id}")
        assert answer.status_code == 200, path
        return unescape(answer.text)

    async def save(self, **values: str) -> httpx.Response:
        """Post the form of who the agent is."""
        return await post(self.client, f"/agents/{self.agent_id}", **{"name": "Mira", **values})


@pytest.fixture
async def portrait() -> AsyncIterator[Portrait]:
    """Open the demo at its agent."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        yield Portrait(client, device, (await device.agents())[0].agent_id)


async def test_limits_and_model_are_set_and_cleared(portrait: Portrait) -> None:
    """Tokens, cost and model are kept as typed, and an empty field takes each back."""
    typed = {"tokens_per_day_max": "12,000", "cost_per_day_max": "1.5", "model": "own:m1"}
    assert (await portrait.save(role="Gardener", **typed)).status_code == 303
    found = await portrait.device.agent(portrait.agent_id)
    assert (found.tokens_per_day_max, found.cost_per_day_max) == (12_000, 1_500_000)
    assert (found.model, found.role) == ("own:m1", "Gardener")
    page = await portrait.page()
    assert 'value="1.50"' in page
    assert '<option value="own:m1" selected>' in page
    await portrait.save(tokens_per_day_max="", cost_per_day_max="", model="", role="")
    found = await portrait.device.agent(portrait.agent_id)
    assert (found.tokens_per_day_max, found.cost_per_day_max) == (None, None)
    assert (found.model, found.role) == ("", "")


async def test_a_limit_that_is_none_is_refused(portrait: Portrait) -> None:
    """What is no amount changes nothing, and the page says what one looks like."""
    before = await portrait.device.agent(portrait.agent_id)
    for wrong in ("-1", "1.5.0", "abc", "1e9", "9999999999"):
        answer = await portrait.save(cost_per_day_max=wrong)
        assert answer.status_code == 400, wrong
    assert await portrait.device.agent(portrait.agent_id) == before


async def test_how_much_at_once_and_sub_agents_are_switched(portrait: Portrait) -> None:
    """How many missions an agent works on at once, and whether with sub-agents, is kept as set."""
    await portrait.save(concurrent_max="3")
    assert (await portrait.device.agent(portrait.agent_id)).concurrent_max == 3
    assert 'name="concurrent_max" id="agent-at-once"' in await portrait.page()
    for wrong in ("0", "101", "-1", "many", "9" * 5_000):
        assert (await portrait.save(concurrent_max=wrong)).status_code == 400, wrong[:9]
    effects = {f"effect-{name}": "auto" if name == "read" else "propose" for name in EFFECTS}
    path = f"/agents/{portrait.agent_id}/policy"
    for word, may in (("deny", False), ("", True), ("auto", True)):
        await post(portrait.client, path, **effects, **{f"tool-{TASK}": word})
        found = await portrait.device.agent(portrait.agent_id)
        assert may_delegate(found.policy) is may
        page = await portrait.page()
        switch = page[page.index('id="sub-agents"') :].partition("</tr>")[0]
        assert f'value="{word}" selected' in switch
        assert f'<td class="decision-{"auto" if may else "deny"}">' in switch


async def test_a_model_that_is_gone_is_not_lost_by_saving(portrait: Portrait) -> None:
    """An agent whose model is no choice any more keeps it until the person takes another."""
    await portrait.device.edit_agent(portrait.agent_id, model="old", model_words="old, gone")
    assert '<option value="old" selected>old, gone</option>' in await portrait.page()


async def test_the_budget_says_what_is_used_of_what(portrait: Portrait) -> None:
    """Tokens and cost of the last 24 hours stand beside their limits, as a bar and in words."""
    await portrait.device.edit_agent(
        portrait.agent_id, cost_per_day_max=2_000_000, cost_today=2_000_000
    )
    page = await portrait.page()
    assert "640 of 2,000 tokens" in page
    assert "2.00 EUR of 2.00 EUR" in page
    assert "It is at its limit." in page
    assert page.count('<meter class="budget"') == 2
    assert "worst case" not in page
    await portrait.device.edit_agent(portrait.agent_id, unconfirmed_tokens_today=300)
    assert "Of it a worst case: 300 tokens, reserved" in await portrait.page()


async def test_what_became_of_proposals_stands_by_tool_with_reasons(portrait: Portrait) -> None:
    """The accept rate is told by tool, and rejections are grouped by their reason."""
    first, second = await portrait.device.inbox()
    for one, words in ((first, "too early"), (second, "later")):
        await portrait.device.reject(one.step_id, reason_code="not-now", reason=words)
    page = await portrait.page()
    assert "2 of 4 approved" in page
    assert "1 of 2 approved" in page
    assert '<svg class="weeks"' in page
    assert "2 times" in page
    assert "too early" in page
    assert "later" in page


async def test_memory_is_read_as_it_was_meant_and_edited_as_it_is(portrait: Portrait) -> None:
    """Markdown shows as headings and lists; the form holds exactly what was written."""
    text = "# Habits\n- Fridays are for errands.\n- <b>bold</b>\n\nplain *words*"
    await post(portrait.client, f"/agents/{portrait.agent_id}/memory", memory=text)
    assert (await portrait.device.agent(portrait.agent_id)).memory == text
    raw = (await portrait.client.get(f"/agents/{portrait.agent_id}")).text
    assert "<h4>Habits</h4>" in raw
    assert "<li>Fridays are for errands.</li>" in raw
    assert "<b>bold" not in raw
    assert text in unescape(raw)


async def test_memory_names_the_proposals_that_would_change_it(portrait: Portrait) -> None:
    """A proposed change of the memory is shown beside it, with the way to decide."""
    step = (await portrait.device.inbox())[0].step_id
    sentence = "Remember “Anna has no phone on Sundays”"
    portrait.device.set_step(step, tool="propose_memory", sentence=sentence)
    page = await portrait.page()
    assert "It proposes:" in page
    assert "Anna has no phone on Sundays" in page
    assert f'href="/inbox/{step}"' in page


async def test_stopping_an_agent_says_what_stops(portrait: Portrait) -> None:
    """Before it is pressed, the page names the missions that stop and what stays."""
    page = await portrait.page()
    assert "Stop its work" in page
    assert "Stop everything" not in page
    assert "Its mission does not run until you let it go on: Weekly review" in page
    assert "The 2 proposals that wait stay for you to decide." in page
    await post(portrait.client, f"/agents/{portrait.agent_id}/state", state="paused")
    assert (await portrait.device.agent(portrait.agent_id)).state == "paused"
    assert "Let it go on" in await portrait.page()


async def test_hostile_text_of_an_agent_stays_text(portrait: Portrait) -> None:
    """Whatever is said of an agent, its models, reasons or policy is never markup."""
    device = portrait.device
    await device.edit_agent(
        portrait.agent_id, name=NASTY, role=NASTY, memory=f"# {NASTY}\n- {NASTY}\n{NASTY}",
        model=NASTY, model_words=NASTY,
    )  # fmt: skip
    one, other = await device.inbox()
    device.set_step(one.step_id, tool="propose_memory", sentence=NASTY)
    await device.reject(other.step_id, reason_code=NASTY, reason=NASTY)
    await device.lift(TOOL, acknowledged=True)
    device.lifted[TOOL] = replace(device.lifted[TOOL], name=NASTY)
    device.policy_history.append(PolicyChange(NASTY, "added", "x", NASTY, 0))
    for path in (f"/agents/{portrait.agent_id}", "/agents", "/agents/new", "/space/policy"):
        answer = await portrait.client.get(path)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text, path
        assert "<b>" not in answer.text, path


async def test_a_space_lifts_a_tool_only_by_an_acknowledgement(portrait: Portrait) -> None:
    """Without the tick nothing is lifted; with it the page says who and when, and takes it back."""
    client, device = portrait.client, portrait.device
    assert "asks first" in await portrait.page("/space/policy")
    refused = await post(client, "/space/policy/lift", tool=TOOL)
    assert refused.status_code == 409
    assert "NOT_ACKNOWLEDGED" in refused.text
    assert device.lifted == {}
    await post(client, "/space/policy/lift", tool=TOOL, acknowledged="yes")
    assert list(device.lifted) == [TOOL]
    page = await portrait.page("/space/policy")
    assert "Lifted by <bdi>Demo</bdi>" in page
    assert "let agents rewrite a note without asking" in page
    await post(client, "/space/policy/unlift", tool=TOOL)
    assert device.lifted == {}
    assert "let agents ask again before they rewrite a note" in await portrait.page("/space/policy")


async def test_members_read_the_policy_and_change_nothing(portrait: Portrait) -> None:
    """Who is no owner or admin sees what is lifted by whom, and no form."""
    space = portrait.device.found("Garden club", "club", role="member")
    space.policy_is_mine = False
    path = f"/s/{space.space_id}/space/policy"
    page = await portrait.page(path)
    assert "Owners and admins of the space change this." in page
    assert 'name="acknowledged"' not in page
    assert "/space/policy/" not in page
    answer = await post(portrait.client, f"{path}/lift", tool=TOOL, acknowledged="yes")
    assert answer.status_code == 403


async def test_a_locked_account_shows_neither_memory_nor_policy(portrait: Portrait) -> None:
    """Once locked, the portrait and the policy are shapes."""
    await post(portrait.client, "/lock")
    for path in (f"/agents/{portrait.agent_id}", "/space/policy"):
        answer = await portrait.client.get(path)
        assert answer.status_code == 423
        assert "Anna" not in answer.text


def test_amounts_are_read_and_written_alike() -> None:
    """What stands in a field is what was kept, to the millionth; nonsense is refused."""
    for text, cost in (("0.000001", 1), ("1.50", 1_500_000), ("1000.00", 10**9), ("0", 0)):
        assert amount_of(text) == cost
        assert amount_of(amount_field(cost)) == cost
    assert amount_of(" ") is None
    assert amount_field(None) == ""
    for wrong in ("-1", "1.", ".5", "١", "1 2", "0.0000001", "1000001", "1,50", "1,500.00"):
        with pytest.raises(Invalid):
            amount_of(wrong)


def test_weeks_are_drawn_within_their_box() -> None:
    """Every bar lies in the picture, rejections on approvals; without decisions there is none."""
    weeks = [AcceptWeek(n, n % 3, n % 2) for n in range(12)]
    bars = week_bars(weeks)
    for bar in bars:
        assert 0 <= bar.x < bar.x + bar.width <= WIDTH
        assert 0 <= bar.rejected_y <= bar.approved_y <= HEIGHT
        assert abs(bar.approved_y + bar.approved - HEIGHT) < 0.02
        assert abs(bar.rejected_y + bar.rejected - bar.approved_y) < 0.02
    assert max(bar.approved + bar.rejected for bar in bars) == HEIGHT
    assert week_bars([AcceptWeek(0, 0, 0)]) == []


def test_a_trend_is_told_in_words() -> None:
    """More, less, as before, or nothing where nobody can know."""
    rate = AcceptRate(3, 0, 1, 0, 75, None)
    assert trend_words(rate) == ""
    assert "12 points more" in trend_words(replace(rate, trend=12))
    assert "5 points less" in trend_words(replace(rate, trend=-5))
    assert "as in" in trend_words(replace(rate, trend=0))


def test_markdown_keeps_every_word() -> None:
    """Headings, lists and text are told apart, and what is neither stands as it was typed."""
    assert marked_up("# A\n- one\n2. two\n\n  kept *as is*\n#none") == [
        ("head", ["A"]),
        ("list", ["one", "two"]),
        ("text", ["  kept *as is*", "#none"]),
    ]
    assert marked_up(" \n\n") == []


def test_a_policy_is_lifted_by_keys(demo_page: Page, served: Served) -> None:
    """Reading, ticking and lifting need no pointer; the box must be ticked first."""
    demo_page.goto(f"{served.url}/space/policy")
    hands = Hands(demo_page)
    hands.enter(f"#lift-{TOOL} summary")
    hands.enter(f"#do-lift-{TOOL}")
    assert served.device.lifted == {}
    demo_page.locator('[name="acknowledged"]').focus()
    demo_page.keyboard.press("Space")
    hands.enter(f"#do-lift-{TOOL}")
    hands.see("without asking", within=f"#tool-{TOOL}")
    hands.enter(f"#unlift-{TOOL}")
    hands.see("asks first", within=f"#tool-{TOOL}")


def test_pages_of_deciding_fit_their_width(browser: Browser, served: Served) -> None:
    """No page of this part scrolls sideways, and each control has a name."""
    context = browser.new_context(viewport=NARROW)
    page = context.new_page()
    page.goto(f"{served.url}/demo/{served.host.demo_link_token()}")
    step = served.run(served.device.inbox())[0].step_id
    agent = served.run(served.device.agents())[0].agent_id
    mission = served.run(served.device.missions())[0].mission_id
    told = RunView(
        "r1", now(), "scheduled", "failed", "timeout", "It took too long and was stopped.", None,
        3_040_000, cost=12_000_000, tries=3, unconfirmed_tokens=2_000_000,
        unconfirmed_cost=9_000_000, flags=("marker", "context-full"),
    )  # fmt: skip
    wait = CapWait("agent", "tokens", 500, "The agent's budget is used up.", now() + HOUR)
    served.device._set(mission, runs=(told,), cap_wait=wait)
    for path in (f"/missions/{mission}", "/missions", "/usage", f"/inbox/{step}/edit", f"/inbox/together?step={step}", f"/agents/{agent}",
                 "/space/policy", "/space", "/inbox", "/timeline"):  # fmt: skip
        page.goto(served.url + path)
        for details in page.locator("main details").all():
            details.evaluate("(one) => { one.open = true; }")
        require_fit(page, path)
    context.close()
