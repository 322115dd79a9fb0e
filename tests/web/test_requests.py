"""What a request must pass, and what every answer carries."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from mana.device.settings import DeviceSettings
from mana.web.app import PageApp, build, serve
from mana.web.problems import PortTaken
from mana.web.sessions import SESSIONS_MAX, Sessions
from tests.web.fake_device import FakeDevice, FakeHost

BASE = "http://127.0.0.1:5173"
NASTY = "<script>alert('x')</script>“&\"'<b>"


@asynccontextmanager
async def visitor(app: PageApp, base: str = BASE) -> AsyncIterator[httpx.AsyncClient]:
    """Give a browser without scripts."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=base) as client:
        yield client


def app_of(host: FakeHost, *, name: str = "127.0.0.1") -> PageApp:
    """Wire the page of a fake host."""
    return build(host, DeviceSettings(home=Path(), host=name))  # type: ignore[arg-type]


async def in_demo(client: httpx.AsyncClient, host: FakeHost) -> FakeDevice:
    """Sign in to the demo by its link."""
    answer = await client.get(f"/demo/{host.demo_link_token()}")
    assert answer.status_code == 303
    (known,) = host.accounts()
    return host.device(known.account_id)


async def token(client: httpx.AsyncClient, path: str = "/") -> str:
    """Return the token that a page's forms carry."""
    found = re.search(r'name="csrf" value="([^"]+)"', (await client.get(path)).text)
    assert found is not None
    return found[1]


async def post(client: httpx.AsyncClient, path: str, **values: str) -> httpx.Response:
    """Post a form as a page of ours would."""
    return await client.post(path, data={"csrf": await token(client), **values})


def post_paths(app: PageApp) -> list[str]:
    """Return every path that takes a post, with its places filled."""
    return [
        re.sub(r"\{[^}]*\}", "x", route.path)
        for route in app.routes
        if "POST" in getattr(route, "methods", ())
    ]


@pytest.mark.anyio
async def test_every_answer_is_closed_to_others() -> None:
    """No page may be framed, kept, or load anything from elsewhere."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        await in_demo(client, host)
        for path in ("/", "/inbox", "/settings", "/nowhere", "/notes/none", "/static/page.js"):
            answer = await client.get(path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            if "html" in answer.headers["content-type"]:
                assert answer.headers["cache-control"] == "no-store"


@pytest.mark.anyio
async def test_pages_hold_no_inline_script_or_style() -> None:
    """What the policy forbids is not in the pages either, nor any address of elsewhere."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        mission = (await device.missions())[0].mission_id
        paths = ["/", "/notes", "/tasks", "/inbox", "/agents", "/missions", "/missions/new"]
        paths += ["/timeline", "/data-access", "/settings", "/welcome", "/agents/new", "/menu"]
        paths += ["/usage", "/settings/models/new"]
        paths += [f"/missions/{mission}", f"/missions/{mission}/grant", "/palette?q="]
        for path in paths:
            answer = await client.get(path)
            assert answer.status_code == 200, path
            assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", answer.text), path
            assert not re.search(r'(?:src|href|action)="(?:https?:)?//', answer.text), path
            assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", answer.text))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:5173", "127.0.0.1.evil.example", "localhost.evil", ""]
)
async def test_a_foreign_name_reaches_nothing(name: str) -> None:
    """A site that points its name at this machine gets neither pages nor files."""
    async with visitor(app_of(FakeHost())) as client:
        for path in ("/", "/static/page.js", "/live"):
            answer = await client.get(path, headers={"host": name})
            assert answer.status_code in (400, 403)
            assert "csrf" not in answer.text


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["127.0.0.1:9", "localhost:5173", "[::1]:5173", "home.example"])
async def test_our_own_names_are_let_in(name: str) -> None:
    """Loopback names and the configured host reach the page."""
    async with visitor(app_of(FakeHost(), name="home.example")) as client:
        assert (await client.get("/", headers={"host": name})).status_code == 200


