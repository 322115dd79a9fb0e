"""Missions on the page: the sentence, the runs, what holds them, and ending one."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from mana.device.errors import Offline
from mana.device.names import FLAGS
from mana.device.views import CapWait, OnChange, RunView
from mana.domain.cadences import Cadence
from tests.web.conftest import Served
from tests.web.fake_device import HOUR, MINUTE, FakeDevice, FakeHost, now, seed
from tests.web.fake_spaces import seed_family
from tests.web.journey import Hands
from tests.web.test_requests import NASTY, app_of, in_demo, post, token, visitor

TYPED = {
    "title": "Evening look",
    "objective": "find what is left",
    "cadence": "daily",
    "every_minutes": "60",
    "day_of_week": "0",
    "at": "18:30",
    "expression": "",
    "debounce_minutes": "5",
    "spacing_minutes": "60",
    "zone": "Europe/Vienna",
    "runs_on": "device",
    "if_missed": "once",
    "tokens": "",
    "cost": "",
    "concept": "",
}


async def one_of(device: FakeDevice) -> str:
    """Return the id of the demo's mission."""
    return (await device.missions())[0].mission_id


async def typed(device: FakeDevice, **values: str) -> dict[str, str]:
    """Return a whole form, with some fields typed otherwise."""
    return {**TYPED, "agent_id": (await device.agents())[0].agent_id, **values}


