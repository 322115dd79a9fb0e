"""A terminal for tests: types commands at Mana in this process, beside a host of the test's."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from typer.testing import CliRunner

from mana.cli.main import app
from mana.cli.opening import Surroundings
from tests.cli.fake_host import NOW_MS, FakeDevice, FakeHost

PASSWORD = "correct horse"


@dataclass(frozen=True)
class Printed:
    """What a command printed and how it ended."""

    out: str
    err: str
    status: int

    @property
    def document(self) -> Any:
        """Return standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    @property
    def problem(self) -> Any:
        """Return standard error as the one JSON document that it must be."""
        return json.loads(self.err)


@dataclass
class Terminal:
    """Types commands. `says`: the answer to a question; None where nobody can be asked."""

    host: FakeHost = field(default_factory=FakeHost)
    environ: dict[str, str] = field(default_factory=lambda: {"MANA_PASSWORD": PASSWORD})
    says: bool | None = None
    hidden: Callable[[str], str | None] = lambda question: None
    asked: list[str] = field(default_factory=list)

    def run(self, *arguments: str, stdin: str = "") -> Printed:
        """Run `mana` with these arguments."""
        around = Surroundings(
            environ=self.environ,
            now_ms=lambda: NOW_MS,
            build_host=lambda environ: self.host,  # type: ignore[arg-type,return-value]
            ask_hidden=self.hidden,
            ask_yes=self._ask,
        )
        result = CliRunner().invoke(app, list(arguments), input=stdin, obj=around)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Printed(result.stdout, result.stderr, result.exit_code)

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that must succeed without a word on standard error."""
        printed = self.run(*arguments, stdin=stdin)
        assert (printed.status, printed.err) == (0, ""), printed
        return printed.out

    def json(self, *arguments: str, stdin: str = "") -> Any:
        """Run a command with `--json` that must succeed, and return its document."""
        return json.loads(self.ok(*arguments, "--json", stdin=stdin))

    def type(self, line: str) -> Printed:
        """Run a line as a shell would: assignments, `export`, and one `echo … |` before."""
        stdin, words = "", _words(line)
        if words[0] == "export":
            self.environ.update(word.split("=", 1) for word in words[1:])
            return Printed("", "", 0)
        if "|" in words:
            place = words.index("|")
            assert words[0] == "echo"
            stdin, words = " ".join(words[1:place]) + "\n", words[place + 1 :]
        before = dict(self.environ)
        while "=" in words[0]:
            self.environ.update([words.pop(0).split("=", 1)])
        assert words[0] == "mana", line
        try:
            return self.run(*words[1:], stdin=stdin)
        finally:
            self.environ = before

    @property
    def device(self) -> FakeDevice:
        """Return the one account that is not the demo."""
        return next(one for one in self.host.devices.values() if not one.demo)

    def _ask(self, question: str) -> bool | None:
        self.asked.append(question)
        return self.says


def signed_up(login: str = "ada") -> Terminal:
    """Return a terminal on a device with one account."""
    terminal = Terminal()
    terminal.ok("account", "create", login)
    return terminal


def with_proposals() -> Terminal:
    """Return a terminal on a device whose agent has proposed two tasks."""
    terminal = signed_up()
    terminal.ok("note", "add", "Diary", "--content", "Call the dentist.")
    terminal.ok("agent", "create", "Mira", "--avatar", "🦉")
    terminal.ok(
        "mission", "create", "Weekly review", "--agent", "Mira", "--objective", "find what to do",
        "--input", "notes:Diary",
    )  # fmt: skip
    terminal.ok("grant", "give", "Weekly review", "--yes")
    terminal.ok("mission", "run", "Weekly review")
    return terminal


def _words(line: str) -> Sequence[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)
