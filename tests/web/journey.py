"""From sign-up to revert without a pointer, against any page: a fake's or the real one's.

Every step is done by keys, and waits for what a person would see. Nothing here knows which
device, hub or model is behind the address.
"""

from __future__ import annotations

from playwright.sync_api import Page, expect

TABS_MAX = 150
NOTE = "Remember: call the dentist by Friday.\n\nTODO: send the slides to Rita."
RUN_MS = 60_000

FOCUS_IS_SET = """
() => document.activeElement !== document.body
  || ![...document.querySelectorAll("[autofocus]")].some((one) => one.checkVisibility())
"""
"""Whether nothing is left of what a page does with the focus when it opens."""


class Hands:
    """A person at the keyboard."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def tab_to(self, selector: str) -> None:
        """Press Tab until the element has the focus; fail if no Tab leads there."""
        expect(self.page.locator(selector).first).to_be_visible()
        # A Tab that comes just after the page has set its focus would lead past that field.
        self.page.wait_for_function(FOCUS_IS_SET)
        for _ in range(TABS_MAX):
            if self.page.evaluate(
                "(selector) => Boolean(document.activeElement?.matches(selector))", selector
            ):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"no Tab leads to {selector}")

    def enter(self, selector: str) -> None:
        """Go to a link or button, and press Enter."""
        self.tab_to(selector)
        self.page.keyboard.press("Enter")

    def fill(self, selector: str, text: str) -> None:
        """Go to a field, and type."""
        self.tab_to(selector)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)

    def command(self, text: str) -> None:
        """Open the palette, and do what the words find."""
        self.page.keyboard.press("Control+k")
        expect(self.page.locator("#palette-text")).to_be_focused()
        self.page.keyboard.type(text)
        expect(self.page.locator("#palette-list [role=option]").first).to_contain_text(text)
        self.page.keyboard.press("Enter")

    def see(self, text: str, *, within: str = "#main", timeout: float | None = None) -> None:
        """Wait until a text is on the page."""
        expect(self.page.locator(within)).to_contain_text(text, timeout=timeout)


def play(page: Page, url: str, *, login: str = "ada") -> None:
    """Sign up, write, create agent and mission, grant, run, approve, reject, revert, redo."""
    hands = Hands(page)
    page.goto(url)
    hands.fill("#sign-up-login", login)
    hands.fill("#sign-up-name", "Ada")
    hands.fill("#sign-up-password", "four quiet herons walking")
    hands.enter("#sign-up")
    expect(page).to_have_title("Home · Mana", timeout=RUN_MS)

    hands.command("Write a note")
    expect(page.locator("#note-title")).to_be_focused()
    hands.fill("#note-title", "Diary")
    hands.fill("#note-content", NOTE)
    page.keyboard.press("Control+s")
    hands.see("Sealed before it leaves")

    hands.command("Go to Tasks")
    hands.fill("#new-task-title", "Water the ferns")
    page.keyboard.press("Enter")
    hands.see("Water the ferns")

    hands.command("Create an agent")
    hands.fill("#agent-name", "Mira")
    page.keyboard.press("Enter")
    hands.see("Budget today")

    hands.command("Create a mission")
    hands.fill("#mission-title", "Weekly review")
    hands.fill("#mission-objective", "find promises in my notes that have no task yet")
    hands.tab_to('input[name="input"]')
    page.keyboard.press("Space")
    hands.enter("#save-mission")
    hands.see("work while you are away?")
    hands.see("Diary", within=".consent-lines")
    hands.enter("#grant")
    hands.see("days left")

    hands.enter("#run-now")
    expect(page.locator(".nav-inbox .count")).to_be_visible(timeout=RUN_MS)
    hands.command("Go to Inbox")
    cards = page.locator("[data-proposal]")
    expect(cards.first).to_be_visible()
    waiting = cards.count()
    page.keyboard.press("j")
    page.keyboard.press("a")
    expect(page.locator(".proposal.folded").first).to_contain_text("Approved")
    expect(page.locator("#toasts")).to_contain_text("Done.")
    if waiting > 1:
        expect(cards).to_have_count(waiting - 1)
        page.keyboard.press("r")
        page.keyboard.press("Space")
        page.keyboard.press("Enter")
        expect(cards).to_have_count(waiting - 2)

    hands.command("Go to Timeline")
    hands.see("done")
    hands.enter('a[href^="/timeline/revert?target=iteration"]')
    hands.see("This will be as it was")
    hands.enter("#revert")
    hands.see("reverted")
    hands.enter('a[href*="target=revert"]')
    hands.enter("#revert")
    hands.see("done")

    hands.command("Go to Data access")
    hands.see("Diary", within=".readings")
    hands.enter('form[action^="/grants/"] button')
    hands.see("Nobody: no grant is active.")
