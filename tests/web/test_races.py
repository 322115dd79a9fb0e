"""What happens on an open page at the same moment: each order is forced, none is waited for by luck."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Dialog, Page, Request, Route, expect

from mana.domain.errors import Conflict
from tests.web.conftest import Served
from tests.web.journey import Hands

KEY = 'document.dispatchEvent(new KeyboardEvent("keydown", { key: "k", ctrlKey: true }))'
WHEN_THERE = f"""() => new MutationObserver((_, seen) => {{
  if (!document.querySelector("#main h1")?.textContent.includes("Mira")) return;
  seen.disconnect();
  {KEY};
}}).observe(document.body, {{ childList: true }})"""
WHEN_READ = f"document.addEventListener('DOMContentLoaded', () => {KEY})"
COUNT_REFRESHES = """() => {
  window.refreshes = 0;
  document.addEventListener("htmx:finally:swap", (event) => {
    if (event.detail.ctx.refresh) window.refreshes += 1;
  });
}"""


class Held:
    """Requests that wait for their answers until the test lets them go."""

    def __init__(self, page: Page, wanted: Callable[[Request], bool]) -> None:
        self.page = page
        self._wanted = wanted
        self._waiting: list[Route] = []
        page.route("**/*", self._take)

    def _take(self, route: Route) -> None:
        if self._wanted(route.request):
            self._waiting.append(route)
        else:
            route.fallback()

    def wait(self, count: int = 1) -> None:
        """Wait until so many were asked."""
        while len(self._waiting) < count:
            self.page.wait_for_timeout(5)

    def let_first_go(self) -> None:
        """Let the oldest be answered, and go on holding the others."""
        self._waiting.pop(0).continue_()

    def lose(self) -> None:
        """Let all that wait go unanswered, and hold none any more."""
        self._waiting.clear()
        self._wanted = lambda _: False

    def let_go(self) -> None:
        """Let all that wait be answered, the oldest first, and hold none any more."""
        self._wanted = lambda _: False
        for route in self._waiting:
            route.continue_()
        self._waiting.clear()


def by_itself(request: Request) -> bool:
    """Say whether the page asks for itself anew; not for the line about new devices."""
    return "mana-refresh" in request.headers and "/security/" not in request.url


def posts(request: Request) -> bool:
    """Say whether a form is sent."""
    return request.method == "POST"


def gets(path: str) -> Callable[[Request], bool]:
    """Return whether a person asks for a page or part of a page."""
    return lambda asked: asked.url.endswith(path) and not by_itself(asked)


@pytest.fixture
def still_page(demo_page: Page, served: Served) -> Page:
    """Open the demo's home, after the refresh that its first hello brings."""
    demo_page.evaluate(COUNT_REFRESHES)
    refreshed(demo_page, served)
    return demo_page


def refreshed(page: Page, served: Served) -> None:
    """Have the page brought up to date, once at least."""
    before = page.evaluate("window.refreshes ?? 0")
    served.run(tell(served))
    page.wait_for_function("before => window.refreshes > before", arg=before)


async def tell(served: Served, account_id: str = "") -> None:
    """Tell the open pages of an account, the only one if it is not said, that something changed."""
    device = served.host.device(account_id) if account_id else served.device
    device.tell("records", "tasks")


def test_a_palette_opened_as_the_page_comes_stays_open(demo_page: Page, served: Served) -> None:
    """Nothing that a page does after it came closes what the person opened at that moment."""
    demo_page.goto(f"{served.url}/agents/new")
    hands = Hands(demo_page)
    hands.fill("#agent-name", "Mira")
    demo_page.evaluate(WHEN_THERE)
    demo_page.keyboard.press("Enter")
    hands.see("Budget today")
    expect(demo_page.locator("#palette-text")).to_be_focused()
    demo_page.keyboard.type("Create a mission")
    expect(demo_page.locator("#palette-list [role=option]").first).to_contain_text(
        "Create a mission"
    )


def test_a_palette_opened_before_the_page_listens_has_its_list(page: Page, served: Served) -> None:
    """A person who is faster than the page's scripts finds the commands all the same."""
    page.goto(f"{served.url}/demo/{served.host.demo_link_token()}")
    page.add_init_script(WHEN_READ)
    page.goto(served.url)
    expect(page.locator("#palette")).to_be_visible()
    expect(page.locator("#palette-list [role=option]").first).to_contain_text("Go to Home")