def said(answer: httpx.Response) -> str:
    """Return the words of a page, as a person reads them."""
    text = re.sub(r"<(?:style|script|template).*?</(?:style|script|template)>", "", answer.text)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("values", "cadence"),
    [
        ({"cadence": "manual"}, Cadence("manual")),
        ({"cadence": "interval", "every_minutes": "90"}, Cadence("interval", every_minutes=90)),
        ({}, Cadence("daily", at_hour=18, at_minute=30)),
        (
            {"cadence": "weekly", "day_of_week": "5"},
            Cadence("weekly", day_of_week=5, at_hour=18, at_minute=30),
        ),
        (
            {"cadence": "cron", "expression": " 0 7  * * 1-5 "},
            Cadence("cron", expression="0 7 * * 1-5"),
        ),
        (
            {"cadence": "onChange", "debounce_minutes": "10", "spacing_minutes": "120"},
            Cadence("onChange", debounce_minutes=10, spacing_minutes=120),
        ),
    ],
)
async def test_every_cadence_can_be_said(values: dict[str, str], cadence: Cadence) -> None:
    """What the sentence says is what the mission does, and it reads the same when it is opened."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        made = await post(client, "/missions", **await typed(device, **values))
        assert made.status_code == 303
        path = made.headers["location"]
        assert (await device.mission(path.rsplit("/")[-1])).cadence == cadence
        again = (await client.get(f"{path}/edit")).text
        assert f'<option value="{cadence.kind}" selected>' in again


@pytest.mark.anyio
async def test_missed_runs_and_caps_are_kept_and_cleared() -> None:
    """Missed runs and both caps are written as said; an empty field takes a cap away."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        values = await typed(device, if_missed="all", tokens="2,000", cost="0.50")
        path = (await post(client, "/missions", **values)).headers["location"]
        found = await device.mission(path.rsplit("/")[-1])
        assert (found.if_missed, found.tokens_per_day_max) == ("all", 2_000)
        assert found.cost_per_day_max == 500_000
        assert "At most 2,000 tokens and 0.50 EUR a day." in said(await client.get(path))
        await post(client, path, **await typed(device))
        found = await device.mission(path.rsplit("/")[-1])
        assert (found.tokens_per_day_max, found.cost_per_day_max) == (None, None)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("title", {"title": " "}),
        ("objective", {"objective": ""}),
        ("every_minutes", {"cadence": "interval", "every_minutes": "soon"}),
        ("at", {"at": "25:00"}),
        ("at", {"at": "teatime"}),
        ("zone", {"zone": "Europe/Nowhere"}),
        ("expression", {"cadence": "cron", "expression": "0 7 * *"}),
        ("expression", {"cadence": "cron", "expression": "<b>0</b> 0 31 2 *"}),
        ("spacing_minutes", {"cadence": "onChange", "spacing_minutes": "1"}),
        ("tokens", {"tokens": "-1"}),
        ("cost", {"cost": "a lot"}),
        ("cadence", {"cadence": "sometimes"}),
    ],
)
async def test_a_fault_is_told_beside_its_field(field: str, values: dict[str, str]) -> None:
    """A refused sentence comes back as it was typed, with the fault at its field; nothing is made."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        tick = (await device.inputs())[0][0].key
        form = await typed(device, concept=f"precious {NASTY}", **values)
        data = {"csrf": await token(client), **form, "input": tick}
        answer = await client.post("/missions", data=data)
        assert answer.status_code == 422
        assert answer.headers["hx-push-url"] == "false"
        assert f'id="fault-{field}"' in answer.text
        assert len(re.findall(r'class="fault"', answer.text)) == 1
        assert f'aria-describedby="fault-{field}" autofocus' in answer.text
        assert html.escape(f"precious {NASTY}", quote=False)[:20] in answer.text
        assert "<b>" not in answer.text
        assert f'value="{tick}" checked' in answer.text
        for name, text in values.items():
            if name not in ("cadence", "objective"):
                assert f'value="{html.escape(text)}"' in answer.text, name
        # What is typed and not saved is the person's: no live refresh takes it.
        assert 'data-dirty="1"' in answer.text
        assert len(await device.missions()) == 1


@pytest.mark.anyio
async def test_what_the_hub_refuses_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a mission cannot be moved because the hub is away, all that was typed is still there."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)

        async def away(mission_id: str, **fields: object) -> None:
            raise Offline("the hub cannot be reached")

        monkeypatch.setattr(device, "edit_mission", away)
        answer = await post(
            client, f"/missions/{mission}", **await typed(device, title="A new name")
        )
        assert answer.status_code == 503
        assert "OFFLINE" in answer.text
        assert 'value="A new name"' in answer.text


@pytest.mark.anyio
async def test_the_next_times_are_shown_without_scripts() -> None:
    """A button shows when it would run, in the whole form as it was typed, and makes nothing."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        form = await typed(device, cadence="cron", expression="0 7 * * 1-5", title="Half a name")
        answer = await post(client, "/missions/new", **form)
        assert answer.status_code == 200
        times = re.search(r'id="next-times".*?</div>', answer.text, re.S)
        assert times is not None
        assert len(re.findall(r"<time ", times[0])) == 3
        assert 'value="Half a name"' in answer.text
        wrong = await post(client, "/missions/new", **{**form, "expression": "x"})
        assert 'id="fault-expression"' in wrong.text
        assert len(await device.missions()) == 1
        mission = await one_of(device)
        kept = await post(client, "/missions/new", **form, mission_id=mission)
        assert f'action="/missions/{mission}"' in kept.text


