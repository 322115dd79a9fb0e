"""All work at once, models of one's own, and letters."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from mana.device.views import ModelView
from mana.protocol.messages import NotifyState
from tests.web.conftest import Served
from tests.web.fake_device import HOUR, FakeHost, now
from tests.web.fake_work import CODE
from tests.web.journey import Hands
from tests.web.test_missions_page import one_of, said
from tests.web.test_requests import NASTY, app_of, in_demo, post, token, visitor

MODEL = {
    "label": "My large one",
    "url": "https://models.example/v1",
    "model": "large-2",
    "key": "sk-very-secret",
    "prompt_price": "2.50",
    "completion_price": "10",
    "context_tokens": "128,000",
}


@pytest.mark.anyio
async def test_one_switch_stops_everything_and_lets_it_go_on() -> None:
    """Home and palette hold one switch; while it is on, every page says so and offers the way back."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        assert 'id="work-stop"' in (await client.get("/")).text
        assert 'action="/all-work/stop"' in (await client.get("/palette?q=stop all")).text
        assert (await post(client, "/all-work/stop")).headers["location"] == "/"
        assert (await device.work_state()).stopped_ms is not None
        for path in ("/", "/notes", "/missions", "/settings", "/usage", "/agents"):
            page = await client.get(path)
            status = page.text[page.text.index('<footer class="status"') :]
            assert re.search(r"All work is stopped since\s+<time[^>]*>\d\d:\d\d</time>", status), (
                path
            )
            assert 'action="/all-work/start"' in status, path
            assert "next run" not in status
        assert 'action="/all-work/start"' in (await client.get("/palette?q=go on")).text
        await post(client, "/all-work/start", back="/notes")
        assert "All work is stopped" not in said(await client.get("/missions"))


@pytest.mark.anyio
async def test_a_stop_from_yesterday_names_its_day() -> None:
    """A time alone would be of today."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        device.work = replace(device.work, stopped_ms=now() - 24 * HOUR)
        assert "All work is stopped since yesterday at" in said(await client.get("/notes"))


@pytest.mark.anyio
async def test_nothing_can_be_run_while_all_work_is_stopped() -> None:
    """A mission's page offers no run, says why, and has the switch beside it."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        await device.stop_work()
        page = await client.get(f"/missions/{mission}")
        assert 'id="run-now"' not in page.text
        assert "None, while all work is stopped." in said(page)
        answer = await post(client, f"/missions/{mission}/run")
        assert answer.status_code == 409
        assert "WORK_STOPPED" in answer.text


@pytest.mark.anyio
async def test_a_stop_that_the_hub_has_not_heard_says_so() -> None:
    """Offline the stop holds here at once, and nobody is told that the hub knows."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        device.online = False
        await post(client, "/all-work/stop")
        words = said(await client.get("/"))
        assert "The hub is told as soon as it can be reached" in words
        assert "here or on the hub" not in words


@pytest.mark.anyio
async def test_the_operators_stop_is_told() -> None:
    """Where the hub's own work is stopped, the person reads it, with no switch that is not theirs."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        device.work = replace(device.work, hub_stopped=True)
        page = await client.get("/missions")
        assert "Whoever runs the hub has stopped its work." in said(page)
        assert "the hub’s work is stopped" in said(await client.get("/notes"))
        assert 'action="/all-work/start"' not in page.text