def test_the_palette_does_only_what_the_words_found(still_page: Page, served: Served) -> None:
    """Enter before the answer waits for it, instead of doing what earlier words had found."""
    still_page.keyboard.press("Control+k")
    expect(still_page.locator("#palette-list [role=option]").first).to_contain_text("Go to Home")
    held = Held(still_page, lambda asked: "/palette?" in asked.url)
    still_page.keyboard.type("Go to N")
    held.wait(1)
    still_page.keyboard.press("Backspace")
    still_page.keyboard.type("Tim")
    held.wait(2)
    still_page.keyboard.press("Enter")
    expect(still_page.locator("#palette")).to_be_visible()
    held.let_go()
    expect(still_page).to_have_title("Timeline · Mana")


def test_a_palette_that_was_left_does_nothing_later(still_page: Page) -> None:
    """To leave the palette takes back the Enter that was not done; the same words only find."""
    still_page.keyboard.press("Control+k")
    expect(still_page.locator("#palette-list [role=option]").first).to_contain_text("Go to Home")
    held = Held(still_page, lambda asked: "/palette?q=N" in asked.url)
    still_page.keyboard.type("Notes")
    held.wait()
    still_page.keyboard.press("Enter")
    expect(still_page.locator("#palette")).to_be_visible()
    still_page.evaluate("document.querySelector('#palette').close()")
    held.let_go()
    still_page.keyboard.press("Control+k")
    expect(still_page.locator('#palette-list[data-words=""]')).to_be_visible()
    still_page.evaluate(
        """() => {
          document.querySelector("#palette-text").value = "Notes";
          document.querySelector("#palette-text").dispatchEvent(new Event("open"));
        }"""
    )
    expect(still_page.locator('#palette-list[data-words="Notes"]')).to_be_visible()
    expect(still_page).to_have_title("Home · Mana")


def test_the_same_words_find_the_same_again(still_page: Page) -> None:
    """A palette that is opened a second time searches for words that it was given before."""
    for _ in range(2):
        still_page.keyboard.press("Control+k")
        expect(still_page.locator('#palette-list[data-words=""]')).to_be_visible()
        still_page.keyboard.type("Timeline")
        expect(still_page.locator("#palette-list [role=option]")).to_have_count(1)
        still_page.evaluate("document.querySelector('#palette').close()")


def test_what_the_arrows_chose_outlives_every_answer(still_page: Page, served: Served) -> None:
    """Neither a refresh nor a new list moves the choice: Enter does what is marked."""
    still_page.keyboard.press("Control+k")
    marked = still_page.locator('#palette-list [aria-selected="true"]')
    expect(marked).to_have_text("Go to Home")
    still_page.keyboard.type("Go")
    expect(still_page.locator('#palette-list[data-words="Go"]')).to_be_visible()
    still_page.keyboard.press("ArrowDown")
    still_page.keyboard.press("ArrowDown")
    expect(marked).to_have_text("Go to Notes")
    refreshed(still_page, served)
    expect(marked).to_have_text("Go to Notes")
    still_page.evaluate(
        """() => {
          document.querySelector("#palette-list").dataset.words = "older";
          document.querySelector("#palette-text").dispatchEvent(new Event("open"));
        }"""
    )
    expect(still_page.locator('#palette-list[data-words="Go"]')).to_be_visible()
    expect(marked).to_have_text("Go to Notes")
    still_page.keyboard.press("Enter")
    expect(still_page).to_have_title("Notes · Mana")


def test_a_page_that_comes_late_leaves_the_palette_open(still_page: Page) -> None:
    """Who opens the palette while a page is under way types on in it, over the new page."""
    held = Held(still_page, gets("/notes"))
    still_page.locator('.rail a[href="/notes"]').click()
    held.wait()
    still_page.keyboard.press("Control+k")
    still_page.keyboard.type("Create an ag")
    held.let_go()
    expect(still_page).to_have_title("Notes · Mana")
    expect(still_page.locator("#palette-text")).to_be_focused()
    expect(still_page.locator("#palette-text")).to_have_value("Create an ag")
    still_page.keyboard.type("ent")
    still_page.keyboard.press("Enter")
    expect(still_page).to_have_title("New agent · Mana")


