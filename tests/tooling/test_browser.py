"""How the browser of the page's tests is found, and what happens without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import browser


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with an empty PATH on which nothing can be installed; returns the PATH's folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MANA_CHROMIUM", raising=False)
    monkeypatch.delenv("MANA_REQUIRE_BROWSER", raising=False)
    monkeypatch.setattr(browser, "can_install", lambda: False)
    return tmp_path


def executable(path: Path) -> Path:
    """Put a program at `path`."""
    path.write_text("#!/bin/sh\n", "utf-8")
    path.chmod(0o755)
    return path


def test_named_browser_wins(no_browser: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MANA_CHROMIUM is used even where PATH offers another."""
    executable(no_browser / "chromium")
    named = executable(no_browser / "mine")
    monkeypatch.setenv("MANA_CHROMIUM", str(named))
    assert browser.find() == str(named)


def test_wrong_name_is_not_replaced(no_browser: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A MANA_CHROMIUM that is not there is an answer, not a reason to take another browser."""
    executable(no_browser / "chromium")
    monkeypatch.setenv("MANA_CHROMIUM", str(no_browser / "gone"))
    assert browser.find() is None


@pytest.mark.parametrize("name", browser.NAMES)
def test_browser_on_path_is_found(no_browser: Path, name: str) -> None:
    """Each usual name on PATH will do."""
    path = executable(no_browser / name)
    assert browser.find() == str(path)


@pytest.mark.usefixtures("no_browser")
def test_missing_browser_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a browser the person reads one line that names the package, and work goes on."""
    assert browser.main() == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "`chromium`" in said.err


@pytest.mark.usefixtures("no_browser")
def test_required_browser_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a browser is required, doing without is a failure."""
    monkeypatch.setenv("MANA_REQUIRE_BROWSER", "1")
    assert browser.main() == 1
