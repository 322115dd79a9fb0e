"""Spaces on the page: where one is, what a role is offered, who sees what, what is said."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import httpx
import pytest

from mana.device.errors import Offline
from mana.device.views import HeldView, InvitationView, RefusedChange
from mana.domain.spaces import MembershipRefused
from mana.web.places import part, space_of, within
from mana.web.problems import problem_of
from tests.web.fake_device import FakeDevice, FakeHost, seed
from tests.web.fake_spaces import LINK, seed_family
from tests.web.test_requests import NASTY, app_of, in_demo, post, visitor

PAGES = ("/notes", "/notes/new", "/tasks", "/inbox", "/agents", "/agents/new", "/missions")
MORE = ("/missions/new", "/timeline", "/data-access", "/settings", "/menu", "/space", "/spaces")
REST = ("/spaces/new", "/join", "/conflicts")
OFFERED = re.compile(r'<form method="post" action="([^"]+)"')
FORMS = re.compile(r'href="(/s/[^"]*/(?:new|edit|grant|revert)\b)(?<!/spaces/new)')
ANYWHERE = re.compile(r"^(/lock|/leave|/sign-out|/demo/remove)$")
ACCOUNT = re.compile(
    r"^/(settings/[a-z/-]+|all-work/(stop|start)|sync|refused/.*|conflicts/.*|grants/.*|spaces|join)$"
)
SECRET = LINK.partition("#")[2]


def at(device: FakeDevice) -> str:
    return f"/s/{device.space_id}"


async def filled(device: FakeDevice) -> list[str]:
    """Put in a week of work, and return the paths of all pages of the space."""
    await seed(device)
    note = (await device.list("notes"))[0].id
    task = (await device.list("tasks"))[0].id
    mission = (await device.missions())[0].mission_id
    agent = (await device.agents())[0].agent_id
    step = (await device.inbox())[0].step_id
    one = [f"/notes/{note}", f"/tasks/{task}", f"/missions/{mission}", f"/agents/{agent}"]
    return ["", *PAGES, *MORE, *REST, *one, f"/inbox/{step}"]


async def offered(client: httpx.AsyncClient, device: FakeDevice, paths: list[str]) -> set[str]:
    """Return the posts and the forms that a space's pages offer, without its prefix."""
    found = set()
    for path in paths:
        answer = await client.get(at(device) + path)
        if answer.status_code == 403:
            continue
        assert answer.status_code == 200, path
        for action in OFFERED.findall(answer.text):
            if not ANYWHERE.match(action):
                assert space_of(action) == device.space_id, (path, action)
                found.add(within(action))
        found |= {within(link) for link in FORMS.findall(answer.text)}
    return found


def test_addresses_name_their_space() -> None:
    """An address without a space is the personal one's, as it was; a prefix is taken whole."""
    assert (space_of("/notes"), within("/notes"), part("/notes/1")) == ("", "/notes", "/notes")
    assert (space_of("/s/ab/notes/1"), within("/s/ab/notes/1")) == ("ab", "/notes/1")
    assert (space_of("/s/ab"), within("/s/ab"), part("/s/ab")) == ("ab", "/", "")
    assert part("/s/ab/palette") == ""
    assert space_of("/s/a%2Fb/notes") == ""
    assert space_of("/settings") == ""


@pytest.mark.anyio
async def test_two_tabs_in_two_spaces_do_not_meet() -> None:
    """What is written, listed, linked and answered in one space stays in it."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        made = await post(client, f"{at(family)}/notes", title="Only here", content="x")
        assert made.headers["location"].startswith(f"{at(family)}/notes/")
        task = await post(client, f"{at(family)}/tasks", title="Sweep", back=f"{at(family)}/tasks")
        assert task.headers["location"] == f"{at(family)}/tasks"
        assert "Only here" in (await client.get(f"{at(family)}/notes")).text
        assert "Only here" not in (await client.get("/notes")).text
        assert "Garden" not in (await client.get(f"{at(family)}/notes")).text
        for path in await filled(family):
            text = (await client.get(at(family) + path)).text
            text = re.sub(r'<details class="switcher".*?</details>', "", text, flags=re.DOTALL)
            links = re.findall(r'(?:href|hx-get)="(/[^"#]*)', text)
            outside = {one for one in links if space_of(one) != family.space_id}
            outside = {one for one in outside if not one.startswith(("/static/", "/s/"))}
            # The inbox of the personal space, where something waits; keys are of all spaces.
            assert outside <= {"/", "/welcome", "/inbox", "/security", "/security/knock"}, path


@pytest.mark.anyio
async def test_a_space_that_is_not_ours_is_not_there() -> None:
    """An id of nobody's or another's space is answered like any page that does not exist."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        # The space of settings is the account's, but no place for notes.
        user = device.beside["user"] = device._beside("user")
        for path in ("/s/nobody", "/s/nobody/notes", f"/s/{'9' * 64}/space", "/s/user/notes"):
            assert (await client.get(path)).status_code == 404
        for space in ("nobody", "user"):
            assert (await post(client, f"/s/{space}/notes", title="x")).status_code == 404
        assert await user.list("notes") == []