def test_the_page_that_was_asked_for_last_stays(still_page: Page) -> None:
    """The answer to an older click does not take the place of a newer one's."""
    held = Held(still_page, gets("/notes"))
    still_page.locator('.rail a[href="/notes"]').click()
    held.wait()
    still_page.locator('.rail a[href="/tasks"]').click()
    expect(still_page).to_have_title("Tasks · Mana")
    ended = "new Promise((done) => document.addEventListener('htmx:finally:request', done))"
    still_page.evaluate(f"() => {{ window.ended = {ended}.then(() => true); }}")
    held.let_go()
    assert still_page.evaluate("window.ended")
    expect(still_page).to_have_title("Tasks · Mana")
    expect(still_page.locator("h1")).to_have_text("Tasks")
    assert still_page.url.endswith("/tasks")


def test_a_click_while_a_form_is_under_way_is_followed(demo_page: Page, served: Served) -> None:
    """A form's answer that comes first does not swallow the link that was clicked after it."""
    demo_page.goto(f"{served.url}/tasks")
    held = Held(demo_page, lambda asked: posts(asked) or gets("/notes")(asked))
    Hands(demo_page).fill("#new-task-title", "Water the ferns")
    demo_page.keyboard.press("Enter")
    held.wait(1)
    demo_page.locator('.rail a[href="/notes"]').click()
    held.wait(2)
    held.let_first_go()
    expect(demo_page.locator("#main")).to_contain_text("Water the ferns")
    held.let_go()
    expect(demo_page.locator("h1")).to_have_text("Notes")
    assert demo_page.url.endswith("/notes")


def test_a_form_that_answers_late_still_says_what_it_did(demo_page: Page, served: Served) -> None:
    """The page that was chosen meanwhile stays; what the form did is said on it, with its undo."""
    demo_page.goto(f"{served.url}/inbox")
    held = Held(demo_page, posts)
    demo_page.keyboard.press("j")
    demo_page.keyboard.press("a")
    held.wait()
    demo_page.locator('.rail a[href="/notes"]').click()
    expect(demo_page.locator("h1")).to_have_text("Notes")
    held.let_go()
    expect(demo_page.locator("#toasts")).to_contain_text("Done.")
    expect(demo_page.locator("h1")).to_have_text("Notes")
    demo_page.locator("#undo").click()
    expect(demo_page.locator("#toasts")).to_contain_text("taken back")


def test_what_a_request_pushed_aside_is_asked_again(still_page: Page, served: Served) -> None:
    """A change that was under way when the palette opened comes onto the page after all."""
    held = Held(still_page, by_itself)
    served.run(served.device.create("tasks", {"title": "From the phone", "isCompleted": False}))
    held.wait()
    held.lose()
    still_page.keyboard.press("Control+k")
    expect(still_page.locator("#palette-list [role=option]").first).to_contain_text("Go to Home")
    expect(still_page.locator("#main")).to_contain_text("From the phone")


def test_what_changes_all_the_time_is_shown_all_the_same(still_page: Page, served: Served) -> None:
    """Notices that come faster than the page can be made anew do not keep it as it was."""
    going = threading.Event()

    async def flood() -> None:
        while not going.is_set():
            served.device.tell("missions")
            await asyncio.sleep(0.03)

    def slowly(route: Route) -> None:
        if by_itself(route.request):
            time.sleep(0.2)
        route.fallback()

    still_page.route("**/*", slowly)
    flooding = asyncio.run_coroutine_threadsafe(flood(), served.loop)
    try:
        served.run(served.device.create("tasks", {"title": "From the car", "isCompleted": False}))
        expect(still_page.locator("#main")).to_contain_text("From the car")
    finally:
        going.set()
        flooding.result(10)


def test_what_is_typed_behind_a_sent_task_is_the_next_one(demo_page: Page, served: Served) -> None:
    """Letters that follow Enter at once are not lost when the answer empties the field."""
    demo_page.goto(f"{served.url}/tasks")
    held = Held(demo_page, posts)
    field = demo_page.locator("#new-task-title")
    Hands(demo_page).fill("#new-task-title", "First")
    demo_page.keyboard.press("Enter")
    held.wait()
    demo_page.keyboard.type("Second")
    held.let_go()
    expect(demo_page.locator("#main .list").first).to_contain_text("First")
    expect(field).to_have_value("Second")
    expect(field).to_be_focused()
    demo_page.keyboard.press("Enter")
    expect(demo_page.locator("#main .list").first).to_contain_text("Second")
    expect(field).to_have_value("")