@pytest.mark.anyio
async def test_no_post_works_without_its_token() -> None:
    """Every path that changes something refuses a form that no page of ours made."""
    host = FakeHost()
    app = app_of(host)
    paths = post_paths(app)
    assert len(paths) > 30
    async with visitor(app) as client:
        device = await in_demo(client, host)
        before = len(await device.list("notes"))
        for path in paths:
            for data in ({}, {"csrf": "x" * 43}):
                answer = await client.post(path, data={**data, "title": "t", "content": "c"})
                assert answer.status_code == 403, path
        assert len(await device.list("notes")) == before


@pytest.mark.anyio
@pytest.mark.parametrize(
    "header", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}]
)
async def test_a_post_from_another_site_is_refused(header: dict[str, str]) -> None:
    """Even with a token, a post must come from our own page."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        await in_demo(client, host)
        data = {"csrf": await token(client), "title": "planted"}
        assert (await client.post("/tasks", data=data, headers=header)).status_code == 403


@pytest.mark.anyio
async def test_the_cookie_stays_with_this_site() -> None:
    """Scripts and other sites never see the session, and signing in draws a new one."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        first = (await client.get("/")).headers["set-cookie"]
        assert "HttpOnly" in first
        assert "SameSite=Strict" in first
        await in_demo(client, host)
        assert client.cookies["mana_5173"] not in first


@pytest.mark.anyio
async def test_the_demo_link_works_once() -> None:
    """Whoever finds the used link in a log gets nothing."""
    host = FakeHost()
    link = f"/demo/{host.demo_link_token()}"
    async with visitor(app_of(host)) as client:
        assert (await client.get(link)).status_code == 303
    async with visitor(app_of(host)) as other:
        answer = await other.get(link)
        assert answer.status_code == 403
        assert "DEMO_LINK_USED" in answer.text
        assert (await other.get("/notes")).headers["location"] == "/"


@pytest.mark.anyio
async def test_text_of_people_is_never_markup() -> None:
    """A title, a text or a model's sentence shows as typed, on every page that shows it."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        note = await device.create("notes", {"title": NASTY, "content": NASTY})
        task = await device.create("tasks", {"title": NASTY, "isCompleted": False})
        agent = await device.create_agent(NASTY, role=NASTY, memory=NASTY, avatar="<b>")
        refs = [ref for ref, _ in await device.inputs()]
        mission = await device.create_mission(NASTY, NASTY, agent_id=agent, inputs=refs)
        await device.grant(mission)
        await device.run_now(mission)
        await device.set_display_name(NASTY)
        device.refuse()
        step = (await device.inbox())[0].step_id
        await post(client, f"/tasks/{task}/check")
        paths = ["/", "/notes", f"/notes/{note}", "/tasks", f"/tasks/{task}", "/agents"]
        paths += [f"/agents/{agent}", "/missions", f"/missions/{mission}", "/inbox"]
        paths += [f"/missions/{mission}/grant", f"/missions/{mission}/edit", f"/inbox/{step}"]
        paths += ["/timeline", "/data-access", "/settings", "/palette?q=script", "/welcome"]
        paths += [f"/peek/notes/{note}", f"/notes?q={NASTY}"]
        for path in paths:
            answer = await client.get(path)
            assert answer.status_code == 200, path
            assert "<script>alert" not in answer.text, path
            assert "<b>" not in answer.text, path


@pytest.mark.anyio
async def test_forms_work_without_scripts() -> None:
    """Each action is a post that leads to a page, so nothing needs a script."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        made = await post(client, "/notes", title="Plain", content="words")
        assert made.status_code == 303
        path = made.headers["location"]
        assert "words" in (await client.get(path)).text
        assert (await post(client, f"{path}/pin")).status_code == 303
        assert (await post(client, f"{path}/delete")).status_code == 303
        assert "Undo" in (await client.get("/notes")).text
        assert (await post(client, f"{path}/restore")).status_code == 303
        assert (await device.get("notes", path.rsplit("/")[-1])).deleted is False
        step = (await device.inbox())[0].step_id
        assert (await post(client, f"/inbox/{step}/approve")).status_code == 303
        assert (await device.proposal(step)).state == "approved"


