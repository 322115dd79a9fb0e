"""What docs/terminal.md shows is what happens."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from mana.cli.main import COMMANDS
from mana.device.views import ConflictView, OverwrittenField, UsageDay
from tests.cli.fake_host import NOW_MS
from tests.cli.fake_spaces import FakeSpace
from tests.cli.terminal import Terminal
from tests.docs.console import matches, read_steps

PAGE = Path(__file__).parents[2] / "docs" / "terminal.md"
LINK = "http://192.168.1.20:3050/join#1.…"
"""The link of another person's invitation, as the page shows one."""
SERVING = {"up", "demo", "hub", "runner", "device"}


def test_every_command_of_the_page_does_what_it_shows() -> None:
    """The page can be followed from its first command to its last."""
    overwritten: dict[str, ConflictView] = {}
    terminal = Terminal()
    terminal.host.friends += ["Bo", "Cleo"]
    choir = FakeSpace("cc" * 32, "club", "Bo's choir", "", {})
    choir.take("bo", "Bo", "owner")
    made = choir.invite("viewer", expires_ms=NOW_MS + 86_400_000, label="Ada")
    choir.invitations[made.invitation_id] = replace(made, link=LINK)
    terminal.host.shared[choir.space_id] = choir
    for step in read_steps(PAGE):
        if step.command == "mana conflict list" and not overwritten:
            overwritten.update(_overwritten(terminal))
        if step.command.startswith("mana usage --days"):
            terminal.device.days = _used(terminal)
        printed = terminal.type(step.command)
        assert (printed.status, printed.err) == (0, ""), (str(step), printed)
        step.require(printed.out)


def _used(terminal: Terminal) -> tuple[UsageDay, ...]:
    """Return what an agent used on two of three days."""
    (agent,) = terminal.device.agent_views.values()
    names = (("account", terminal.device.account_id, ""), ("agent", agent.agent_id, agent.name))
    return tuple(
        UsageDay(day, scope, ident, name, tokens, cost, calls)
        for day, tokens, cost, calls in (
            ("2026-11-19", 1_200, 300_000, 4),
            ("2026-11-21", 640, 120_000, 2),
        )
        for scope, ident, name in names
    )


def _overwritten(terminal: Terminal) -> dict[str, ConflictView]:
    """Let another device have replaced the title of a note; return what stands to be seen."""
    device = terminal.device
    diary = next(
        ident for ident, view in device.tables["notes"].items() if view.text("title") == "Diary"
    )
    field = OverwrittenField("title", "Title", "Diary of November", "Diary")
    device.overwritten["1"] = ConflictView(
        "1", device.space_id, "notes", diary, "Diary", "Bo", NOW_MS - 60_000, (field,)
    )
    return device.overwritten


def test_the_page_knows_every_command() -> None:
    """No command is left out of the page, nor one of a group."""
    text = PAGE.read_text("utf-8")
    names = [name for name in COMMANDS if name not in SERVING]
    for name in tuple(names):
        found = getattr(import_module(f"mana.cli.commands.{COMMANDS[name][0]}"), name)
        if isinstance(found, typer.Typer):
            names += [f"{name} {each}" for each in get_command(found).commands]  # type: ignore[attr-defined]
    assert [name for name in names if f"mana {name}" not in text] == []


@pytest.mark.parametrize(
    ("said", "printed", "same"),
    [
        (["a … c"], ["a b c"], True),
        (["…", "end"], ["one", "two", "end"], True),
        (["…", "end"], ["end"], True),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
        (["(a)"], ["(a)"], True),
        (["(a)"], ["a"], False),
    ],
)
def test_pages_are_compared_by_line(said: list[str], printed: list[str], same: bool) -> None:
    """What a page shows stands for exactly that, but for its ellipses."""
    assert matches(said, printed) is same
