"""Spaces in the terminal: which one is meant, what each command says, and what it asks first."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from mana.cli.commands.space import InvitedRole, Role, SpaceType
from mana.device.invitations import INVITED_ROLES
from mana.device.views import ConflictView, HeldView, OverwrittenField, RefusedChange
from mana.domain import spaces as domain
from tests.cli.fake_host import NOW_MS
from tests.cli.fake_spaces import FakeSpace
from tests.cli.terminal import Terminal, signed_up, with_proposals


def with_space(name: str = "Home") -> tuple[Terminal, FakeSpace]:
    """Return a terminal on a device whose account owns a shared space."""
    terminal = signed_up()
    made = terminal.json("space", "create", name, "--type", "family")["space"]
    return terminal, terminal.host.shared[made["spaceId"]]


def test_roles_and_types_are_those_of_the_domain() -> None:
    """The terminal offers each type and role that there is, and no other."""
    assert tuple(SpaceType) == domain.SHARED_TYPES
    assert tuple(Role) == domain.ROLES == get_args(domain.Role)
    assert tuple(InvitedRole) == INVITED_ROLES


def test_a_record_goes_into_the_space_that_is_named() -> None:
    """By option, by variable, or into the own space where nothing is named; and it is said."""
    terminal, home = with_space()
    assert "In “Home”." in terminal.ok("note", "add", "Bins", "--space", "home")
    terminal.environ["MANA_SPACE"] = home.space_id[:8]
    written = terminal.json("task", "add", "Water the plants")
    assert written["spaceId"] == home.space_id
    assert [one["values"]["title"] for one in terminal.json("note", "list")["notes"]] == ["Bins"]
    assert terminal.json("note", "list", "--space", "personal")["notes"] == []
    del terminal.environ["MANA_SPACE"]
    assert terminal.json("task", "list")["tasks"] == []
    assert "In “" not in terminal.ok("note", "add", "Mine")
    assert len(home.contents["tables"]["notes"]) == 1


def test_a_space_that_several_may_be_is_none_of_them() -> None:
    """Nothing is written where two spaces fit; both are listed with their ids."""
    terminal, home = with_space()
    other = terminal.json("space", "create", "Home", "--type", "club")["space"]
    printed = terminal.run("note", "add", "Bins", "--space", "home")
    assert (printed.status, printed.out) == (5, "")
    for ident in (home.space_id, other["spaceId"]):
        assert ident[:8] in printed.err
    problem = terminal.run("note", "add", "Bins", "--space", "home", "--json").problem
    assert set(problem["detail"]["ids"]) == {home.space_id, other["spaceId"]}
    assert terminal.run("note", "list", "--space", "garden").status == 3
    assert home.contents["tables"]["notes"] == {}
    assert terminal.json("note", "add", "Bins", "--space", home.space_id)["spaceId"] == (
        home.space_id
    )


def test_a_space_that_was_just_joined_is_found() -> None:
    """A command that pulls nothing first does so for a space that this device has not heard of."""
    terminal, home = with_space()
    bob = Terminal(host=terminal.host)
    bob.ok("account", "create", "bob")
    bob.environ["MANA_ACCOUNT"] = "bob"
    terminal.environ["MANA_ACCOUNT"] = "ada"
    link = terminal.json("space", "invite", "Home")["invitation"]["link"]
    # The fake's inviter lets in at a sync of its own; here the space comes with bob's.
    asked = bob.json("space", "join", link)["invitation"]
    ident = asked["invitationId"]
    fake = bob.host.devices["bob"]

    def arrive() -> None:
        home.take(*home.accepted[ident], "member")

    fake._let_in = arrive  # type: ignore[method-assign]
    assert bob.json("note", "add", "Mine", "--space", "home")["spaceId"] == home.space_id


def test_commands_that_are_shown_name_the_space() -> None:
    """What is shown to be typed next works in the same space, and holds no name as it is."""
    terminal, home = with_space("Home; rm -rf ~")
    at = f"--space {home.space_id[:8]}"
    inside = ("--space", home.space_id)
    terminal.ok("note", "add", "Diary", "--content", "Call the dentist.", *inside)
    terminal.ok("agent", "create", "Mira", *inside)
    mission = ("mission", "create", "Review", "--agent", "Mira", "--objective", "o")
    assert at in terminal.ok(*mission, "--input", "notes:Diary", *inside)
    assert at in terminal.ok("grant", "give", "Review", "--yes", *inside)
    assert at in terminal.ok("mission", "run", "Review", *inside)
    assert at in terminal.ok("inbox", *inside)
    step = terminal.json("inbox", "list", *inside)["proposals"][0]["stepId"]
    said = terminal.ok("approve", step, *inside)
    assert f"mana revert step:{step} {at}" in said
    assert f"{at}" in terminal.ok("revert", step, *inside)
    restore = terminal.ok("note", "delete", "Diary", *inside)
    assert at in restore
    hints = terminal.ok("space", "create", "$(touch x)", "--type", "team").splitlines()[1:]
    assert [line for line in hints if "$" in line or ";" in line] == []


def test_what_waits_elsewhere_is_said() -> None:
    """The inbox of one space says that proposals wait in another, and how to see them."""
    terminal = with_proposals()
    made = terminal.json("space", "create", "Home", "--type", "family")["space"]
    assert "2 proposals in “Personal”: mana inbox --space personal" in terminal.ok(
        "inbox", "--space", "Home"
    )
    space = terminal.host.shared[made["spaceId"]]
    space.contents["proposals"].update(terminal.device.proposals)
    assert f"2 proposals in “Home”: mana inbox --space {made['spaceId'][:8]}" in terminal.ok(
        "inbox"
    )
    assert "4 proposals, 2 in “Home”" in terminal.ok("status")


def test_options_before_a_command_of_the_inbox_count() -> None:
    """`mana inbox --space X list` is about X; what was named is never dropped."""
    terminal, home = with_space()
    listed = terminal.json("inbox", "--space", "home", "list")
    assert listed["spaceId"] == home.space_id


def test_a_private_record_is_told_apart() -> None:
    """Who sees a record is shown and can be changed; in the own space there is nothing to say."""
    terminal, _ = with_space()
    inside = ("--space", "Home")
    made = terminal.json("note", "add", "Present", "--private", *inside)["note"]
    assert made["visibility"] == "private"
    terminal.ok("note", "add", "Bins", *inside)
    assert "you alone" in terminal.ok("note", "show", "Present", *inside)
    assert "everybody in “Home”" in terminal.ok("note", "show", "Bins", *inside)
    head, *rows = terminal.ok("note", "list", *inside).splitlines()
    assert "SEEN BY" in head
    assert [" you alone " in row for row in rows] == ["Present" in row for row in rows]
    assert "Everybody in “Home” sees" in terminal.ok(
        "note", "visibility", "Present", "space", *inside
    )
    assert "SEEN BY" not in terminal.ok("note", "list", *inside)
    task = terminal.json("task", "add", "Buy it", "--private", *inside)["task"]
    assert task["visibility"] == "private"
    shared = terminal.json("task", "visibility", task["id"], "space", *inside)["task"]
    assert shared["visibility"] == "space"
    assert terminal.run("note", "add", "Mine", "--private").status == 5
    terminal.ok("note", "add", "Mine")
    assert "Seen by" not in terminal.ok("note", "show", "Mine")
    assert terminal.run("note", "visibility", "Mine", "nobody").status == 2
    terminal.device.online = False
    assert terminal.run("note", "visibility", "Bins", "private", *inside).status == 6


def test_inviting_joining_and_letting_in() -> None:
    """A link is made, used once by somebody else, and its maker's device lets them in."""
    terminal, home = with_space()
    bob = Terminal(host=terminal.host)
    bob.ok("account", "create", "bob")
    terminal.environ["MANA_ACCOUNT"], bob.environ["MANA_ACCOUNT"] = "ada", "bob"
    said = terminal.ok("space", "invite", "home", "--role", "viewer", "--for", "Bob")
    (made,) = terminal.json("space", "invitations", "home")["invitations"]
    assert made["link"] in said
    assert made["link"] not in terminal.ok("space", "invitations", "home")
    assert made["link"] in terminal.ok("space", "invitations", "home", "--links")
    joined = bob.run("space", "join", stdin=made["link"] + "\n")
    assert (joined.status, joined.err) == (0, "")
    assert "lets you in" in joined.out
    assert made["link"] not in joined.out
    (waiting,) = bob.json("space", "joining")["joining"]
    assert waiting["spaceId"] == home.space_id
    assert "2a3f 77c0 9e42" in terminal.ok("space", "members", "home")
    assert bob.json("space", "joining")["joining"] == []
    assert "viewer" in bob.ok("space", "list")
    assert bob.run("space", "join", made["link"]).status == 2
    assert bob.run("space", "join", stdin="\n").status == 2