def test_one_form_takes_no_words_from_another(demo_page: Page, served: Served) -> None:
    """Whoever ticks off a task keeps what they had begun to type for the next."""
    demo_page.goto(f"{served.url}/tasks")
    field = demo_page.locator("#new-task-title")
    Hands(demo_page).fill("#new-task-title", "Half a thought")
    demo_page.locator(".quick select").select_option("high")
    demo_page.locator(".quick input[type=date]").focus()
    demo_page.evaluate("document.querySelector('.task .check').form.requestSubmit()")
    expect(demo_page.locator("#toasts")).to_contain_text("is done.")
    expect(field).to_have_value("Half a thought")
    expect(demo_page.locator(".quick select")).to_have_value("high")
    expect(demo_page.locator(".quick input[type=date]")).to_be_focused()


def test_a_new_note_is_written_on_while_it_is_saved(demo_page: Page, served: Served) -> None:
    """What is typed after Ctrl+S is in the note that comes back, and is said to be unsaved."""
    demo_page.goto(f"{served.url}/notes/new")
    held = Held(demo_page, posts)
    hands = Hands(demo_page)
    hands.fill("#note-title", "Diary")
    hands.fill("#note-content", "One thought")
    demo_page.keyboard.press("Control+s")
    held.wait()
    demo_page.keyboard.type(", and another")
    held.let_go()
    hands.see("Sealed before it leaves")
    expect(demo_page.locator("#note-content")).to_have_value("One thought, and another")
    expect(demo_page.locator("#note-content")).to_be_focused()
    expect(demo_page.locator("[data-dirty-words]")).to_be_visible()
    demo_page.keyboard.press("Control+s")
    expect(demo_page.locator("[data-dirty-words]")).to_be_hidden()
    expect(demo_page.locator("#note-content")).to_have_value("One thought, and another")


def test_a_refusal_takes_no_letters_from_whoever_types_on(demo_page: Page, served: Served) -> None:
    """A save that is refused late is said above the form; the focus stays where words are typed."""

    async def refuse(*_: object, **__: object) -> None:
        raise Conflict("the disk is full")

    served.device.create = refuse  # type: ignore[method-assign, assignment]
    demo_page.goto(f"{served.url}/notes/new")
    hands = Hands(demo_page)
    hands.fill("#note-title", "Diary")
    held = Held(demo_page, posts)
    demo_page.keyboard.press("Control+s")
    held.wait()
    demo_page.keyboard.type(" of")
    held.let_go()
    hands.see("The disk is full.", within="#alert")
    demo_page.keyboard.type(" cats")
    expect(demo_page.locator("#note-title")).to_have_value("Diary of cats")


def test_letters_for_a_field_are_never_commands(demo_page: Page, served: Served) -> None:
    """The focus stays in the field that was gone to while a decision was under way."""
    demo_page.goto(f"{served.url}/inbox")
    cards = demo_page.locator("[data-proposal]")
    held = Held(demo_page, posts)
    cards.first.locator("[data-key=a]").click()
    held.wait()
    cards.nth(1).locator("summary[data-key=r]").click()
    reason = cards.nth(1).locator("details.reject input:not([type=radio], [type=hidden])").first
    reason.focus()
    demo_page.keyboard.type("a g")
    held.let_go()
    expect(cards).to_have_count(1)
    words = cards.locator("details.reject input:not([type=radio], [type=hidden])").first
    expect(words).to_be_focused()
    demo_page.keyboard.type("aa")
    expect(words).to_have_value("a gaa")
    expect(cards).to_have_count(1)


def test_a_card_that_came_by_itself_is_shown_before_it_is_decided(
    demo_page: Page, served: Served
) -> None:
    """`a` approves no proposal that took the first place a moment ago; it only goes there."""
    demo_page.goto(f"{served.url}/inbox")
    demo_page.evaluate(COUNT_REFRESHES)
    before = demo_page.locator("[data-proposal]").count()
    served.run(served.device.run_now(served.run(served.device.missions())[0].mission_id))
    expect(demo_page.locator("[data-proposal]")).to_have_count(before + 2)
    demo_page.keyboard.press("a")
    expect(demo_page.locator("[data-proposal]").first).to_be_focused()
    refreshed(demo_page, served)
    expect(demo_page.locator("[data-proposal]")).to_have_count(before + 2)
    demo_page.keyboard.press("a")
    expect(demo_page.locator("[data-proposal]")).to_have_count(before + 1)