@pytest.mark.anyio
async def test_going_back_leads_nowhere_else() -> None:
    """A form cannot send the person to another site."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        await in_demo(client, host)
        for where in ("https://evil.example/", "//evil.example", "/\\evil.example", "evil"):
            answer = await post(client, "/tasks", title="x", back=where)
            assert answer.headers["location"] == "/tasks"


@pytest.mark.anyio
async def test_a_problem_says_what_happened_beside_the_form() -> None:
    """A refused form keeps what was typed: only the problem is put on the page, with its code."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        await in_demo(client, host)
        data = {"csrf": await token(client), "title": " ", "content": ""}
        answer = await client.post("/notes", data=data, headers={"hx-request": "true"})
        assert answer.status_code == 400
        assert answer.headers["hx-retarget"] == "#alert"
        assert "BAD_REQUEST" in answer.text


@pytest.mark.anyio
async def test_an_unknown_error_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an unexpected error says may be a person's text, so the page does not repeat it."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)

        async def broken(table: str) -> None:
            raise RuntimeError("the diary says so")

        monkeypatch.setattr(device, "list", broken)
        answer = await client.get("/notes")
        assert answer.status_code == 500
        assert "diary" not in answer.text
        assert "INTERNAL" in answer.text


@pytest.mark.anyio
async def test_a_locked_account_shows_shapes() -> None:
    """Once locked, no page and no stream gives a text, until the password opens it again."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        await post(client, "/lock")
        for path in ("/", "/notes", "/inbox", "/timeline"):
            answer = await client.get(path)
            assert answer.status_code == 423
            assert "Garden" not in answer.text
        assert (await client.get("/live")).status_code == 204
        assert (await post(client, "/demo")).status_code == 303
        assert device.locked is False
        assert "Garden" in (await client.get("/notes")).text


@pytest.mark.anyio
async def test_a_lock_ends_every_browser() -> None:
    """Once an account was locked, its password at one browser opens it at no other."""
    host = FakeHost()
    await host.sign_up("ada", "four quiet herons", display_name="Ada")
    app = app_of(host)
    async with visitor(app) as one, visitor(app) as other:
        for client in (one, other):
            await post(client, "/sign-in", login="ada", password="four quiet herons")
            assert (await client.get("/notes")).status_code == 200
        await host.lock("a1")
        await post(one, "/sign-in", login="ada", password="four quiet herons")
        assert (await one.get("/notes")).status_code == 200
        assert (await other.get("/notes")).status_code == 423
        assert (await post(other, "/tasks", title="x")).status_code == 401
        await post(other, "/sign-in", login="ada", password="four quiet herons")
        assert (await other.get("/notes")).status_code == 200


@pytest.mark.anyio
async def test_a_page_that_asks_by_itself_is_no_person() -> None:
    """What an open page fetches because something changed keeps no account from locking."""
    host = FakeHost()
    await host.sign_up("ada", "four quiet herons", display_name="Ada")
    async with visitor(app_of(host)) as client:
        await post(client, "/sign-in", login="ada", password="four quiet herons")
        await client.get("/notes")
        assert host.people == ["a1"]
        await client.get("/notes", headers={"HX-Request": "true", "Mana-Refresh": "1"})
        await client.get("/static/page.js")
        assert host.people == ["a1"]
        await client.get("/tasks", headers={"HX-Request": "true"})
        assert host.people == ["a1", "a1"]


@pytest.mark.anyio
async def test_removing_the_demo_removes_it() -> None:
    """One button takes the demo away, with whoever sat in it."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        await in_demo(client, host)
        assert "Remove the demo" in (await client.get("/settings")).text
        await post(client, "/demo/remove")
        assert host.accounts() == []
        assert "Try the demo" in (await client.get("/")).text


@pytest.mark.anyio
async def test_a_wrong_password_opens_nothing() -> None:
    """Signing in with a wrong password stays at the first page and says so."""
    host = FakeHost()
    await host.sign_up("ada", "four quiet herons", display_name="Ada")
    async with visitor(app_of(host)) as client:
        answer = await post(client, "/sign-in", login="ada", password="wrong")
        assert answer.status_code == 401
        assert "WRONG_PASSWORD" in answer.text
        assert (await client.get("/notes")).headers["location"] == "/"


