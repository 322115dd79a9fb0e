"""No tracked file carries a trace of the machine that it was written on."""

from __future__ import annotations

import re

import pytest

from tests.tooling.files import ROOT, text_of, tracked_files

# A home, a checkout or a scratch folder; the look-behind lets `…/home/` of a URL or a route pass.
MACHINE_PATH = re.compile(
    r"(?<![\w.~/-])/(?:root|work)/[\w.]|(?<![\w.~/-])/(?:home|Users)/\w+/|(?<![\w.~/-])/tmp/\w{1,5}/"
)
CONFLICT = re.compile(r"^(?:<{7} |>{7} |={7}$)", re.MULTILINE)


@pytest.mark.parametrize(
    "text",
    ["see /" + "root/x", "PATH=/" + "home/ada/bin", '"/' + "Users/bob/x", "/" + "tmp/t/bin/uv"],
)
def test_machine_paths_are_recognised(text: str) -> None:
    """The pattern below finds what it is there for."""
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["~/.local/share/mana", "/usr/lib/x", "https://a.example/work/x"])
def test_other_paths_pass(text: str) -> None:
    """Places that are the same everywhere may be named."""
    assert not MACHINE_PATH.search(text)


def test_no_file_names_a_machine_path() -> None:
    """A path of somebody's machine means nothing to the reader."""
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked_files()
        if (match := MACHINE_PATH.search(text_of(path)))
    ]
    assert found == []


def test_text_is_whole() -> None:
    """Text files end in a newline and hold no rest of a merge; others' files stay as they came."""
    broken = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if (text := text_of(path)) and (not text.endswith("\n") or CONFLICT.search(text))
        if not {"vendor", "vectors"} & set(path.relative_to(ROOT).parts)
    ]
    assert broken == []


def test_banned_folders_stay_away() -> None:
    """Folders that hide a missing name do not exist."""
    banned = {"utils", "helpers", "common", "misc", "core", "base", "manager"}
    parts = {
        part
        for path in tracked_files()
        if path.is_relative_to(ROOT / "src")
        for part in path.relative_to(ROOT).parts[:-1]
    }
    assert not parts & banned
