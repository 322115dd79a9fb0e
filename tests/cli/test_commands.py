"""Every operation of the page is a command, and each says truthfully what it did."""

from __future__ import annotations

from pathlib import Path

import pytest

from mana.cli.commands.status import model_words
from mana.device.views import ModelView, RefusedChange
from tests.cli.fake_host import NOW_MS
from tests.cli.terminal import PASSWORD, Terminal, signed_up, with_proposals


def test_notes_from_first_word_to_restore() -> None:
    """A note is written, listed, shown, changed, deleted and restored by its title."""
    terminal = signed_up()
    assert "Added note “Diary”." in terminal.ok("note", "add", "Diary", "--content", "Monday")
    terminal.ok("note", "append", "diary", "-", stdin="Tuesday\n")
    shown = terminal.ok("note", "show", "Diary")
    assert "Monday\n\nTuesday" in shown
    made = terminal.json("note", "edit", "Diary", "--title", "Journal")["note"]
    assert made["values"] == {"content": "Monday\n\nTuesday", "title": "Journal"}
    assert "mana note restore " + made["id"] in terminal.ok("note", "delete", "Journal")
    assert terminal.json("note", "list")["notes"] == []
    assert terminal.json("note", "list", "--deleted")["notes"][0]["id"] == made["id"]
    terminal.ok("note", "restore", made["id"][:8])
    assert made["id"][:8] in terminal.ok("note", "list", "tues mon")
    assert "No note has these words." in terminal.ok("note", "list", "wednesday")


def test_a_note_comes_from_standard_input() -> None:
    """A dash for the text reads standard input, so that other programs can write notes."""
    terminal = signed_up()
    made = terminal.json("note", "add", "Log", "--content", "-", stdin="one\ntwo\n")
    assert made["note"]["values"]["content"] == "one\ntwo"


def test_tasks_from_first_word_to_restore() -> None:
    """A task is written, listed by urgency, completed, opened, changed, deleted, restored."""
    terminal = signed_up()
    terminal.ok("task", "add", "Later")
    terminal.ok("task", "add", "Call the dentist", "--due", "fri", "--priority", "high")
    lines = terminal.ok("task", "list").splitlines()
    assert lines[0].split() == ["ID", "STATE", "DUE", "PRIORITY", "TITLE"]
    assert lines[1].split()[1:] == ["open", "2026-11-27", "high", "Call", "the", "dentist"]
    terminal.ok("task", "done", "dentist")
    assert "dentist" not in terminal.ok("task", "list")
    assert "dentist" in terminal.ok("task", "list", "--show", "done")
    terminal.ok("task", "done", "dentist", "--undo")
    values = terminal.json("task", "edit", "dentist", "--no-due", "--title", "Ring")["task"][
        "values"
    ]
    assert (values["dueDate"], values["title"], values["isCompleted"]) == (None, "Ring", False)
    terminal.ok("task", "delete", "Ring")
    terminal.ok("task", "restore", "Ring")
    assert "open" in terminal.ok("task", "show", "Ring")


def test_agents_are_created_paused_and_archived() -> None:
    """An agent is named by its name, and its policy is told in words."""
    terminal = signed_up()
    assert "asks before it writes" in terminal.ok("agent", "create", "Mira", "--role", "reviewer")
    terminal.ok("agent", "edit", "mira", "--tokens-per-day", "2000", "--policy", "cautious")
    one = terminal.json("agent", "show", "Mira")["agent"]
    assert (one["tokensPerDayMax"], one["preset"]) == (2000, "cautious")
    assert one["policy"]["defaultsByEffect"]["destructive"] == "deny"
    for command, state in (("pause", "paused"), ("resume", "active"), ("archive", "archived")):
        assert terminal.json("agent", command, "Mira")["agent"]["state"] == state
    assert "archived" in terminal.ok("agent", "list")