@pytest.mark.anyio
async def test_serving_ends_while_a_stream_is_open(tmp_path: Path) -> None:
    """A live stream that is open does not hold the process when it is asked to stop."""
    host, end = FakeHost(), asyncio.Event()
    answers: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve(
            host,  # type: ignore[arg-type]
            DeviceSettings(home=tmp_path),
            0,
            answers.set_result,
            until=end.wait(),
        )
    )
    url = await asyncio.wait_for(answers, 10)
    async with httpx.AsyncClient(base_url=url) as client:
        device = await in_demo(client, host)
        async with client.stream("GET", "/live") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: hello"
            device.tell("records", "notes")
            while True:
                line = await anext(lines)
                if line.startswith("data: ") and "notes" in line:
                    break
            assert "Garden" not in line
            end.set()
            await asyncio.wait_for(serving, 5)


@pytest.mark.anyio
async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """A port that another program holds gives an error that names the variable."""
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with taken:
        port = taken.sockets[0].getsockname()[1]
        with pytest.raises(PortTaken, match="MANA_DEVICE_PORT"):
            await serve(FakeHost(), DeviceSettings(home=tmp_path), port)  # type: ignore[arg-type]


def test_sessions_do_not_grow_without_end() -> None:
    """However many browsers come, the memory for them is bounded."""
    sessions = Sessions()
    first = sessions.open()
    for _ in range(SESSIONS_MAX):
        sessions.open()
    assert sessions.find(first.id) is None


@pytest.mark.anyio
async def test_a_wrong_password_keeps_the_way_back() -> None:
    """Whoever mistypes at the lock stays at the lock, and comes out where they were."""
    host = FakeHost()
    device = await host.sign_up("ada", "four quiet herons", display_name="Ada")
    async with visitor(app_of(host)) as client:
        await post(client, "/sign-in", login="ada", password="four quiet herons")
        await host.lock(device.account_id)
        typed = {"csrf": await token(client, "/notes"), "login": "ada", "back": "/notes"}
        answer = await client.post("/sign-in", data={**typed, "password": "wrong"})
        assert answer.status_code == 401
        assert "WRONG_PASSWORD" in answer.text
        assert 'name="back" value="/notes"' in answer.text
        assert answer.headers["hx-push-url"] == "false"
        answer = await client.post("/sign-in", data={**typed, "password": "four quiet herons"})
        assert answer.headers["location"] == "/notes"


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/sign-in", "/sign-up", "/demo"])
async def test_what_a_form_answered_can_be_loaded_again(path: str) -> None:
    """Loading anew after a refused form leads to the first page, not to an error."""
    async with visitor(app_of(FakeHost())) as client:
        assert (await client.get(path)).headers["location"] == "/"


@pytest.mark.anyio
async def test_the_palette_puts_first_what_begins_as_typed() -> None:
    """A few letters and Enter do what they spell."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        await in_demo(client, host)
        answer = (await client.get("/palette", params={"q": "go to s"})).text
        assert answer.index("Go to Settings") < answer.index("Go to Notes")


@pytest.mark.anyio
async def test_accounts_of_one_name_are_told_apart() -> None:
    """Two people of the same name each see which password is asked for."""
    host = FakeHost()
    await host.sign_up("ada", "four quiet herons", display_name="Ada")
    await host.sign_up("ada-two", "four quiet herons", display_name="Ada")
    async with visitor(app_of(host)) as client:
        text = (await client.get("/")).text
        assert "Login name: ada-two<" in text


@pytest.mark.anyio
async def test_another_site_signs_nobody_out() -> None:
    """A link or a form of another site begins no session in the place of the one that is open."""
    elsewhere = {"sec-fetch-site": "cross-site"}
    async with visitor(app_of(FakeHost())) as client:
        answer = await client.get("/notes", headers=elsewhere)
        assert 'http-equiv="refresh"' in answer.text
        assert "set-cookie" not in answer.headers
        answer = await client.post("/lock", data={"csrf": "guessed"}, headers=elsewhere)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