@pytest.mark.anyio
async def test_what_waits_is_counted_everywhere() -> None:
    """The inbox's number is that of all spaces, with a line for each where something waits."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        await seed(family)
        text = (await client.get("/tasks")).text
        assert 'aria-label="4 to decide">4<' in text
        inbox = (await client.get("/inbox")).text
        assert re.search(
            rf'href="{at(family)}/inbox"><bdi>The Lindens</bdi> [^/]*2 to decide', inbox
        )
        own = (await client.get(f"{at(family)}/inbox")).text
        assert re.search(r'href="/inbox"><bdi>Personal</bdi> [^/]*2 to decide', own)


@pytest.mark.anyio
@pytest.mark.parametrize("role", ["owner", "admin", "member", "viewer", "former"])
async def test_only_what_a_role_may_do_is_offered(role: str) -> None:
    """No page has a button that the device would refuse, and none lacks one that it would take."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        family.let_in("admin", "Ann", "admin")
        family.let_in("owner", "Olaf", "owner")
        family.overwrite("x", "a", "b")
        paths = await filled(family)
        family.become(left=True, role="") if role == "former" else family.become(role=role)
        found = await offered(client, family, paths)
        managing = {one for one in found if one.startswith("/space")} - {"/spaces"}
        writing = {one for one in found - managing if not ACCOUNT.match(one)}
        writing |= {one for one in found if one.endswith("/restore")}
        of_members = {
            re.sub(r"^/space/members/", "", one) for one in managing if "/members/" in one
        }
        assert bool(writing) is (role in ("owner", "admin", "member"))
        assert ("/space/invitations" in managing) is (role in ("owner", "admin"))
        assert ("/space" in managing) is (role in ("owner", "admin"))
        assert ("/space/leave" in managing) is (role != "former")
        assert ("/space/close" in managing) is (role == "owner")
        assert ("/space/forget" in managing) is (role == "former")
        ruled = {
            name for name in ("bo", "gran", "admin", "owner") if f"{name}/remove" in of_members
        }
        both = {"bo", "gran"}
        assert ruled == {"owner": both | {"admin", "owner"}, "admin": both}.get(role, set())
        assert {name.partition("/")[0] for name in of_members if name.endswith("/role")} == ruled
        assert ("bo/transfer" in of_members) is (role == "owner")
        text = (await client.get(f"{at(family)}/space")).text
        assert ('value="admin">' in text) is (role == "owner")
        note = (await client.get(f"{at(family)}/notes")).text
        assert ("You are a viewer here" in note) is (role == "viewer")
        assert ("You are no longer in this space" in note) is (role == "former")
        commands = (await client.get(f"{at(family)}/palette?q=write")).text
        assert ("Write a note" in commands) is (role not in ("viewer", "former"))


