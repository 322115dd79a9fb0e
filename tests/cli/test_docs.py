"""What docs/terminal.md shows is what happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from mana.cli.main import COMMANDS
from tests.cli.terminal import Terminal
from tests.docs.console import matches, read_steps

PAGE = Path(__file__).parents[2] / "docs" / "terminal.md"
SERVING = {"up", "demo", "hub", "runner", "device"}


def test_every_command_of_the_page_does_what_it_shows() -> None:
    """The page can be followed from its first command to its last."""
    terminal = Terminal()
    for step in read_steps(PAGE):
        printed = terminal.type(step.command)
        assert (printed.status, printed.err) == (0, ""), (str(step), printed)
        step.require(printed.out)


def test_the_page_knows_every_command() -> None:
    """No command is left out of the page."""
    text = PAGE.read_text("utf-8")
    assert [name for name in COMMANDS if name not in SERVING and f"mana {name}" not in text] == []


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
