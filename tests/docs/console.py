"""Reads the commands that a page of the docs shows, so that tests run every one of them.

A fenced block marked `console` holds commands after `$ ` and what they print. A line that ends
in a backslash goes on. In what is printed, `…` stands for any text in a line, with the
spaces after it as many as there are, and a line of `…` alone for any lines. A command without printed lines may print anything.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[\w-]*)\s*$")
ANY = "…"


@dataclass(frozen=True)
class Step:
    """One command of a page, where it stands, and what it is said to print."""

    page: str
    line: int
    command: str
    printed: tuple[str, ...]

    def __str__(self) -> str:
        """Return the place and the command, as a test names it."""
        return f"{self.page}:{self.line} {self.command}"

    def require(self, output: str) -> None:
        """Raise AssertionError unless the command printed what the page says."""
        if self.printed and not matches(self.printed, output.splitlines()):
            shown = "\n".join(self.printed)
            raise AssertionError(f"{self}\nthe page says:\n{shown}\nit printed:\n{output}")


def read_steps(page: Path) -> list[Step]:
    """Return the commands of a page's `console` blocks, in order."""
    found: list[Step] = []
    inside: str | None = None
    indent = 0
    for number, raw in enumerate(page.read_text("utf-8").splitlines(), start=1):
        fence = FENCE.match(raw)
        if fence:
            inside = fence["info"] if inside is None else None
            indent = len(fence["indent"])
            continue
        if inside != "console":
            continue
        line = raw[indent:].rstrip()
        if line.startswith("$ "):
            found.append(Step(page.name, number, line[2:], ()))
        elif found and found[-1].command.endswith("\\") and not found[-1].printed:
            last = found[-1]
            command = last.command[:-1].rstrip() + " " + line.strip()
            found[-1] = Step(last.page, last.line, command, ())
        elif found:
            last = found[-1]
            found[-1] = Step(last.page, last.line, last.command, (*last.printed, line))
    return [_trimmed(step) for step in found]


def run_in_shell(
    step: Step, *, environ: Mapping[str, str], folder: Path, seconds_max: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run a step as a person would type it, for pages whose commands are not all `mana`."""
    return subprocess.run(
        ["sh", "-c", step.command],
        env=dict(environ),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds_max,
        check=False,
    )


def matches(said: Sequence[str], printed: Sequence[str]) -> bool:
    """Say whether printed lines are as a page says, `…` standing for anything."""
    pattern = "".join(r"(?:.*\n)*" if line.strip() == ANY else _line(line) + r"\n" for line in said)
    text = "".join(line.rstrip() + "\n" for line in printed)
    return re.fullmatch(pattern, text.rstrip("\n") + "\n") is not None


def _line(said: str) -> str:
    first, *rest = said.split(ANY)
    # Columns stay aligned on the page, whatever the length of what `…` stands for.
    return re.escape(first) + "".join(
        ".*" + (" +" if part.startswith(" ") else "") + re.escape(part.lstrip(" ")) for part in rest
    )


def _trimmed(step: Step) -> Step:
    printed = list(step.printed)
    while printed and not printed[-1]:
        printed.pop()
    return Step(step.page, step.line, step.command, tuple(printed))