def test_a_link_is_typed_unseen() -> None:
    """At a terminal the link is asked for and not shown, and is in no history."""
    terminal, home = with_space()
    made = home.invite("member", expires_ms=NOW_MS + 1, label="")
    terminal.hidden = lambda question: made.link
    assert "Asked to join as member" in terminal.ok("space", "join")


def test_an_invitation_is_withdrawn() -> None:
    """A withdrawn link opens nothing, and the list says so."""
    terminal, _ = with_space()
    made = terminal.json("space", "invite", "home")["invitation"]
    assert "opens nothing" in terminal.ok("space", "withdraw", "home", made["invitationId"][:8])
    assert "withdrawn" in terminal.ok("space", "invitations", "home")
    assert terminal.run("space", "join", made["link"]).status == 2
    assert terminal.run("space", "withdraw", "home", "ffff").status == 3


def test_an_acceptance_without_the_link_is_named() -> None:
    """Whoever accepted without the secret is told as that, with their fingerprint."""
    terminal, home = with_space()
    made = home.invite("member", expires_ms=NOW_MS + 86_400_000, label="Bo")
    home.invitations[made.invitation_id] = replace(made, state="refused", fingerprint="9f9f")
    said = terminal.ok("space", "invitations", "home")
    assert "accepted without the link; withdraw it" in said
    assert "9f9f" in said