@pytest.mark.anyio
@pytest.mark.parametrize(("role", "code"), [("viewer", "READ_ONLY_HERE"), ("", "SPACE_LEFT")])
async def test_a_form_that_was_open_is_refused_in_words(role: str, code: str) -> None:
    """Whoever loses the right to write while a form is open is told so, and nothing is written."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        before = len(await family.list("notes"))
        family.become(role=role, left=not role)
        answer = await post(client, f"{at(family)}/notes", title="late", content="words")
        assert (answer.status_code, code in answer.text) == (403, True)
        for path in (
            "/notes/new",
            "/agents/new",
            "/missions/new",
            "/timeline/revert?target=step:x",
        ):
            assert code in (await client.get(at(family) + path)).text
        assert len(await family.list("notes")) == before


@pytest.mark.anyio
async def test_names_of_others_are_never_markup() -> None:
    """A space, member, label, agent's or conflict's name of somebody else shows as typed."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        space = device.found(NASTY, description=NASTY)
        space.let_in("x", f"{NASTY}\u202e", "member")
        note = await space.create("notes", {"title": NASTY, "content": NASTY})
        task = await space.create("tasks", {"title": NASTY}, visibility="private")
        space.give("notes", note, "x")
        space.invited("open", label=NASTY, link=LINK)
        space.overwrite(note, NASTY, NASTY, by=NASTY)
        space.refuse()
        device.troubles[space.space_id] = NASTY
        paths = ["", *PAGES, *MORE, *REST, f"/notes/{note}", f"/tasks/{task}", "/palette?q=switch"]
        for path in [*(at(space) + one for one in paths), *MORE, "/", "/palette?q=switch"]:
            answer = await client.get(path)
            assert answer.status_code == 200, path
            assert "<script>alert" not in answer.text, path
            assert "<b>" not in answer.text, path
            assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", answer.text), path
        for action in ("role", "remove"):
            await post(client, f"{at(space)}/space/members/x/{action}", role="viewer")
            assert "<script>alert" not in (await client.get("/spaces")).text
        space.let_in("y", "\u202eada", "member")
        members = (await client.get(f"{at(space)}/space")).text
        assert "<bdi>\u202eada</bdi>" in members


@pytest.mark.anyio
async def test_who_sees_a_record_is_chosen_and_shown() -> None:
    """Private at creation, marked in lists, turned by its author alone, with what cannot be undone."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        assert "Who sees it" not in (await client.get("/notes/new")).text
        assert "Who sees it" in (await client.get(f"{at(family)}/notes/new")).text
        made = await post(
            client, f"{at(family)}/notes", title="Mine", content="x", visibility="private"
        )
        path = made.headers["location"]
        note = path.rsplit("/")[-1]
        assert (await family.get("notes", note)).visibility == "private"
        row = re.search(r">Mine[^/]*", (await client.get(f"{at(family)}/notes")).text)
        assert row is not None
        assert "Only you see it" in row[0]
        await post(client, f"{path}/visibility", visibility="space")
        assert (await family.get("notes", note)).visibility == "space"
        await post(client, f"{path}/visibility", visibility="private")
        assert "What others have read cannot be unread." in (await client.get(path)).text
        bad = await post(client, f"{path}/visibility", visibility="everyone")
        assert bad.status_code == 400
        assert (await post(client, f"{path}/visibility")).status_code == 400
        family.give("notes", note, "bo")
        shown = (await client.get(path)).text
        assert "By <bdi>Bo</bdi>" in shown
        assert f"{path}/visibility" not in shown
        answer = await post(client, f"{path}/visibility", visibility="space")
        assert "NOT_YOUR_RECORD" in answer.text
        device.online = False
        task = (await family.list("tasks"))[0].id
        answer = await post(client, f"{at(family)}/tasks/{task}/visibility", visibility="private")
        assert "This needs the hub" in answer.text


@pytest.mark.anyio
async def test_a_space_is_founded_shared_and_ended_without_scripts() -> None:
    """Founding, inviting, roles, handing over, leaving, closing and forgetting are plain posts."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        answer = await post(client, "/spaces", name="  Garden  club ", type="club", description="d")
        place = answer.headers["location"]
        space = device.in_space(space_of(place))
        assert "Garden club is there" in (await client.get(place)).text
        assert (await post(client, "/spaces", name=" ", type="club")).status_code == 400
        await post(client, place, name="Garden", description="Beds")
        assert "Beds" in (await client.get(place)).text
        for days in ("0", "31", "x"):
            bad = await post(client, f"{place}/invitations", role="member", days=days)
            assert bad.status_code == 400
        made = await post(client, f"{place}/invitations", role="viewer", days="7", label="Rita")
        assert SECRET not in made.headers["location"]
        text = (await client.get(place)).text
        assert html.escape(LINK) in text
        assert "Whoever has this link can join once." in text
        (invitation,) = await space.invitations()
        await post(client, f"{place}/invitations/{invitation.invitation_id}/withdraw")
        assert LINK not in (await client.get(place)).text
        space.let_in("bo", "Bo", "viewer")
        await post(client, f"{place}/members/bo/role", role="member")
        assert (await space.members())[1].role == "member"
        shown = (await client.get(place)).text
        assert "You are its only owner." in shown
        assert f'action="{place}/leave"' not in shown
        stuck = await post(client, f"{place}/leave")
        assert "A space always has an owner: hand it over first, or close it." in stuck.text
        wrong = await post(client, f"{place}/close", name="Gardens")
        assert wrong.status_code == 400
        assert (await space.members()) != []
        await post(client, f"{place}/members/bo/transfer")
        assert 'action="' + f"{place}/close" not in (await client.get(place)).text
        assert (await post(client, f"{place}/members/nobody/remove")).status_code == 404
        await post(client, f"{place}/leave")
        former = (await client.get(place)).text
        assert "You left it, or somebody removed you." in former
        assert "Remove from this device" in former
        gone = await post(client, f"{place}/forget")
        assert gone.headers["location"] == "/spaces"
        assert (await client.get(place)).status_code == 404
        mine = device.found("Short  lived")
        closing = await post(client, f"{at(mine)}/space/close", name=" Short lived ")
        assert closing.status_code == 303
        assert "This space is closed." in (await client.get(f"{at(mine)}/notes")).text