def test_a_mission_is_read_back_as_a_sentence() -> None:
    """What was asked for is said back: who, what, on what, when and where."""
    terminal = signed_up()
    terminal.ok("note", "add", "Diary")
    terminal.ok("agent", "create", "Mira")
    said = terminal.ok(
        "mission", "create", "Weekly review", "--agent", "mira", "--objective", "Find what to do.",
        "--input", "notes:Diary", "--every", "weekly sunday 10:00", "--zone", "Europe/Berlin",
    )  # fmt: skip
    assert (
        "Mira shall find what to do, looking at 1 record, every Sunday at 10:00, on the hub."
        in said
    )
    one = terminal.json("mission", "edit", "weekly", "--on", "device", "--every", "30m")["mission"]
    assert one["cadence"] == {"kind": "interval", "everyMinutes": 30}
    assert one["nextAt"] == ["2026-11-22T07:03:00.000Z"]
    assert "paused" in terminal.json("mission", "pause", "weekly")["mission"]["state"]
    terminal.ok("mission", "resume", "weekly")
    assert "Weekly review" in terminal.ok("mission", "list")
    assert "Diary" in terminal.ok("mission", "show", "weekly")
    terminal.ok("mission", "delete", "weekly", "--yes")
    assert terminal.json("mission", "list")["missions"] == []


def test_inputs_can_be_given_as_they_are_listed() -> None:
    """What `mana inputs` prints is what `--input` takes, and the hub's names of tables too."""
    terminal = signed_up()
    terminal.ok("note", "add", "Diary")
    terminal.ok("task", "add", "Plants")
    terminal.ok("agent", "create", "Mira")
    shown = [line.split()[0] for line in terminal.ok("inputs").splitlines()[1:]]
    options = [word for named in (*shown, "tasks:Plants") for word in ("--input", named)]
    made = terminal.json("mission", "create", "M", "--agent", "Mira", "--objective", "o", *options)
    assert {ref["table"] for ref in made["mission"]["inputs"]} == {"notes", "tasks"}


def test_a_grant_is_shown_before_it_is_given() -> None:
    """Without a yes nothing is granted, and the consent was told."""
    terminal = signed_up()
    terminal.ok("note", "add", "Diary")
    terminal.ok("agent", "create", "Mira")
    terminal.ok(
        "mission",
        "create",
        "Review",
        "--agent",
        "Mira",
        "--objective",
        "o",
        "--input",
        "notes:Diary",
    )
    assert "1f3a 77c0 9e42" in terminal.ok("grant", "show-consent", "Review")
    printed = terminal.run("grant", "give", "Review")
    assert printed.status == 2
    assert "CONFIRMATION_NEEDED" in printed.err
    assert "This ends by itself after 7 days." in printed.err
    terminal.says = False
    assert terminal.run("grant", "give", "Review").status == 1
    assert terminal.json("grant", "list")["grants"] == []
    assert terminal.run("grant", "give", "Review", "--json").problem["code"] == (
        "CONFIRMATION_NEEDED"
    )
    terminal.says = True
    assert "Granted: “Review” reads 1 record" in terminal.run("grant", "give", "Review").out
    given = terminal.json("grant", "give", "Review", "--days", "3", "--yes")["grant"]
    assert given["expiresAt"] == "2026-11-24T07:03:00.000Z"
    assert "3 days left" in terminal.ok("grant", "list")
    assert terminal.run("grant", "revoke", "Review").status == 5
    for one in terminal.json("grant", "list")["grants"]:
        terminal.ok("grant", "revoke", one["grantId"])
    assert {one["state"] for one in terminal.json("grant", "list")["grants"]} == {"revoked"}
    assert terminal.run("grant", "revoke", "Review").status == 3