def test_a_key_that_is_held_down_decides_once(demo_page: Page, served: Served) -> None:
    """Of a key that repeats itself only the first stroke counts."""
    demo_page.goto(f"{served.url}/inbox")
    demo_page.keyboard.press("j")
    demo_page.keyboard.down("a")
    expect(demo_page.locator("[data-proposal]")).to_have_count(1)
    expect(demo_page.locator("[data-proposal]")).to_be_focused()
    sent: list[str] = []
    demo_page.on("request", lambda asked: sent.append(asked.url) if posts(asked) else None)
    demo_page.keyboard.down("a")
    demo_page.keyboard.up("a")
    demo_page.keyboard.press("?")
    expect(demo_page.locator("#keys")).to_be_visible()
    assert sent == []


def staying(page: Page) -> list[str]:
    """Answer every question of the page by staying; return what it asked."""
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", stay)
    return asked


def test_words_typed_after_the_click_are_asked_about(demo_page: Page, served: Served) -> None:
    """A page that comes late does not take what was typed while it was under way."""
    demo_page.goto(f"{served.url}/notes/new")
    asked = staying(demo_page)
    held = Held(demo_page, gets("/tasks"))
    demo_page.locator('.rail a[href="/tasks"]').click()
    held.wait()
    Hands(demo_page).fill("#note-title", "Half a thought")
    with demo_page.expect_event("dialog"):
        held.let_go()
    expect(demo_page.locator("#note-title")).to_have_value("Half a thought")
    assert asked == ["What you typed is not saved. Leave it?"]
    assert demo_page.url.endswith("/notes/new")


def test_back_asks_about_unsaved_words(demo_page: Page, served: Served) -> None:
    """The browser's own way back takes nothing that was typed without a question."""
    asked = staying(demo_page)
    demo_page.locator('.rail a[href="/notes"]').click()
    expect(demo_page.locator("h1")).to_have_text("Notes")
    demo_page.locator("[data-create]").first.click()
    Hands(demo_page).fill("#note-title", "Half a thought")
    with demo_page.expect_event("dialog"):
        demo_page.keyboard.press("Alt+ArrowLeft")
        demo_page.evaluate("history.back()")
    expect(demo_page.locator("#note-title")).to_have_value("Half a thought")
    assert set(asked) == {"What you typed is not saved. Leave it?"}
    assert demo_page.url.endswith("/notes/new")


@pytest.fixture
def own_page(served: Served, page: Page) -> Page:
    """Open the page of an account with a password, on a new note."""
    page.goto(served.url)
    page.fill("#sign-up-login", "ada")
    page.fill("#sign-up-password", "four quiet herons walking")
    page.click("#sign-up")
    expect(page).to_have_title("Home · Mana")
    page.goto(f"{served.url}/notes/new")
    return page


def test_words_outlive_a_lock_out_of_sight(own_page: Page, served: Served) -> None:
    """An account that locks itself takes no unsaved words: they are back after the password."""
    hands = Hands(own_page)
    hands.fill("#note-title", "Half a thought")
    served.run(served.host.lock(served.device.account_id))
    expect(own_page).to_have_title("Locked · Mana")
    expect(own_page.locator("body")).not_to_contain_text("thought")
    assert "Half a thought" not in own_page.content()
    hands.fill("#unlock-password", "four quiet herons walking")
    own_page.keyboard.press("Enter")
    expect(own_page.locator("#note-title")).to_have_value("Half a thought")
    expect(own_page.locator("[data-dirty-words]")).to_be_visible()


def test_words_outlive_a_lock_that_another_tab_ended(own_page: Page, served: Served) -> None:
    """A page that opens because another tab has the password brings the words back too."""
    Hands(own_page).fill("#note-title", "Half a thought")
    served.run(served.host.lock(served.device.account_id))
    expect(own_page).to_have_title("Locked · Mana")
    other = own_page.context.new_page()
    other.goto(f"{served.url}/notes")
    Hands(other).fill("#unlock-password", "four quiet herons walking")
    other.keyboard.press("Enter")
    expect(other).to_have_title("Notes · Mana")
    other.close()
    own_page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(own_page.locator("#note-title")).to_have_value("Half a thought")