@pytest.mark.anyio
async def test_joining_tells_what_happens_and_keeps_the_secret() -> None:
    """The link goes in the body of a post to the own device, and comes back in nothing."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        assert 'method="post" action="/join"' in (await client.get("/join")).text
        answer = await post(client, "/join", link=LINK)
        assert (answer.status_code, answer.headers["location"]) == (303, "/spaces")
        text = (await client.get("/spaces")).text
        assert "Waits until a device of the person who invited you is online." in text
        assert SECRET not in text
        again = await post(client, "/join", link=LINK)
        assert "This invitation has been used" in again.text
        half = await post(client, "/join", link=LINK.partition("#")[0])
        assert "Copy the whole link" in half.text
        device.waiting_to_join[:] = [InvitationView("i", "c" * 64, "member", "refused", 0)]
        assert "does not match what your link says" in (await client.get("/spaces")).text


@pytest.mark.anyio
async def test_invitations_say_how_they_stand() -> None:
    """Accepted, refused and ended invitations are told apart, and a link shows only while open."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        family.invited("refused", label="Eve")
        family.invited("open", label="Olaf’s")
        family.invited("accepted", label="Late", link=LINK)
        text = (await client.get(f"{at(family)}/space")).text
        assert "without the secret of its link" in text
        assert "77AA 10C4 5E0B 9D21" in text
        assert "Another owner or admin made it" in text
        assert text.count(f'value="{LINK}"') == 1
        assert "Somebody else</bdi>, as member: withdrawn" in text


@pytest.mark.anyio
async def test_without_the_hub_the_page_says_what_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Offline, a space is shown with what is known here, and what has to wait is named."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        device.online = False
        before = family.asked
        text = (await client.get(f"{at(family)}/space")).text
        assert family.asked == before
        assert "Inviting, roles, removing, leaving and closing need it" in text
        assert "Open invitations are shown when the hub can be reached." in text
        assert "it is not known what you wait" in (await client.get("/spaces")).text
        answer = await post(client, f"{at(family)}/space/members/bo/remove")
        assert "This needs the hub" in answer.text
        assert len(await family.members()) == 3

        async def gone() -> list[InvitationView]:
            raise Offline("the hub has just gone")

        device.online = True
        monkeypatch.setattr(family, "invitations", gone)
        text = (await client.get(f"{at(family)}/space")).text
        assert "Open invitations are shown when the hub can be reached." in text


@pytest.mark.anyio
async def test_what_was_overwritten_is_offered_a_few_at_a_time() -> None:
    """A quiet line counts it; at most eight are shown; each is restored or left, once."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        note = (await family.list("notes"))[0].id
        assert "replaced what you wrote in 1 record." in (await client.get("/notes")).text
        for number in range(9):
            family.overwrite(note, f"mine {number}", f"theirs {number}")
        text = (await client.get("/conflicts")).text
        assert text.count('class="conflict"') == 8
        assert "And 2 more, after these." in text
        assert "mine 0" in text
        assert "theirs 0" in text
        await post(client, "/conflicts/2/restore")
        assert (await family.get("notes", note)).text("content") == "mine 0"
        await post(client, "/conflicts/3/dismiss")
        assert len(await device.conflicts()) == 8
        gone = await post(client, "/conflicts/3/restore")
        assert (gone.status_code, "CONFLICT_GONE" in gone.text) == (404, True)


@pytest.mark.anyio
async def test_what_is_refused_or_stuck_names_its_space() -> None:
    """A refused change and a trouble of sync say where; what cannot be sent again is not offered."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        left = RefusedChange("c-2", "notes", "x", "Late", "not-a-member", "w", 0, family.space_id)
        family.refuse()
        family._refused["c-2"] = left
        device.troubles[family.space_id] = "HUB_DISTRUSTED"
        text = (await client.get("/settings")).text
        assert text.count("In <bdi>The Lindens</bdi>") == 2
        assert "/refused/change-1/retry" in text
        assert "/refused/c-2/retry" not in text
        assert "/refused/c-2/drop" in text
        assert "<bdi>The Lindens</bdi>: What the hub says does not fit" in text
        assert "not synced: <bdi>The Lindens</bdi>" in (await client.get("/notes")).text