@pytest.mark.anyio
async def test_a_run_that_was_stopped_is_said_once_and_truly() -> None:
    """A stopped run is told in one sentence, without a moment that it has not, and has run."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        values = await typed(device, cadence="manual")
        await post(client, "/missions", **values)
        mission = next(one for one in await device.missions() if one.title == TYPED["title"])
        path = f"/missions/{mission.mission_id}"
        assert "It has not run yet." in said(await client.get(path))
        ended = RunView(
            "r1", now() - HOUR, "manual", "failed", "stopped", "It was stopped.", None, 6_824
        )
        device._set(mission.mission_id, runs=(ended,))
        words = said(await client.get(path))
        assert "The last run was stopped." in words
        assert "Stopped 1 hour ago" not in words
        assert "It was stopped." not in words
        assert "6,824 tokens" in words
        assert "It has not run yet." not in words
        assert "No run has brought a result yet." in words


@pytest.mark.anyio
async def test_each_end_of_a_run_is_told_with_its_reason() -> None:
    """The ledger says of each run how it ended and why, what it cost, and when it is tried again."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        due = now() + 5 * MINUTE
        run = RunView("r1", now() - HOUR, "scheduled", "queued", "", "", None, 300, cost=90_000)
        skipped = replace(run, occurrence_id="r2", state="skipped", reason_words=NASTY)
        device._set(
            mission,
            runs=(
                replace(run, tries=1, last_reason="timeout", due_ms=due),
                skipped,
                replace(run, occurrence_id="r3", state="failed", reason="stopped", kind="manual"),
                replace(run, occurrence_id="r4", state="missed", kind="change"),
                replace(run, occurrence_id="r5", state="done", tries=2),
            ),
        )
        answer = await client.get(f"/missions/{mission}")
        words = said(answer)
        assert "Tries again" in words
        assert "after a time-out" in words
        assert "300 tokens, 0.09 EUR" in words
        assert "Stopped , by hand" in words or "Stopped, by hand" in words
        assert "Missed, after a change" in words
        assert "After 2 tries that failed" in words
        assert NASTY in words
        assert "<script>alert" not in answer.text
        # What waits to be tried again can be left alone for good.
        assert "Do not try again" in words
        assert 'id="run-now"' not in answer.text


@pytest.mark.anyio
async def test_a_mission_on_change_says_when_it_would_run() -> None:
    """It tells what starts it, what does not, when it was changed last, and when a change runs."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        path = f"/missions/{mission}"
        cadence = Cadence("onChange", debounce_minutes=5, spacing_minutes=60)
        inputs = (await device.mission(mission)).inputs
        waits = OnChange(now() - 3 * HOUR, None, None)
        device._set(mission, cadence=cadence, next_ms=(), on_change=waits)
        words = said(await client.get(path))
        assert f"When one of its {len(inputs)} inputs changes" in words
        assert "Somebody last changed an input 3 hours ago ." in words
        assert "What agents write does not start it." in words
        assert "not before" not in words
        device._set(mission, on_change=OnChange(None, None, now() + HOUR))
        words = said(await client.get(path))
        assert re.search(r"rested for 5 minutes, and not before \d\d:\d\d", words)
        assert "Nobody has changed an input yet." in words
        device._set(mission, on_change=OnChange(now(), now() + 5 * MINUTE, None))
        assert re.search(
            r"\d\d:\d\d, at the earliest An input was changed", said(await client.get(path))
        )


@pytest.mark.anyio
async def test_the_list_tells_of_each_mission_on_change_when_it_runs() -> None:
    """A change that waits, a rest, or the last change stand in the list as on the mission's page."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        cadence = Cadence("onChange", debounce_minutes=5, spacing_minutes=60)
        device._set(mission, cadence=cadence, next_ms=())
        for waits, words in (
            (OnChange(now(), now() + 5 * MINUTE, None), r"next .*\d\d:\d\d, at the earliest"),
            (OnChange(None, None, now() + HOUR), r"not before .*\d\d:\d\d"),
            (OnChange(now() - 3 * HOUR, None, None), r"last change 3 hours ago"),
            (OnChange(None, None, None), r"no change yet"),
        ):
            device._set(mission, on_change=waits)
            assert re.search(words, said(await client.get("/missions"))), words
        await device.stop_work()
        assert "no change yet" not in said(await client.get("/missions"))


