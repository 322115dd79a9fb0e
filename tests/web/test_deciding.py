"""Deciding on the page: an edit before approving, groups, reasons, comments, and what is refused."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html import unescape
from typing import NamedTuple

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from mana.device.diffs import OUTGOING
from mana.device.names import FLAGS
from mana.device.views import FieldDiff, Proposal, RecordDiff
from tests.web.conftest import Served
from tests.web.fake_device import FakeDevice, FakeHost
from tests.web.journey import Hands
from tests.web.test_requests import NASTY, app_of, in_demo, post, token, visitor

pytestmark = pytest.mark.anyio
PRIORITIES = ["low", "medium", "high", "urgent"]
HTMX = {"hx-request": "true"}


class Desk(NamedTuple):
    """A browser without scripts, signed in to the demo, and its device."""

    client: httpx.AsyncClient
    device: FakeDevice

    async def page(self, path: str) -> str:
        """Return a page that is there."""
        answer = await self.client.get(path)
        assert answer.status_code == 200, path
        return unescape(answer.text)

    async def task(self) -> Proposal:
        """Return the proposal of a new task."""
        return next(one for one in await self.device.inbox() if one.tool == "create_task")


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """Open the demo: one run with two proposals waits."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        yield Desk(client, await in_demo(client, host))


def mark(page: str, step_id: str) -> str:
    """Return the mark of what a page shows of a proposal."""
    found = re.search(rf'value="{step_id} (\w+)"', page)
    assert found is not None
    return found[1]


def shown_in(page: str) -> str:
    """Return the mark in the form of an edit."""
    found = re.search(
        r'name="shown" value="(\w+)"[^<]*\n?<div class="row"><button class="primary" id="approve-edited',
        page,
    )
    assert found is not None
    return found[1]


EDIT = {"p-title": "Call the dentist, and Mum", "p-dueDate": "2026-11-30", "p-priority": "high"}


async def test_an_edit_is_shown_before_it_is_done(desk: Desk) -> None:
    """The form is the tool's own; its preview writes nothing; approving does what it showed."""
    step = await desk.task()
    form = await desk.page(f"/inbox/{step.step_id}/edit")
    assert 'type="date"' in form
    assert 'name="p-title"' in form
    assert "approve-edited" not in form
    looked = await post(desk.client, f"/inbox/{step.step_id}/edit", **EDIT)
    page = unescape(looked.text)
    assert "Call the dentist, and Mum" in page
    assert (await desk.task()).state == "staged"
    path = f"/inbox/{step.step_id}/approve-edited"
    done = await post(desk.client, path, shown=shown_in(page), **EDIT)
    assert done.status_code == 303
    titles = {view.text("title") for view in await desk.device.list("tasks")}
    assert "Call the dentist, and Mum" in titles
    assert "Approved with a change" in await desk.page("/inbox")
    assert "What had been proposed" in await desk.page("/inbox")
    assert "You changed it before you approved it." in await desk.page("/timeline")


async def test_choices_stand_as_a_person_expects(desk: Desk) -> None:
    """What is proposed stands first, then the others in their own order, then nothing at all."""
    step = await desk.task()
    for proposed, order in (
        (None, ["", *PRIORITIES]),
        ("high", ["high", "low", "medium", "urgent", ""]),
    ):
        params = {**step.params, "priority": proposed}
        desk.device.set_step(step.step_id, params={k: v for k, v in params.items() if v})
        page = await desk.page(f"/inbox/{step.step_id}/edit")
        offered = page[page.index('name="p-priority"') :].partition("</select>")[0]
        assert re.findall(r'<option value="(\w*)"', offered) == order
        assert f'<option value="{proposed or ""}" selected>' in offered


async def test_a_card_tells_what_its_whole_run_cost_and_what_was_found(desk: Desk) -> None:
    """Tokens and money are those of the run; nobody's guess stands for a price that is not known."""
    step = await desk.task()
    desk.device.set_step(step.step_id, tokens=1_234, cost=30_000, flags=("marker",))
    for path in ("/inbox", f"/inbox/{step.step_id}"):
        page = " ".join(re.sub(r"<[^>]+>", " ", await desk.page(path)).split())
        assert "Cost 1,234 tokens, 0.03 EUR, for the whole run, rules" in page, path
        assert FLAGS["marker"] in page, path
    desk.device.set_step(step.step_id, cost=None, flags=())
    page = await desk.page(f"/inbox/{step.step_id}")
    assert "1,234 tokens, for the whole run, rules" in page
    assert FLAGS["marker"] not in page