@pytest.mark.anyio
async def test_a_space_of_a_hub_that_was_set_back_is_read_anew() -> None:
    """The button is there where the hub was set back, and what is held here only is named."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = await seed_family(device)
        place = f"{at(family)}/space"
        assert "/space/reread" not in (await client.get(place)).text
        device.troubles[family.space_id] = "HUB_BEHIND"
        device.held[family.space_id] = [HeldView("notes", "r1", NASTY)]
        assert f'href="{place}"' in (await client.get("/settings")).text
        text = (await client.get(place)).text
        assert f'action="{place}/reread"' in text
        assert html.escape(NASTY) in text or NASTY not in text
        answer = await post(client, f"{place}/reread")
        assert answer.status_code == 303
        assert "/space/reread" not in (await client.get(place)).text
        device.troubles["f" * 64] = "HUB_BEHIND"
        assert 'action="/space/reread"' in (await client.get("/space")).text
        assert "/space/reread" not in (await client.get(place)).text


@pytest.mark.anyio
async def test_a_grant_is_ended_in_its_own_space() -> None:
    """Data access is that of the account: a grant links to, and ends in, the space of its mission."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        family = device.found("The Lindens")
        await seed(family)
        (grant,) = await family.grants()
        device._grants[grant.grant_id] = grant
        text = (await client.get("/data-access")).text
        assert f'href="{at(family)}/missions/{grant.mission_id}"' in text
        await post(client, f"/grants/{grant.grant_id}/revoke")
        assert (await family.grants())[0].state == "revoked"


@pytest.mark.parametrize("reason", ["role", "no-owner", "too-many", "not-a-member", "rotation"])
def test_rules_of_membership_are_said_in_words(reason: str) -> None:
    """A person reads what a rule means, not how the log is checked."""
    problem = problem_of(MembershipRefused("the log refuses", detail={"reason": reason}))
    assert "log" not in problem.happened
    assert problem.advice


@pytest.mark.anyio
async def test_the_link_to_a_space_is_not_taken_for_a_code_of_the_hub() -> None:
    """Who pastes it at sign-up is told where it goes; it would be dropped without a word."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        named = {"login": "bo", "password": "four quiet herons walking"}
        answer = await post(client, "/sign-up", **named, invite=LINK)
        assert answer.status_code == 400
        assert "join with it afterwards" in answer.text
        assert host.accounts() == []


@pytest.mark.anyio
async def test_before_the_first_try_nobody_says_that_the_hub_is_away() -> None:
    """Right after sign-up the link is not up yet, which is no trouble."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        device.first.online = False
        for path in ("/spaces", "/join", "/spaces/new"):
            assert "The hub cannot be reached" in (await client.get(path)).text
        device.first.online, device.first.tried = True, False
        for path in ("/spaces", "/join", "/spaces/new"):
            assert "The hub cannot be reached" not in (await client.get(path)).text


@pytest.mark.anyio
async def test_a_proposal_that_another_member_granted_is_no_alarm() -> None:
    """What only another member's device can verify cannot be approved here, and says no more."""
    host = FakeHost()
    async with visitor(app_of(host)) as client:
        device = await in_demo(client, host)
        first, *_ = await device.inbox()
        reason = "Another member granted it: they approve it."
        device._steps[first.step_id] = replace(first, verified=False, trouble=reason)
        text = (await client.get(f"/inbox/{first.step_id}")).text
        assert f"it cannot be approved here. {reason}" in text
        assert text.count(reason) == 1
        assert "note stop" not in text
        assert f'id="approve-{first.step_id}" disabled' in text