@pytest.mark.anyio
async def test_every_moment_is_by_the_accounts_clocks() -> None:
    """No page mixes the account's zone with the machine's; another's, of a mission, is named."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        device.time_zone = "Asia/Kolkata"
        mission = await one_of(device)
        await device.run_now(mission)
        assert "at 10:00 (Europe/Vienna)" in said(await client.get("/missions"))
        for path in ("/", "/missions", f"/missions/{mission}", "/timeline", "/data-access"):
            moments = re.findall(r'<time datetime="([^"]*T[^"]*)"', (await client.get(path)).text)
            assert moments, path
            assert {one[-6:] for one in moments} == {"+05:30"}, path
        words = said(await client.get(f"/missions/{mission}"))
        assert "by the clocks of Asia/Kolkata, your time zone" in words
        data = {"csrf": await token(client), **await typed(device, cadence="daily")}
        answer = await client.post("/missions/new", data=data)
        assert ", by the clocks of Asia/Kolkata." in said(answer)
        device.time_zone = "Europe/Vienna"
        assert "by the clocks of" not in said(await client.get(f"/missions/{mission}"))


@pytest.mark.anyio
async def test_a_limit_that_somebody_else_granted_is_told_to_hold_later() -> None:
    """Whoever raises a cap under another's grant reads that it waits for them; lowering says nothing."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        await device.edit_mission(mission, runs_on="hub", tokens_per_day_max=500)
        grant = await device.grant(mission)
        agent = (await device.mission(mission)).agent_id
        later = "the higher limit holds only once whoever granted “Weekly review” grants again"

        async def told(path: str, **values: str) -> str:
            assert (await post(client, path, **values)).status_code == 303
            return said(await client.get(path))

        path = f"/missions/{mission}"
        low = {**await typed(device, tokens="100", runs_on="hub"), "title": "Weekly review"}
        high = {**low, "tokens": "900"}
        assert later not in await told(path, **high)
        device._grants[grant.grant_id] = replace(grant, own=False)
        assert later not in await told(path, **low)
        assert later in await told(path, **high)
        assert later in await told(path, **{**high, "tokens": ""})
        fields = {"name": "Mira", "concurrent_max": "1"}
        await device.edit_agent(agent, tokens_per_day_max=50)
        assert later in await told(f"/agents/{agent}", **fields, tokens_per_day_max="60")
        assert later not in await told(f"/agents/{agent}", **fields, tokens_per_day_max="60")


@pytest.mark.anyio
async def test_a_grant_that_works_says_what_it_does_not_allow() -> None:
    """A limit that was raised since stands beside the grant, which is not said to have ended."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        await device.edit_mission(mission, runs_on="hub")
        grant = await device.grant(mission)
        device._grants[grant.grant_id] = replace(grant, stale_reason="Bob raised a limit.")
        words = said(await client.get(f"/missions/{mission}"))
        assert "days left" in words
        assert "Bob raised a limit." in words
        assert "Grant again" in words
        assert "no longer fits" not in words


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("model", "words", "named"),
    [("", "", "rules"), ("big", "big", "big"), ("own:m1", "Kitchen box", "Kitchen box")],
)
async def test_a_call_that_failed_names_its_model(model: str, words: str, named: str) -> None:
    """Where the model is the trouble, the mission's page says which one its agent is given."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        agent = (await device.mission(mission)).agent_id
        device._agents[agent] = replace(device._agents[agent], model=model, model_words=words)
        path = f"/missions/{mission}"
        wanted = f"The model that Mira is given: {named}"
        run = RunView("r1", now(), "scheduled", "failed", "auth", "It takes no key.", None, 0)
        for one, is_told in (
            (run, True),
            (replace(run, state="queued", reason="", last_reason="provider", tries=1), True),
            (replace(run, reason="stopped"), False),
            (replace(run, state="done", reason=""), False),
        ):
            device._set(mission, runs=(one,))
            assert (wanted in said(await client.get(path))) is is_told, one
        device._set(mission, hold="errored", failures=5, failure="auth")
        assert wanted in said(await client.get(path))
        device._agents[agent] = replace(device._agents[agent], model_words=NASTY, model="x")
        assert "<script>alert" not in (await client.get(path)).text