def test_a_proposal_is_shown_approved_reverted_and_redone() -> None:
    """From the inbox to the timeline and back, each step by the id that is shown."""
    terminal = with_proposals()
    first, second = terminal.json("inbox")["proposals"]
    listed = terminal.ok("inbox")
    short = next(line.split()[0] for line in listed.splitlines() if "dentist" in line)
    assert short == first["stepId"][:8] + "-0"
    shown = terminal.ok("inbox", "show", short)
    for words in ("Mira", "+ Title: Call the dentist", "It stands in a note", "Diary", "rules"):
        assert words in shown
    assert f"mana revert step:{first['stepId']}" in terminal.ok("approve", short)
    rejected = terminal.json("reject", second["stepId"], "--reason", "I have a gardener")
    assert rejected["proposal"]["feedback"] == "I have a gardener"
    assert "Nothing to decide." in terminal.ok("inbox")
    assert "approved" in terminal.ok("inbox", "list", "--decided")
    assert "dentist" in terminal.ok("task", "list")
    assert terminal.run("approve", short).status == 5

    assert "done" in terminal.ok("timeline")
    preview = terminal.json("revert", short, "--preview")
    assert preview["preview"] is True
    assert "sync" not in preview
    assert "dentist" in terminal.ok("task", "list")
    assert "Reverted 1 record." in terminal.ok("revert", first["iterationId"][:8])
    assert "reverted" in terminal.ok("timeline")
    assert "dentist" not in terminal.ok("task", "list")
    assert "Brought back 1 record." in terminal.ok("redo", "mission:Weekly review")
    assert "dentist" in terminal.ok("task", "list")
    assert terminal.run("redo", short).err.endswith(
        "[NOT_REVERTED] `mana timeline` shows what is reverted.\n"
    )


def test_what_has_moved_is_shown_and_not_done() -> None:
    """An approval of what is not as it was shown shows the new preview, and does nothing."""
    terminal = with_proposals()
    step = terminal.json("inbox")["proposals"][0]["stepId"]
    terminal.device.moved.add(step)
    printed = terminal.run("approve", step)
    assert (printed.status, printed.out) == (5, "")
    assert "+ Title: Call the dentist" in printed.err
    problem = terminal.run("approve", step, "--json").problem
    assert problem["code"] == "PROPOSAL_MOVED"
    assert problem["detail"]["proposal"]["stepId"] == step
    assert "dentist" not in terminal.ok("task", "list")


def test_readings_are_told() -> None:
    """What the runner read is a sentence, with the state of the chain."""
    terminal = with_proposals()
    said = terminal.ok("audit", "--mission", "weekly")
    assert "1 entry: complete, checked on this device just now" in said
    assert "The runner read “Diary” for “Weekly review”" in said
    assert terminal.json("audit")["dataAccess"]["chainOk"] is True


def test_refused_changes_are_retried_and_dropped() -> None:
    """What the hub refused is shown with its reason, and can be sent again or forgotten."""
    terminal = signed_up()
    for ident in ("aaaa-1", "bbbb-2"):
        terminal.device.refused_changes[ident] = RefusedChange(
            ident, "notes", "r1", "Diary", "clock-ahead", "The clock was ahead.", NOW_MS
        )
    assert "clock-ahead" in terminal.ok("refused", "list")
    assert "The hub refused 2 changes" in terminal.ok("note", "add", "Another")
    terminal.ok("refused", "retry", "aaaa")
    assert terminal.run("refused", "drop", "bbbb").status == 2
    terminal.ok("refused", "drop", "bbbb", "--yes")
    assert terminal.json("refused", "list")["refused"] == []


def test_without_the_hub_what_is_written_is_kept() -> None:
    """Offline is no error for a write: it is kept, said so, and sent later."""
    terminal = signed_up()
    terminal.device.online = False
    written = terminal.run("note", "add", "Diary")
    assert (written.status, written.err) == (0, "")
    assert "Kept here; it will sync" in written.out
    told = terminal.json("note", "add", "Another")["sync"]
    assert told == {"state": "kept", "waiting": 2, "refused": 0}
    assert "offline, last synced now, 2 changes waiting" in terminal.ok("status")
    offline = terminal.run("sync", "--json")
    assert (offline.status, offline.out, offline.problem["code"]) == (6, "", "OFFLINE")
    terminal.device.online = True
    assert terminal.json("sync")["sync"]["waiting"] == 0


def test_accounts_are_created_listed_and_removed() -> None:
    """An account comes to this device and goes from it, each by a command."""
    terminal = Terminal()
    assert terminal.run("note", "list").status == 3
    made = terminal.json("account", "create", "ada", "--name", "Ada", "--zone", "Europe/Berlin")
    assert made["account"]["mode"] == "standard"
    assert terminal.run("account", "create", "bob", "--zone", "Mars/Olympus").status == 2
    assert "K7QM-2R9D" in terminal.ok("account", "invite")
    terminal.ok("account", "rename", "Ada L.")
    assert "Ada L." in terminal.ok("status")
    assert "own   ada" in terminal.ok("account", "list")
    assert terminal.run("account", "remove").status == 2
    terminal.ok("account", "sign-out", "--yes")
    assert "No accounts on this device." in terminal.ok("account", "list")
    terminal.ok("account", "create", "bob")
    terminal.ok("account", "remove", "--yes")
    assert terminal.json("account", "list")["accounts"] == []