def test_laid_aside_words_are_for_the_same_page_alone(own_page: Page, served: Served) -> None:
    """Whoever goes elsewhere from a locked page, as another account, meets nobody's words."""
    Hands(own_page).fill("#note-title", "Half a thought")
    served.run(served.host.lock(served.device.account_id))
    expect(own_page).to_have_title("Locked · Mana")
    own_page.get_by_role("button", name="Another account").click()
    expect(own_page.locator("#sign-up-login")).to_be_visible()
    own_page.fill("#sign-up-login", "bob")
    own_page.fill("#sign-up-password", "six loud geese walking")
    own_page.click("#sign-up")
    expect(own_page).to_have_title("Home · Mana")
    Hands(own_page).command("Write a note")
    expect(own_page.locator("#note-title")).to_be_focused()
    expect(own_page.locator("#note-title")).to_have_value("")


def bob_signs_in(page: Page, served: Served) -> None:
    """Leave the account in another tab, and sign up there as somebody else."""
    other = page.context.new_page()
    other.goto(f"{served.url}/welcome")
    other.fill("#sign-up-login", "bob")
    other.fill("#sign-up-password", "six loud geese walking")
    other.click("#sign-up")
    expect(other).to_have_title("Home · Mana")
    other.close()


def test_laid_aside_words_wait_for_no_other_account(own_page: Page, served: Served) -> None:
    """A locked tab that wakes up in another account shows that account's page, and no words."""
    Hands(own_page).fill("#note-title", "Half a thought")
    served.run(served.host.lock(served.device.account_id))
    expect(own_page).to_have_title("Locked · Mana")
    bob_signs_in(own_page, served)
    with own_page.expect_event("load"):
        own_page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(own_page.locator("#note-title")).to_have_value("")


def test_laid_aside_words_are_in_no_page_of_another_account(own_page: Page, served: Served) -> None:
    """However another account's page comes to a locked tab, its forms stay empty."""
    Hands(own_page).fill("#note-title", "Half a thought")
    served.run(served.host.lock(served.device.account_id))
    expect(own_page).to_have_title("Locked · Mana")
    bob_signs_in(own_page, served)
    own_page.evaluate(
        """() => htmx.ajax("GET", location.href,
                           { target: "#page", select: "#page", swap: "outerHTML" })"""
    )
    expect(own_page).to_have_title("New note · Mana")
    expect(own_page.locator("#note-title")).to_have_value("")


def test_what_one_account_types_is_not_saved_for_another(own_page: Page, served: Served) -> None:
    """Who signs in elsewhere in this browser gets no note that was begun before."""
    ada = served.device.account_id
    Hands(own_page).fill("#note-title", "Half a thought")
    bob_signs_in(own_page, served)
    served.run(tell(served, ada))
    expect(own_page.locator("#signed-out")).to_be_visible()
    expect(own_page.locator("#note-title")).to_have_value("Half a thought")
    with own_page.expect_response(lambda answer: answer.request.method == "POST"):
        own_page.keyboard.press("Control+s")
    bob = next(one.account_id for one in served.host.accounts() if one.account_id != ada)
    assert served.run(served.host.device(bob).list("notes")) == []


def test_words_go_from_no_page_of_one_account_to_another(own_page: Page, served: Served) -> None:
    """The same form of another account takes nothing; to leave the words is asked about."""
    Held(own_page, by_itself)
    bob_signs_in(own_page, served)
    held = Held(own_page, gets("/notes/new"))
    own_page.evaluate(
        """() => { htmx.ajax("GET", location.href,
                             { target: "#page", select: "#page", swap: "outerHTML" }) }"""
    )
    held.wait()
    Hands(own_page).fill("#note-title", "Half a thought")
    own_page.once("dialog", lambda dialog: dialog.accept())
    with own_page.expect_event("dialog"):
        held.let_go()
    expect(own_page.locator("#note-title")).to_have_value("")


def test_a_password_goes_to_no_other_form(own_page: Page, served: Served) -> None:
    """What was typed to unlock one account is not in the sign-in form of the first."""
    bob_signs_in(own_page, served)
    own_page.goto(served.url)
    own_page.get_by_role("button", name="Lock").first.click()
    expect(own_page).to_have_title("Locked · Mana")
    own_page.fill("#unlock-password", "typed for bob")
    own_page.get_by_role("button", name="Another account").click()
    expect(own_page.locator("#sign-up-login")).to_be_visible()
    typed = "[...document.querySelectorAll('input[type=password]')].map((one) => one.value)"
    assert set(own_page.evaluate(typed)) == {""}