@pytest.mark.anyio
async def test_a_cap_is_told_of_in_all_spaces_at_once() -> None:
    """The usage page names what waits in every space, as all of it draws on the same caps."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        await seed(family)
        theirs = (await family.missions())[0].mission_id
        wait = CapWait("account", "tokens", 500, "Your budget is used up.", None)
        family._set(theirs, cap_wait=wait)
        for path in ("/usage", f"/s/{family.space_id}/usage"):
            page = await client.get(path)
            assert "1 mission waits for room" in said(page), path
            assert f'href="/s/{family.space_id}/missions/{theirs}"' in page.text, path
            assert "The Lindens : Your budget is used up." in said(page), path
        assert "waits for room" not in said(await client.get("/missions"))


@pytest.mark.anyio
async def test_a_used_up_cap_says_which_missions_wait_and_until_when() -> None:
    """Lists, the mission and the usage page name the mission, whose cap it is, and when there is room."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        wait = CapWait("agent", "tokens", 500, NASTY, now() + 20 * MINUTE)
        for path in ("/missions", f"/missions/{mission}", "/usage"):
            assert 'id="capped"' not in (await client.get(path)).text, path
        device._set(mission, cap_wait=wait)
        for path in ("/missions", f"/missions/{mission}", "/usage"):
            answer = await client.get(path)
            _, lists_it, named = said(answer).partition(
                "1 mission waits for room under a cap of a day:"
            )
            assert named.startswith(" Weekly review") or (
                path.startswith("/missions/") and not lists_it
            )
            assert NASTY in said(answer), path
            assert re.search(r"free again .*\d\d:\d\d\.", said(answer)), path
            assert "<script>alert" not in answer.text, path
        assert "free again" in said(await client.get("/"))
        device._set(mission, cap_wait=replace(wait, room_ms=None))
        assert "free again" not in said(await client.get("/missions"))


@pytest.mark.anyio
async def test_a_run_tells_its_worst_case_and_what_was_found_in_it() -> None:
    """Figures that nobody confirmed are told as such; a hidden instruction is told with the run."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        run = RunView("r1", now() - HOUR, "scheduled", "done", "", "", None, 3_040, cost=120_000)
        open_run = replace(run, unconfirmed_tokens=2_000, unconfirmed_cost=90_000)
        device._set(mission, runs=(replace(open_run, flags=("marker", "context-full")),))
        words = said(await client.get(f"/missions/{mission}"))
        assert "3,040 tokens, 0.12 EUR, of which 2,000 tokens, 0.09 EUR at most" in words
        assert FLAGS["marker"] in words
        assert FLAGS["context-full"] in words
        device._set(mission, runs=(run,))
        assert "at most:" not in said(await client.get(f"/missions/{mission}"))


@pytest.mark.anyio
async def test_a_mission_that_gave_up_is_resumed_by_one_button() -> None:
    """A mission that failed too often says why, and one button lets it go on."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        device._set(mission, hold="errored", failures=5, failure="auth")
        page = await client.get(f"/missions/{mission}")
        assert "it failed 5 times in a row" in said(page)
        assert "does not take the key" in said(page)
        assert 'id="resume"' in page.text
        assert 'id="run-now"' not in page.text
        assert "Resume “Weekly review”" in said(await client.get("/palette?q=resume"))
        await post(client, f"/missions/{mission}/resume")
        assert (await device.mission(mission)).hold == ""
        assert 'id="run-now"' in (await client.get(f"/missions/{mission}")).text
        device._set(mission, raised_words="Bob raised a limit of a day.")
        assert "Bob raised a limit" in said(await client.get(f"/missions/{mission}"))
        await post(client, f"/missions/{mission}/agree")
        assert 'id="raised"' not in (await client.get(f"/missions/{mission}")).text


