"""Whether a page fits: it is opened once, and looked at in each width and light."""

from __future__ import annotations

from typing import Final, Literal

from playwright.sync_api import Page, ViewportSize

NARROW: Final[ViewportSize] = {"width": 390, "height": 844}
WIDTHS: Final = (NARROW["width"], 820, 1440)
SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
UNNAMED: Final = """[...document.querySelectorAll("button, a, input, select, textarea, summary")]
  .filter((one) => one.type !== "hidden" && one.getClientRects().length)
  .filter((one) => !(one.textContent.trim() || one.ariaLabel || one.title
                     || one.labels?.length || one.getAttribute("aria-labelledby")))
  .map((one) => one.outerHTML)"""


def require_fit(page: Page, what: str) -> None:
    """Fail where the page scrolls sideways, or shows a control without a name, in any width."""
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in WIDTHS:
            page.set_viewport_size({**NARROW, "width": width})
            page.wait_for_function("(width) => innerWidth === width", arg=width)
            seen = (what, scheme, width)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), seen
            assert page.evaluate(UNNAMED) == [], seen