def test_the_account_that_is_meant_is_used() -> None:
    """One account needs no name; of two one is named; the demo never is meant by itself."""
    terminal = signed_up()
    terminal.host.passwords["demo-1"] = ""
    terminal.ok("note", "add", "Hers")
    terminal.ok("account", "create", "bob")
    unnamed = terminal.run("note", "list")
    assert unnamed.status == 5
    assert "ada, bob" in unnamed.err
    assert terminal.json("note", "list", "--account", "bob")["notes"] == []
    terminal.environ["MANA_ACCOUNT"] = "Ada"
    assert len(terminal.json("note", "list")["notes"]) == 1
    assert terminal.run("note", "list", "--account", "eve").status == 3


def test_the_demo_is_used_only_by_name() -> None:
    """The demo needs its name and no password; it is made when it is named to be used."""
    terminal = Terminal(environ={})
    assert terminal.run("account", "remove", "--account", "demo", "--yes").status == 3
    assert terminal.host.devices == {}
    assert "demo" in terminal.ok("status", "--account", "demo")
    assert "--account demo" in terminal.run("status").err
    assert "demo" in terminal.ok("status", "--account", "Demo")
    terminal.ok("account", "remove", "--account", "demo", "--yes")
    assert terminal.host.devices == {}


def test_passwords_come_from_file_variable_or_terminal(tmp_path: Path) -> None:
    """The password is read from where the person put it, and never guessed."""
    terminal = signed_up()
    terminal.environ = {}
    needed = terminal.run("note", "list", "--json")
    assert (needed.status, needed.problem["code"]) == (4, "PASSWORD_NEEDED")
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    terminal.environ = {"MANA_PASSWORD_FILE": str(file)}
    terminal.ok("note", "list")
    file.write_text("another")
    assert terminal.run("note", "list").status == 4
    terminal.environ = {"MANA_PASSWORD_FILE": str(file) + "-gone"}
    assert "PASSWORD_FILE_UNREADABLE" in terminal.run("note", "list").err
    terminal.environ = {}
    terminal.hidden = lambda question: PASSWORD
    terminal.ok("note", "list")
    answers = iter(["one", "other"])
    terminal.hidden = lambda question: next(answers)
    assert terminal.run("account", "create", "bob").status == 2


def test_every_command_locks_again() -> None:
    """Whatever a command did, the keys are out of memory when it ends."""
    terminal = signed_up()
    before = terminal.host.closed
    terminal.run("note", "show", "nothing")
    assert terminal.host.closed == before + 1
    assert terminal.device.locked


def test_a_name_is_not_blank() -> None:
    """How a person is addressed is never nothing."""
    terminal = signed_up()
    printed = terminal.run("account", "rename", "  ")
    assert (printed.status, printed.out) == (2, "")
    assert terminal.json("account", "rename", " Ada ")["displayName"] == "Ada"


def test_a_value_that_is_not_offered_is_told_in_plain_words() -> None:
    """What checks a value adds no words of its own to the line."""
    printed = signed_up().run("task", "add", "Rest", "--priority", "huge")
    assert printed.status == 2
    assert "Invalid value for '--priority': 'huge' is not one of 'low'" in printed.err


def test_a_model_is_named_once() -> None:
    """A description that opens with the model's name does not repeat it."""
    words = model_words(ModelView("rules:offline", "rules", "rules: finds dates", local=True))
    assert words == "rules, on this machine: finds dates"


def test_a_data_folder_that_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the place of the data folder is told in one line that names it and MANA_HOME."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("MANA_HOME", str(tmp_path / "file"))
    printed = Terminal().run("up")
    assert (printed.status, printed.out) == (1, "")
    (line,) = printed.err.splitlines()
    assert str(tmp_path / "file") in line
    assert "MANA_HOME" in line