@pytest.mark.anyio
async def test_a_run_on_the_hub_can_be_stopped_and_looked_at_without_scripts() -> None:
    """While a run goes on there is Stop, wherever it runs, and a link that shows how far it is."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = await one_of(device)
        assert (await device.mission(mission)).runs_on == "hub"
        run = RunView("r1", now(), "scheduled", "leased", "", "", None, 0, "compaction")
        device._set(mission, runs=(replace(run, round=2, tool_calls=3, steps=1, heard=480),))
        page = await client.get(f"/missions/{mission}")
        assert "Summing up what it has read so far" in said(page)
        assert "round 2 · 3 tool calls · 1 step · 480 characters of the reply" in said(page)
        assert 'id="stop"' in page.text
        assert f'<noscript><p><a href="/missions/{mission}"' in page.text
        stopped: list[str] = []

        async def stop(mission_id: str) -> None:
            stopped.append(mission_id)

        device.stop_mission = stop  # type: ignore[method-assign]
        assert (await post(client, f"/missions/{mission}/stop")).status_code == 303
        assert stopped == [mission]


def test_a_runs_progress_comes_by_itself_and_stop_ends_it(demo_page: Page, served: Served) -> None:
    """Nobody loads anew: the numbers of a run appear as it goes, and Stop ends it."""
    device = served.device
    device.run_takes_s = 60.0
    mission = served.run(one_of(device))
    demo_page.goto(f"{served.url}/missions/{mission}")
    Hands(demo_page).enter("#run-now")
    expect(demo_page.locator("#progress")).to_contain_text("Asking the model")

    async def go_on() -> None:
        device.progress(mission, round=2, tool_calls=3, steps=1, heard=480)

    served.run(go_on())
    expect(demo_page.locator("#progress")).to_contain_text("round 2 · 3 tool calls · 1 step · 480")
    Hands(demo_page).enter("#stop")
    expect(demo_page.locator("#progress")).to_have_count(0)
    expect(demo_page.locator(".runs .run").first).to_contain_text("Stopped, by hand")
    expect(demo_page.locator("#run-now")).to_be_visible()


def test_the_next_times_come_while_one_types(demo_page: Page, served: Served) -> None:
    """A pattern shows its next three times as it is typed; the rest of the form is left alone."""
    demo_page.goto(f"{served.url}/missions/new")
    hands = Hands(demo_page)
    hands.fill("#mission-title", "Every morning")
    demo_page.locator("#mission-cadence").select_option("cron")
    expect(demo_page.locator("#mission-weekday")).to_be_hidden()
    hands.fill("#mission-cron", "0 7 * *")
    expect(demo_page.locator("#next-times")).to_contain_text("five fields")
    demo_page.keyboard.press("End")
    demo_page.keyboard.type(" 1-5")
    expect(demo_page.locator("#next-times time")).to_have_count(3)
    expect(demo_page.locator("#mission-cron")).to_be_focused()
    expect(demo_page.locator("#mission-cron")).to_have_value("0 7 * * 1-5")
    expect(demo_page.locator("#mission-title")).to_have_value("Every morning")
    demo_page.locator("#mission-title").focus()
    demo_page.keyboard.press("Enter")
    expect(demo_page.locator("#fault-objective")).to_be_visible()
    expect(demo_page.locator("#mission-objective")).to_be_focused()
    expect(demo_page.locator("#mission-cron")).to_have_value("0 7 * * 1-5")
    assert demo_page.url.endswith("/missions/new")
    served.run(device_moves(served.device))
    expect(demo_page.locator(".nav-inbox .count")).to_have_text("4")
    expect(demo_page.locator("#mission-cron")).to_have_value("0 7 * * 1-5")


async def device_moves(device: FakeDevice) -> None:
    """Let something change, so that open pages are brought up to date."""
    await device.run_now(await one_of(device))


def test_a_sentence_is_said_without_scripts(browser: Browser, served: Served) -> None:
    """Without scripts the button shows the next times, and Enter in a field still creates."""
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(f"{served.url}/demo/{served.host.demo_link_token()}")
        page.goto(f"{served.url}/missions/new")
        page.locator("#mission-title").fill("Plain")
        page.locator("#mission-objective").fill("look")
        page.locator("#mission-place").select_option("device")
        page.locator("#mission-cadence").select_option("daily")
        page.locator("#show-times").click()
        expect(page.locator("#next-times time")).to_have_count(3)
        expect(page.locator("#mission-objective")).to_have_value("look")
        page.locator("#mission-title").press("Enter")
        expect(page).to_have_title("Plain · Mana")
    finally:
        context.close()
