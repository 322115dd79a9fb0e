"""The terminal's contract with people and with programs."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from importlib import import_module

import pytest
import typer
from typer.main import get_command

from mana.cli.main import COMMANDS
from tests.cli.terminal import signed_up, with_proposals

HEAVY = ("litestar", "asyncpg", "uvicorn", "httpx", "cryptography", "sqlite3", "rich.console")
EVIL = "\x1b]0;owned\x07\x1b[2Jred\u202etxt.exe\x9b31m\ud800"


def _loaded(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.splitlines())


def test_starting_loads_nothing_heavy() -> None:
    """The command line starts without the hub, the database, HTTP or cryptography."""
    assert _loaded("import mana.cli.main").isdisjoint(HEAVY)


def test_a_command_loads_only_what_it_needs() -> None:
    """`mana note` never waits for what only hub and page need."""
    loaded = _loaded("import mana.cli.main, mana.cli.commands.note, mana.cli.commands.inbox")
    assert loaded.isdisjoint({"litestar", "asyncpg", "uvicorn", "mana.hub", "mana.web"})


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_tells_the_truth(name: str) -> None:
    """Every listed command exists, and its line in the list is its own first sentence."""
    file, line = COMMANDS[name]
    found = getattr(import_module(f"mana.cli.commands.{file}"), name)
    if isinstance(found, typer.Typer):
        said = get_command(found).help or ""
    else:
        said = found.__doc__ or ""
    assert said.strip().splitlines()[0] == line


def test_escape_sequences_never_reach_the_terminal() -> None:
    """What a note's title and text hold is shown as signs, in lists, texts and JSON alike."""
    terminal = signed_up()
    title = EVIL.replace("\ud800", "")
    terminal.ok("note", "add", title, "--content", title)
    note_id = terminal.json("note", "list")["notes"][0]["id"]
    for command in (("note", "list"), ("note", "show", note_id), ("note", "delete", note_id)):
        for options in ((), ("--json",)):
            printed = terminal.run(*command, *options)
            for harmful in ("\x1b", "\x07", "\u202e", "\x9b"):
                assert harmful not in printed.out + printed.err
        terminal.run("note", "restore", note_id)
    document = terminal.json("note", "list")
    assert document["notes"][0]["values"]["title"] == title


def test_answers_are_one_json_document() -> None:
    """With `--json` standard output holds one document, whose moments are ISO."""
    terminal = with_proposals()
    commands = [
        "status", "sync", "inputs", "inbox", "timeline", "audit",
        "note list", "note show Diary", "note add Title", "task list", "task add Title",
        "agent list", "agent show Mira", "mission list", "mission show Weekly", "mission run Weekly",
        "grant list", "grant show-consent Weekly", "inbox list", "inbox list --decided",
        "refused list", "account list",
    ]  # fmt: skip
    for command in commands:
        assert isinstance(terminal.json(*command.split()), dict), command
    proposal = terminal.json("inbox")["proposals"][0]
    assert proposal["plannedAt"] == "2026-11-21T07:01:00.000Z"
    assert not any(name.endswith(("Ms", "_ms")) or "_" in name for name in proposal)


def test_errors_are_one_line_or_one_problem() -> None:
    """An error leaves standard output empty and says what, which code, and what to do."""
    terminal = signed_up()
    printed = terminal.run("note", "show", "nothing")
    assert (printed.out, printed.status) == ("", 3)
    assert printed.err == (
        "mana: there is no note of this name or id [NAME_UNKNOWN] List them to see names and ids.\n"
    )
    problem = terminal.run("note", "show", "nothing", "--json")
    assert (problem.out, problem.status) == ("", 3)
    assert set(problem.problem) == {"code", "title", "advice", "detail"}


@pytest.mark.parametrize("line", ["note add", "note ad", "nope", "--nope", "task list --show x"])
def test_wrong_usage_is_an_error_like_any_other(line: str) -> None:
    """A wrong command line is told in one line with a code too, and ends with status 2."""
    terminal = signed_up()
    printed = terminal.run(*line.split())
    assert (printed.out, printed.status) == ("", 2)
    assert len(printed.err.splitlines()) == 1
    assert "[USAGE]" in printed.err
    problem = terminal.run(*line.split(), "--json")
    assert (problem.status, problem.problem["code"]) == (2, "USAGE")


def test_ambiguity_lists_ids() -> None:
    """Two notes of one title are told apart by the ids that the error lists."""
    terminal = signed_up()
    ids = {terminal.json("note", "add", "Diary")["note"]["id"] for _ in range(2)}
    printed = terminal.run("note", "show", "Diary", "--json")
    assert printed.status == 5
    assert set(printed.problem["detail"]["ids"]) == ids


def test_output_has_no_colour_without_a_terminal() -> None:
    """In a pipe there is no escape sequence, and no line ends in spaces."""
    terminal = with_proposals()
    for command in ("inbox", "timeline", "note list", "status", "mission show weekly"):
        said = terminal.ok(*command.split())
        assert "\x1b" not in said
        assert all(line == line.rstrip() for line in said.splitlines()), said


def test_a_narrow_terminal_cuts_titles_not_ids() -> None:
    """On a terminal a list has colour and fits its width; ids stay whole, to be copied."""
    code = (
        "from mana.cli.output import Answer, Rows, show\n"
        "rows = [('0a1b2c3d', 'A very long title of a note that goes on and on', 'today 07:02')]\n"
        "show(Answer({}, [Rows(('ID', 'TITLE', 'WRITTEN'), rows, flexible=1)]), as_json=False)"
    )
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "48", "LINES": "24"}
    environ.pop("NO_COLOR", None)
    done = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=environ)
    os.close(theirs)
    got = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(ours, 4_096):
            got += chunk
    os.close(ours)
    assert done.wait(timeout=60) == 0
    text = got.decode()
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert all(len(line) <= 48 for line in plain)
    assert plain[1].startswith("0a1b2c3d  A very")
    assert plain[1].endswith("…  today 07:02")


def test_help_lists_every_command_without_loading_it() -> None:
    """`mana --help` names every command and is quick, because it loads none."""
    code = (
        "from typer.testing import CliRunner\nfrom mana.cli.main import app\n"
        "out = CliRunner().invoke(app, ['--help']).stdout\n"
        f"assert all(name in out for name in {json.dumps(list(COMMANDS))}), out"
    )
    assert "mana.cli.commands.note" not in _loaded(code)
