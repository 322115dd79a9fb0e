"""Security in a real browser: live, at every width, with a passkey, and closed to scripts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from mana.device.views import RotationView
from tests.web.conftest import Served
from tests.web.fake_security import CODES, DIGITS, SECRET, TOTP_CODE
from tests.web.fake_spaces import seed_family

PASSWORD = "correct horse battery"
PATHS = (
    "/security",
    "/security/devices",
    "/security/grants",
    "/security/log",
    "/security/kit",
    "/settings",
)


def signed_up(page: Page, url: str, *, mode: str = "standard") -> None:
    page.goto(url)
    page.fill("#sign-up-login", "ada")
    page.fill("#sign-up-password", PASSWORD)
    page.check(f"input[name=mode][value={mode}]")
    page.click("#sign-up")


def authenticator(context: BrowserContext, page: Page) -> None:
    """Give the browser a passkey device of software that says yes."""
    session = context.new_cdp_session(page)
    session.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    session.send("WebAuthn.addVirtualAuthenticator", {"options": options})


def test_a_sign_up_in_zero_knowledge_mode_shows_the_kit_first(page: Page, served: Served) -> None:
    """The code comes before anything is written, and goes once two groups of it were typed."""
    signed_up(page, served.url, mode="zero-knowledge")
    expect(page.locator("#kit")).to_contain_text("0A1B")
    asked = [page.locator(f"label:has(#group-{n})").inner_text().split()[1] for n in (1, 2)]
    page.fill("#group-1", "FFFF")
    page.fill("#group-2", "FFFF")
    page.click("#have-it")
    expect(page.locator("#problem")).to_be_visible()
    groups = CODES[0].split("-")
    page.fill("#group-1", groups[int(asked[0]) - 1].lower())
    page.fill("#group-2", groups[int(asked[1]) - 1])
    page.click("#have-it")
    expect(page).to_have_url(f"{served.url}/security")
    expect(page.locator("#mode")).to_contain_text("Zero-knowledge")
    page.goto(f"{served.url}/security/kit")
    expect(page.locator("main")).not_to_contain_text(groups[3])


def test_what_is_printed_is_the_kit_alone(page: Page, served: Served) -> None:
    """On paper stand login, hub, code and QR code, and nothing of the page around them."""
    signed_up(page, served.url, mode="zero-knowledge")
    expect(page.locator("#kit")).to_be_visible()
    page.emulate_media(media="print")
    expect(page.locator("#kit .groups")).to_be_visible()
    expect(page.locator("#kit svg").first).to_be_visible()
    for hidden in (".rail", ".status", "#group-1", "#knock"):
        expect(page.locator(hidden).first).to_be_hidden()


def test_a_new_device_is_announced_on_any_page(page: Page, served: Served) -> None:
    """The line comes wherever one is; the page of the digits goes on by itself."""
    signed_up(page, served.url)
    expect(page).to_have_url(f"{served.url}/")
    device = served.device
    link_id = device.links.ask(name="<b>Laptop</b>")
    page.goto(f"{served.url}/notes")
    expect(page.locator("#knock")).to_contain_text("<b>Laptop</b>")
    page.click("#knock a")
    page.click("#answer")
    expect(page.locator("#digits")).to_have_text(DIGITS)
    page.click("#approve")
    expect(page).to_have_url(f"{served.url}/security/devices")
    assert device.links.let_in == [link_id]
    other = device.links.ask("9" * 32, "Other")
    page.goto(f"{served.url}/security/links/{other}")
    device.links.asking[other] = replace(device.links.asking[other], state="answered")
    page.reload()
    expect(page.locator("#link-state")).to_contain_text("Waiting")
    # What the page asks by itself takes the words away as little as a click does.
    with page.expect_response(lambda answer: answer.url.endswith(other)):
        pass
    page.wait_for_function("() => !document.querySelector('.htmx-request')")
    expect(page.locator("#link-state")).to_contain_text("Waiting")
    # By itself, as htmx does it: the live stream tells nothing of what only the hub knows.
    with page.expect_request(lambda one: "hx-current-url" in one.headers and other in one.url):
        pass
    device.links.asking[other] = replace(
        device.links.asking[other], state="revealed", digits="111111 222222"
    )
    expect(page.locator("#digits")).to_have_text("111111 222222")


def test_an_open_page_is_nobody_who_is_there(page: Page, served: Served) -> None:
    """What a page asks by itself keeps no account from locking."""
    signed_up(page, served.url)
    expect(page).to_have_url(f"{served.url}/")
    with page.expect_response("**/security/knock"):
        page.goto(f"{served.url}/notes")
    before = len(served.host.people)
    with page.expect_response("**/security/knock") as knocked:
        page.goto(f"{served.url}/tasks")
    assert knocked.value.status == 200
    # The page that the person opened, and nothing that it asked for afterwards.
    assert len(served.host.people) == before + 1


def test_a_passkey_is_made_by_the_browser(
    context: BrowserContext, page: Page, served: Served
) -> None:
    """At the name that passkeys are made for the browser makes one; elsewhere the page says so."""
    url = served.url.replace("127.0.0.1", "localhost")
    authenticator(context, page)
    signed_up(page, url)
    for where in (served.url, url):
        if where == served.url:
            page.goto(where)
            page.fill("#password-1", PASSWORD)
            page.keyboard.press("Enter")
            expect(page.locator("#to-security")).to_be_visible()
        page.goto(f"{where}/security")
        page.click("#add-passkey summary")
        page.fill("#passkey-name", "Blue key")
        page.click("#do-passkey")
        page.click("#finish")
        if where == served.url:
            expect(page.locator("[data-passkey-said]")).to_contain_text("localhost")
            assert served.device.sessions.known == {}
    expect(page.locator("#factors")).to_contain_text("Blue key")
    assert [one.kind for one in served.device.sessions.known.values()] == ["passkey"]


def test_an_authenticator_is_added(page: Page, served: Served) -> None:
    """A wrong code says so and keeps the page; the right one adds it."""
    signed_up(page, served.url)
    page.goto(f"{served.url}/security")
    page.click("#add-totp summary")
    page.fill("#totp-name", "Phone")
    page.click("#do-totp")
    expect(page.locator("#totp-secret")).to_have_text(
        " ".join(SECRET[at : at + 4] for at in range(0, len(SECRET), 4))
    )
    page.fill("#totp-code", "000000")
    page.click("#finish")
    expect(page.locator("#problem")).to_contain_text("TWO_FACTOR_FAILED")
    page.fill("#totp-code", TOTP_CODE)
    page.click("#finish")
    expect(page.locator("#factors")).to_contain_text("Phone")


def test_who_has_other_keys_is_shown_until_compared(demo_page: Page, served: Served) -> None:
    """Other keys are a warning in words and a sign; comparing them takes it away."""
    family = served.run(seed_family(served.device))
    members = family._space.members
    other = next(one for one in members.values() if not one.own)
    members[other.account_id] = replace(other, comparison="changed")
    demo_page.goto(f"{served.url}/s/{family.space_id}/space")
    item = demo_page.locator(f"#m-{other.account_id}")
    expect(item).to_contain_text("has other keys than before")
    item.locator(f"#f-{other.account_id} > summary").click()
    demo_page.click(f"#compared-{other.account_id}")
    expect(item).not_to_contain_text("has other keys than before")
    expect(item).to_contain_text("compared")


@pytest.mark.parametrize("width", [1280, 820, 390, 320])
def test_nothing_is_wider_than_the_window(page: Page, served: Served, width: int) -> None:
    """Every page of security and every other door fits, whatever stands in it."""
    page.set_viewport_size({"width": width, "height": 800})
    for path in ("/", "/sign-in/lost", "/sign-in/device"):
        page.goto(served.url + path)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
    signed_up(page, served.url, mode="zero-knowledge")
    expect(page.locator("#kit")).to_be_visible()
    device = served.device
    device.security.rotating = [RotationView(device.space_id, "key", 3, 77, 100, 3)]
    device.links.ask(name="x" * 80)
    for path in (*PATHS, f"/security/links/{'1a2b3c4d' * 4}"):
        page.goto(served.url + path)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path


def test_pages_of_security_hold_nothing_that_the_policy_forbids(page: Page, served: Served) -> None:
    """No page of security holds an inline script, a style or an address of elsewhere."""
    signed_up(page, served.url)
    expect(page).to_have_url(f"{served.url}/")
    for path in PATHS:
        page.goto(served.url + path)
        assert page.evaluate("document.querySelectorAll('[style], style').length") == 0, path
        assert page.evaluate("[...document.scripts].every((one) => one.src)"), path