async def test_what_was_typed_after_the_preview_is_shown_first(desk: Desk) -> None:
    """An edit that this page did not show is not done; what was typed stays in the form."""
    step = await desk.task()
    looked = await post(desk.client, f"/inbox/{step.step_id}/edit", **EDIT)
    path = f"/inbox/{step.step_id}/approve-edited"
    other = {**EDIT, "p-title": "Something else"}
    for mark_of_it in (shown_in(unescape(looked.text)), ""):
        answer = await post(desk.client, path, shown=mark_of_it, **other)
        assert answer.status_code == 409
        assert "Look once more" in answer.text
        assert 'value="Something else"' in answer.text
        assert (await desk.task()).state == "staged"
    done = await post(desk.client, path, shown=shown_in(unescape(answer.text)), **other)
    assert done.status_code == 303


async def test_what_is_wrong_stands_beside_its_field(desk: Desk) -> None:
    """A fault names its field in words, keeps what was typed, and offers no approval."""
    step = await desk.task()
    typed = {**EDIT, "p-title": "", "p-description": "kept words"}
    for path in ("edit", "approve-edited"):
        answer = await post(desk.client, f"/inbox/{step.step_id}/{path}", shown="x", **typed)
        page = unescape(answer.text)
        assert "aria-invalid=true" in page
        assert "Say something here." in page
        assert "kept words" in page
        assert 'id="approve-edited' not in page
    assert (await desk.task()).state == "staged"


async def test_a_page_that_was_open_for_long_approves_nothing_else(desk: Desk) -> None:
    """If a proposal moved since this page showed it, approving shows it anew and does nothing."""
    step = await desk.task()
    page = await desk.page("/inbox")
    old = mark(page, step.step_id)
    desk.device.set_step(step.step_id, sentence="Add task “Pay the stranger”")
    answer = await post(desk.client, f"/inbox/{step.step_id}/approve", shown=old)
    assert answer.headers["location"] == f"/inbox/{step.step_id}"
    assert "has changed since this page showed it" in await desk.page(answer.headers["location"])
    assert (await desk.task()).state == "staged"
    fresh = mark(await desk.page("/inbox"), step.step_id)
    await post(desk.client, f"/inbox/{step.step_id}/approve", shown=fresh)
    assert (await desk.device.proposal(step.step_id)).state == "approved"


async def approve_together(desk: Desk, *named: str) -> httpx.Response:
    """Post ticked steps as a page would."""
    data: dict[str, str | list[str]] = {"csrf": await token(desk.client), "step": list(named)}
    return await desk.client.post("/inbox/approve", data=data)


async def test_ticked_steps_are_approved_as_one_whole(desk: Desk) -> None:
    """All that are ticked happen together, through one call."""
    page = await desk.page("/inbox")
    steps = [one.step_id for one in await desk.device.inbox()]
    answer = await approve_together(desk, *(f"{one} {mark(page, one)}" for one in steps))
    assert answer.status_code == 303
    assert [(await desk.device.proposal(one)).state for one in steps] == ["approved"] * 2
    assert "as one whole" in await desk.page("/inbox")


async def test_a_group_that_comes_out_otherwise_is_shown_first(desk: Desk) -> None:
    """Where steps do another thing together than each alone, that is shown before it is done."""
    page = await desk.page("/inbox")
    steps = [one.step_id for one in await desk.device.inbox()]
    desk.device.moves_together = "(twice)"
    answer = await approve_together(desk, *(f"{one} {mark(page, one)}" for one in steps))
    text = unescape(answer.text)
    assert answer.status_code == 200
    assert "comes out otherwise than each alone" in text
    assert "(twice)" in text
    assert len(await desk.device.inbox()) == 2
    done = await approve_together(desk, *(f"{one} {mark(text, one)}" for one in steps))
    assert done.status_code == 303
    assert await desk.device.inbox() == []