@pytest.mark.anyio
async def test_another_hub_is_said_and_taken_only_by_its_name() -> None:
    """A hub that calls itself otherwise is told on every page of work; its name is to be typed."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        device.work = replace(device.work, hub_known="aa" * 32, hub_said="aa" * 32)
        assert 'id="hub-changed"' not in (await client.get("/missions")).text
        device.work = replace(device.work, hub_said="bc" * 32, differs=True)
        for path in ("/missions", "/usage"):
            words = said(await client.get(path))
            assert f"The hub calls itself {'bc' * 8}" in words, path
            assert f"signed for before is {'aa' * 8}." in words, path
            assert "says something else of your limits" not in words, path
        assert (await post(client, "/all-work/hub", hub="aa" * 4)).status_code == 400
        assert device.work.hub_changed
        answer = await post(client, "/all-work/hub", hub="bc" * 4, back="/usage")
        assert answer.headers["location"] == "/usage"
        assert 'id="hub-changed"' not in (await client.get("/usage")).text
        device.work = replace(device.work, hub_said="", hub_unnamed=True)
        page = await client.get("/missions")
        assert "It is too old: whoever runs it has to bring it up to date." in said(page)
        assert 'action="/all-work/hub"' not in page.text, "no name can be typed"


@pytest.mark.anyio
async def test_a_key_is_written_and_never_shown() -> None:
    """A model of one's own is added, edited and removed; its key stands on no page."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        assert (await post(client, "/settings/models/new", **MODEL)).status_code == 303
        (model,) = await device.own_models()
        assert (model.prompt_price, model.completion_price) == (2_500_000, 10_000_000)
        assert model.context_tokens == 128_000
        path = f"/settings/models/{model.model_id}"
        for page in (path, "/settings", "/settings/models/new", "/agents/new"):
            assert "sk-very-secret" not in (await client.get(page)).text
        words = said(await client.get("/settings"))
        assert "2.50 EUR sent, 10.00 EUR replied, for a million tokens" in words
        # What is not typed stays; only the box takes the key away.
        await post(client, path, **{**MODEL, "key": "", "prompt_price": "", "completion_price": ""})
        assert device.own_keys[model.model_id] == "sk-very-secret"
        assert (await device.own_models())[0].prompt_price is None
        await post(client, path, **{**MODEL, "key": "", "forget_key": "1"})
        assert (await device.own_models())[0].has_key is False
        await post(client, f"{path}/remove")
        assert await device.own_models() == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("label", {"label": " "}),
        ("url", {"url": "models.example"}),
        ("url", {"url": "https://ada:secret@models.example"}),
        ("model", {"model": ""}),
        ("completion_price", {"completion_price": ""}),
        ("prompt_price", {"prompt_price": "cheap"}),
        ("context_tokens", {"context_tokens": "12"}),
    ],
)
async def test_a_model_that_cannot_be_is_told_at_its_field(
    field: str, values: dict[str, str]
) -> None:
    """Nothing is added, everything but the key is still there, and the key is not in the page."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        data = {"csrf": await token(client), **MODEL, "label": NASTY, **values}
        answer = await client.post("/settings/models/new", data=data)
        assert answer.status_code == 422
        assert f'id="fault-{field}"' in answer.text
        assert "sk-very-secret" not in answer.text
        assert "<script>alert" not in answer.text
        assert await device.own_models() == []
        assert 'value="128,000"' in answer.text or field == "context_tokens"


@pytest.mark.anyio
async def test_models_of_device_and_hub_say_what_they_cost() -> None:
    """Each model has its price beside it, or the words that nobody said one."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        free = ModelView("rules:offline", "rules", "rules", True, "rules", None, 0, 0)
        dear = ModelView(
            "https://m.example", "big", "big", False, "large", None, 500_000, 1_500_000
        )
        device.models_here = [free, dear]
        words = said(await client.get("/settings"))
        assert "rules , free." in words
        assert "0.50 EUR sent, 1.50 EUR replied" in words
        assert "rules (offline) , no price." in words


@pytest.mark.anyio
async def test_letters_go_from_address_to_code_to_on_and_off() -> None:
    """An address is confirmed by its code before anything else; it can be switched off and forgotten."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        assert "nothing of the content" in said(await client.get("/settings"))
        await post(client, "/settings/letters", do="address", address="ada@example.org")
        assert 'id="letters-code"' in (await client.get("/settings")).text
        wrong = await post(client, "/settings/letters", do="code", code="0000")
        assert wrong.status_code == 400
        assert device.letters.confirmed is False
        await post(client, "/settings/letters", do="code", code=CODE)
        assert "Letters go to ada@example.org" in said(await client.get("/settings"))
        await post(client, "/settings/letters", do="off")
        assert device.letters.enabled is False
        await post(client, "/settings/letters", do="forget")
        assert device.letters.address == ""


@pytest.mark.anyio
async def test_letters_are_absent_where_the_hub_sends_none() -> None:
    """A hub without mail offers no letters; one that is away says that it cannot be asked."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        device.letters = NotifyState(available=False)
        assert 'id="letters"' not in (await client.get("/settings")).text
        device.online = False
        page = await client.get("/settings")
        assert page.status_code == 200
        assert 'id="letters"' in page.text
        assert 'id="letters-address"' not in page.text


def test_a_stop_reaches_a_run_and_every_open_page(demo_page: Page, served: Served) -> None:
    """By the palette alone everything stops: the run ends, and a page that is open tells of it."""
    device = served.device
    device.run_takes_s = 60.0
    mission = served.run(one_of(device))
    demo_page.goto(f"{served.url}/missions/{mission}")
    hands = Hands(demo_page)
    hands.enter("#run-now")
    expect(demo_page.locator("#progress")).to_be_visible()
    other = demo_page.context.new_page()
    other.goto(f"{served.url}/notes")
    hands.command("Stop all work")
    expect(demo_page.locator("#work-stopped")).to_contain_text("All work is stopped since")
    other.bring_to_front()
    expect(other.locator(".status")).to_contain_text("All work is stopped")
    other.locator(".status").get_by_text("Let it go on").click()
    expect(other.locator(".status .stopped")).to_have_count(0)
    other.close()
    demo_page.bring_to_front()
    demo_page.goto(f"{served.url}/missions/{mission}")
    expect(demo_page.locator(".runs .run").first).to_contain_text("Stopped")