@pytest.mark.parametrize(
    ("command", "question"),
    [
        (("remove", "home", "Bo"), "They read nothing that is written from then on"),
        (("transfer", "home", "Bo"), "only they can give it back"),
        (("role", "home", "Bo", "admin"), "who then invites and removes others"),
        (("leave", "home"), "to come back you need another invitation"),
        (("close", "home"), "Close “Home” for 2 members, for ever?"),
    ],
)
def test_what_is_hard_to_undo_is_asked(command: tuple[str, ...], question: str) -> None:
    """It says what it means before it does it, and without a yes nothing happens."""
    terminal, home = with_space()
    home.take("bo", "Bo", "member")
    before = (dict(home.members), home.closed)
    unasked = terminal.run("space", *command, "--json")
    assert (unasked.status, unasked.problem["code"]) == (2, "CONFIRMATION_NEEDED")
    terminal.says = False
    assert terminal.run("space", *command).status == 1
    assert question in terminal.asked[-1]
    if "Bo" in command:
        assert "2a3f 77c0 9e42" in terminal.asked[-1]
    assert (dict(home.members), home.closed) == before
    terminal.ok("space", *command, "--yes")
    assert (dict(home.members), home.closed) != before


def test_two_members_of_one_name_are_told_apart() -> None:
    """Somebody who calls themselves like another is put out, or raised, only by their id."""
    terminal, home = with_space()
    home.take("aaaa-1", "Bo", "member")
    home.take("bbbb-2", "Bo", "member")
    assert terminal.run("space", "remove", "home", "Bo", "--yes").status == 5
    home.take("cccc-3", "ada (you)", "member")
    listed = terminal.ok("space", "members", "home").splitlines()
    assert [line for line in listed if "owner (you)" in line] != []
    assert "(you)" not in next(line for line in listed if line.startswith("cccc-3")).split("ada")[0]
    terminal.ok("space", "remove", "home", "bbbb", "--yes")
    assert "aaaa-1" in home.members
    assert "bbbb-2" not in home.members


def test_a_space_that_was_left_can_be_read_and_forgotten() -> None:
    """What is here stays readable until it is forgotten; a space one is in is not forgotten."""
    terminal, home = with_space()
    home.take("bo", "Bo", "owner")
    terminal.ok("note", "add", "Bins", "--space", "home")
    assert "SPACE_STILL_HELD" in terminal.run("space", "forget", "home", "--yes").err
    terminal.ok("space", "leave", "home", "--yes")
    assert "left" in terminal.ok("space", "list")
    assert "Bins" in terminal.ok("note", "list", "--space", "home")
    assert terminal.run("space", "forget", "home").status == 2
    terminal.ok("space", "forget", "home", "--yes")
    assert terminal.run("note", "list", "--space", "home").status == 3


@pytest.mark.parametrize(
    "command",
    [
        ("create", "Club", "--type", "club"),
        ("invite", "home"),
        ("invitations", "home"),
        ("join", "http://x/join#1"),
        ("joining",),
        ("role", "home", "Bo", "viewer"),
        ("remove", "home", "Bo", "--yes"),
        ("transfer", "home", "Bo", "--yes"),
        ("leave", "home", "--yes"),
        ("close", "home", "--yes"),
    ],
)
def test_what_needs_the_hub_says_so(command: tuple[str, ...]) -> None:
    """Without the hub it is refused in one line and nothing is kept for later."""
    terminal, home = with_space()
    home.take("bo", "Bo", "member")
    terminal.device.online = False
    printed = terminal.run("space", *command)
    assert (printed.status, printed.out) == (6, "")
    assert "OFFLINE" in printed.err
    assert "Kept here" in terminal.ok("space", "rename", "home", "Nest")
    assert home.name == "Nest"