async def test_a_refused_group_says_which_step_and_why(desk: Desk) -> None:
    """Nothing of the group happens, the step at fault is named, and all of it still waits."""
    steps = [one.step_id for one in await desk.device.inbox()]
    desk.device.stands_in_the_way = steps[1]
    answer = await approve_together(desk, *steps)
    assert answer.status_code == 409
    text = unescape(answer.text)
    assert text.index("This is the step that stood in the way.") > text.index(f"p-{steps[1]}")
    assert "The note is gone." in text
    assert len(await desk.device.inbox()) == 2


async def test_a_step_decided_elsewhere_is_named(desk: Desk) -> None:
    """If one of the group was decided meanwhile, the page says which, and does none."""
    first, second = [one.step_id for one in await desk.device.inbox()]
    await desk.device.reject(first)
    answer = await approve_together(desk, first, second)
    assert answer.headers["location"] == "/inbox"
    assert "Nothing was done." in await desk.page("/inbox")
    assert (await desk.device.proposal(second)).state == "staged"


async def test_a_rejection_bears_its_reason(desk: Desk) -> None:
    """The chip goes as a code and the line as words; a whole run is rejected at once."""
    step = await desk.task()
    await post(desk.client, f"/inbox/{step.step_id}/reject", chip="too-much", reason="not today")
    found = await desk.device.proposal(step.step_id)
    assert (found.state, found.reject_reason, found.feedback) == (
        "rejected",
        "too-much",
        "not today",
    )
    assert "Too much: not today" in await desk.page("/inbox")
    left = [one.step_id for one in await desk.device.inbox()]
    data = {"csrf": await token(desk.client), "step": left, "chip": "wrong", "reason": ""}
    assert (await desk.client.post("/inbox/reject", data=data)).status_code == 303
    assert await desk.device.inbox() == []


async def test_a_proposal_of_another_member_has_no_buttons(desk: Desk) -> None:
    """What another member let run is shown as theirs to decide, and cannot be ticked."""
    for one in await desk.device.inbox():
        desk.device.set_step(one.step_id, for_others=True)
    page = await desk.page("/inbox")
    assert "theirs to decide" in page
    assert "/approve" not in page
    assert "/reject" not in page
    assert 'class="tick"' not in page


async def test_a_run_can_be_spoken_of(desk: Desk) -> None:
    """What a person says of a run is kept with it, shown there, and taken back by nothing."""
    run = (await desk.device.timeline())[0].iteration_id
    assert (
        await post(desk.client, "/timeline/comment", iteration=run, text=" Well read. ")
    ).status_code == 303
    assert (await desk.device.timeline())[0].feedback == "Well read."
    assert "Well read." in await desk.page("/timeline")
    await post(desk.client, "/timeline/comment", iteration=run, text="")
    assert (await desk.device.timeline())[0].feedback == ""


async def test_all_that_would_leave_is_shown(desk: Desk) -> None:
    """What a step would send stands on the card word for word, also what is empty or false."""
    step = await desk.task()
    fields = (FieldDiff("to", None, "rita@example.org"), FieldDiff("copyAll", None, False))
    going = RecordDiff(OUTGOING, "", "post", "insert", fields)
    desk.device.set_step(step.step_id, diffs=(going,))
    page = await desk.page(f"/inbox/{step.step_id}")
    assert "This leaves the machine, word for word" in page
    assert "rita@example.org" in page
    assert "copyAll" in page


async def test_hostile_text_stays_text_while_deciding(desk: Desk) -> None:
    """What a model proposes or a person types is never markup: cards, edits, groups, reasons."""
    step = await desk.task()
    desk.device.set_step(
        step.step_id,
        sentence=f"Add {NASTY}",
        rationale=NASTY,
        note=NASTY,
        trouble=NASTY,
        params={"title": NASTY, "description": NASTY},
    )
    run = (await desk.device.timeline())[0].iteration_id
    await post(desk.client, "/timeline/comment", iteration=run, text=NASTY)
    answers = [
        await desk.client.get(path)
        for path in (
            "/inbox",
            f"/inbox/{step.step_id}",
            f"/inbox/{step.step_id}/edit",
            f"/inbox/together?step={step.step_id}",
            "/timeline",
        )
    ]
    typed = {"p-title": NASTY, "p-description": NASTY, "p-priority": NASTY}
    answers += [
        await post(desk.client, f"/inbox/{step.step_id}/edit", **typed),
        await post(desk.client, f"/inbox/{step.step_id}/approve-edited", **typed),
    ]
    await post(desk.client, f"/inbox/{step.step_id}/reject", chip="wrong", reason=NASTY)
    answers.append(await desk.client.get("/inbox"))
    for answer in answers:
        assert answer.status_code in (200, 409)
        assert "<script>alert" not in answer.text
        assert "<b>" not in answer.text