def test_no_page_that_comes_has_a_typed_password(served: Served, page: Page) -> None:
    """Of a form that another one's answer takes the place of, all is kept but the password."""
    page.goto(served.url)
    page.fill("#sign-in-login", "ada")
    page.fill("#sign-in-password", "four quiet herons")
    page.fill("#sign-up-login", "bob")
    page.fill("#sign-up-password", "short")
    page.click("#sign-up")
    expect(page.locator(".problem")).to_be_visible()
    expect(page.locator("#sign-in-login")).to_have_value("ada")
    expect(page.locator("#sign-in-password")).to_have_value("")


def test_a_reason_stays_with_its_plan(demo_page: Page, served: Served) -> None:
    """Words against one plan are not found under another because the one before it is gone."""
    mission = served.run(served.device.missions())[0].mission_id
    demo_page.goto(f"{served.url}/inbox")
    cards = demo_page.locator("[data-proposal]")
    for _ in range(2):
        before = cards.count()
        served.run(served.device.run_now(mission))
        expect(cards).to_have_count(before + 2)
    plans = demo_page.locator("details.reject[id^=reject-run-]")
    first, second = (plans.nth(n).get_attribute("id") for n in range(2))
    demo_page.locator(f"#{second} summary").click()
    demo_page.locator(f"#{second} [name=reason]").fill("not this one")
    demo_page.locator("section.plan").first.locator("[data-key=a]").first.click()
    expect(demo_page.locator(f"#{first}")).to_have_count(0)
    reasons = (
        "(all) => all.map((one) => [one.id, one.open, one.querySelector('[name=reason]').value])"
    )
    found = {id_: (is_open, words) for id_, is_open, words in plans.evaluate_all(reasons)}
    assert found.pop(second) == (True, "not this one")
    assert set(found.values()) == {(False, "")}


def test_a_change_is_typed_on_while_it_is_looked_at(demo_page: Page, served: Served) -> None:
    """The form that comes back with another stamp of what was shown has the letters typed since."""
    demo_page.goto(f"{served.url}/inbox")
    demo_page.locator("[data-key=e]").first.click()
    field = demo_page.locator(".editing .edit :is(input:not([type=hidden]), textarea)").first
    field.fill("Soup")
    held = Held(demo_page, posts)
    demo_page.locator(".editing [id^=look-]").click()
    held.wait()
    field.focus()
    demo_page.keyboard.press("End")
    demo_page.keyboard.type(" and bread")
    held.let_go()
    expect(demo_page.locator(".editing [name=shown]")).to_have_count(1)
    expect(field).to_have_value("Soup and bread")


def test_whoever_types_is_here(own_page: Page, served: Served) -> None:
    """Words that are typed and not sent keep the account from locking itself."""
    served.host.people.clear()
    with own_page.expect_response("**/here"):
        own_page.keyboard.type("a long note")
    assert served.host.people == [served.device.account_id]


def test_a_page_that_nobody_sees_holds_no_connection(still_page: Page, served: Served) -> None:
    """A hidden tab listens to nothing, so that many tabs do not stop each other; seen again, it is
    brought up to date.
    """
    hide = """(hidden) => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    listeners = served.device._listeners
    still_page.evaluate(hide, True)
    while listeners:
        served.run(tell(served))
        still_page.wait_for_timeout(5)
    served.run(served.device.create("tasks", {"title": "From the phone", "isCompleted": False}))
    still_page.evaluate(hide, False)
    expect(still_page.locator("#main")).to_contain_text("From the phone")


def test_nothing_that_changes_around_it_closes_the_palette(
    still_page: Page, served: Served
) -> None:
    """A banner, a badge and a card that come meanwhile leave words, focus and list as they are."""
    still_page.keyboard.press("Control+k")
    still_page.keyboard.type("Create a mission")
    expect(still_page.locator('#palette-list[data-words="Create a mission"]')).to_be_visible()
    mission = served.run(served.device.missions())[0].mission_id
    served.device.overwrite("tasks", "one", "other")
    served.run(served.device.run_now(mission))
    served.device.online = False
    served.run(tell(served))
    expect(still_page.locator(".nav-inbox .count")).to_have_text("4")
    expect(still_page.locator(".status")).to_contain_text("offline")
    expect(still_page.locator("#see-conflicts")).to_have_count(1)
    expect(still_page.locator("#palette-text")).to_be_focused()
    still_page.keyboard.press("Enter")
    expect(still_page).to_have_title("New mission · Mana")