def test_troubles_are_told_by_space() -> None:
    """A space that is not synced is named, and what was refused says where it belongs."""
    terminal, home = with_space()
    assert "Home (owner)" in terminal.ok("status")
    terminal.device.troubles = {home.space_id: "HUB_DISTRUSTED"}
    terminal.device.refused_changes["aaaa-1"] = RefusedChange(
        "aaaa-1", "notes", "r1", "Bins", "role", "Viewers write nothing.", NOW_MS, home.space_id
    )
    assert "“Home” is not synced: HUB_DISTRUSTED" in terminal.ok("status")
    assert "HUB_DISTRUSTED" in terminal.ok("space", "show", "home")
    head, row = terminal.ok("refused", "list").splitlines()
    assert "SPACE" in head
    assert "Home" in row
    terminal.device.troubles = {home.space_id: "OFFLINE"}
    assert "is not synced" not in terminal.ok("status")


def test_a_space_of_a_hub_that_was_set_back_is_read_anew() -> None:
    """The way out is named with the trouble; afterwards, what is held here only is listed."""
    terminal, home = with_space()
    terminal.device.troubles = {home.space_id: "HUB_BEHIND"}
    shown = terminal.ok("space", "show", "home")
    assert "mana space reread" in shown
    terminal.device.in_space(home.space_id).held = terminal.device.held = {
        home.space_id: [HeldView("notes", "r1", "Bins")]
    }
    assert "Read “Home” anew." in terminal.ok("space", "reread", "home")
    assert "reread" not in terminal.ok("space", "show", "home")
    assert "Bins" in terminal.ok("space", "show", "home")
    assert terminal.json("space", "show", "home")["heldOnly"][0]["title"] == "Bins"


def test_what_was_replaced_is_shown_and_taken_back() -> None:
    """Both values are shown, harmless; restoring writes the own one, dismissing leaves it."""
    terminal, home = with_space()
    inside = ("--space", "home")
    made = terminal.json("note", "add", "Bins", "--content", "Wednesdays", *inside)["note"]
    field = OverwrittenField("content", "Text", "Tuesdays\x1b[2J", "Wednesdays")
    for ident in ("1", "2"):
        terminal.device.overwritten[ident] = ConflictView(
            ident, home.space_id, "notes", made["id"], "Bins", "Bo", NOW_MS - 1, (field,)
        )
    said = terminal.ok("conflict", "list")
    assert "1  “Bins” in “Home”, now, by Bo" in said or "1  “Bins” in “Home”, just now" in said
    assert "- Text: Tuesdays␛[2J" in said
    assert "+ Text: Wednesdays" in said
    assert terminal.json("conflict", "list")["conflicts"][0]["fields"][0]["was"].startswith("Tues")
    terminal.ok("conflict", "dismiss", "2")
    shown = terminal.json("note", "show", "Bins", *inside)["note"]
    assert shown["values"]["content"] == "Wednesdays"
    terminal.ok("conflict", "restore", "1")
    shown = terminal.json("note", "show", "Bins", *inside)["note"]
    assert shown["values"]["content"].startswith("Tuesdays")
    assert "Nothing of yours was replaced." in terminal.ok("conflict", "list")
    assert terminal.run("conflict", "restore", "1").status == 3


def test_a_grant_of_another_member_is_told_apart() -> None:
    """In a shared space the list says which grants somebody else gave."""
    terminal, home = with_space()
    inside = ("--space", "home")
    terminal.ok("note", "add", "Bins", *inside)
    terminal.ok("agent", "create", "Mira", *inside)
    mission = ("mission", "create", "Review", "--agent", "Mira", "--objective", "o")
    terminal.ok(*mission, "--input", "notes:Bins", *inside)
    terminal.ok("grant", "give", "Review", "--yes", *inside)
    assert "another's" not in terminal.ok("grant", "list", *inside)
    grants = home.contents["grant_views"]
    grants.update({ident: replace(one, own=False) for ident, one in grants.items()})
    assert "active, another's" in terminal.ok("grant", "list", *inside)


def test_readings_are_found_by_a_mission_of_any_space() -> None:
    """Readings are those of the whole account, so a mission is looked for in each space."""
    terminal, _ = with_space()
    inside = ("--space", "home")
    terminal.ok("agent", "create", "Mira", *inside)
    terminal.ok("mission", "create", "Review", "--agent", "Mira", "--objective", "o", *inside)
    terminal.ok("audit", "--mission", "Review")
    assert terminal.run("audit", "--mission", "Other").status == 3