async def test_offline_and_locked_the_page_says_so(desk: Desk) -> None:
    """Without the hub deciding goes on; once locked, no form shows what was proposed."""
    desk.device.online = False
    step = await desk.task()
    assert "Call the dentist" in await desk.page(f"/inbox/{step.step_id}/edit")
    await post(desk.client, "/lock")
    for path in (f"/inbox/{step.step_id}/edit", f"/inbox/together?step={step.step_id}"):
        answer = await desk.client.get(path)
        assert answer.status_code == 423
        assert "dentist" not in answer.text


def test_a_proposal_is_edited_approved_and_undone_by_keys(demo_page: Page, served: Served) -> None:
    """`e` opens the form in the card, the preview stands below it, and `u` takes it back."""
    demo_page.goto(f"{served.url}/inbox")
    card = demo_page.locator("[data-proposal]", has_text="Add task")
    card.focus()
    demo_page.keyboard.press("e")
    title = card.locator('[name="p-title"]')
    expect(title).to_be_focused()
    demo_page.keyboard.press("Control+a")
    demo_page.keyboard.insert_text("Call the dentist at nine")
    served.run(served.device.create("tasks", {"title": "Meanwhile", "isCompleted": False}))
    demo_page.wait_for_load_state("networkidle")
    expect(title).to_have_value("Call the dentist at nine")
    demo_page.keyboard.press("Enter")
    expect(card.locator(".outcome h3")).to_contain_text("Call the dentist at nine")
    assert demo_page.url.endswith("/inbox")
    hands = Hands(demo_page)
    hands.enter('[id^="approve-edited"]')
    expect(demo_page.locator(".folded").first).to_contain_text("Approved with a change")
    expect(demo_page.locator("#toasts")).to_contain_text("Done.")
    demo_page.goto(f"{served.url}/tasks")
    expect(demo_page.locator("#main")).to_contain_text("Call the dentist at nine")
    demo_page.goto(f"{served.url}/timeline")
    expect(demo_page.locator(".bucket").first).to_contain_text("You changed it before")
    hands.enter('a[href*="target=step"]')
    hands.enter("#revert")
    demo_page.goto(f"{served.url}/tasks")
    expect(demo_page.locator("#main")).not_to_contain_text("Call the dentist at nine")


def test_while_a_proposal_is_edited_nothing_approves_it_unedited(
    demo_page: Page, served: Served
) -> None:
    """`a` looks at what was typed, then approves that; the first form's buttons stand back."""
    demo_page.goto(f"{served.url}/inbox")
    card = demo_page.locator("[data-proposal]", has_text="Add task")
    card.focus()
    demo_page.keyboard.press("e")
    card.locator('[name="p-title"]').fill("Call the dentist at nine")
    expect(card.locator("footer.actions")).to_be_hidden()
    card.focus()
    demo_page.keyboard.press("a")
    outcome = card.locator(".outcome")
    expect(outcome.locator("h3")).to_contain_text("Call the dentist at nine")
    expect(outcome).to_be_focused()
    demo_page.keyboard.press("r")
    demo_page.keyboard.press("a")
    expect(demo_page.locator(".folded").first).to_contain_text("Approved with a change")
    demo_page.goto(f"{served.url}/tasks")
    expect(demo_page.locator("#main")).to_contain_text("Call the dentist at nine")


def test_an_edit_needs_no_script(browser: Browser, served: Served) -> None:
    """Plain posts lead from the card to the form, its preview, and the approval."""
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(f"{served.url}/demo/{served.host.demo_link_token()}")
        page.goto(f"{served.url}/inbox")
        page.locator('a[id^="edit-"]').first.click()
        page.locator('[name="p-title"]').fill("By plain forms")
        page.locator('[id^="look-"]').click()
        expect(page.locator(".outcome")).to_contain_text("By plain forms")
        page.locator('[id^="approve-edited"]').click()
        expect(page.locator("#toasts")).to_contain_text("Done.")
        page.goto(f"{served.url}/tasks")
        expect(page.locator("#main")).to_contain_text("By plain forms")
    finally:
        context.close()
