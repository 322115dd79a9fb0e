"""What is vendored is what was taken, and nothing else."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import mana.web
from mana.web.icons import icon

WEB = Path(mana.web.__file__).parent
VENDOR = WEB / "static" / "vendor"


def listed() -> dict[str, str]:
    """Return the hashes of the README, by file."""
    text = (VENDOR / "README.md").read_text("utf-8")
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.M)}


def test_vendored_files_are_unchanged() -> None:
    """Every vendored file is listed with the hash of the file that its package holds."""
    there = {
        path.relative_to(VENDOR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert there == listed()


def test_only_used_icons_are_vendored() -> None:
    """Each icon is named by a template or a route, and each named one is there."""
    texts = [path.read_text("utf-8") for path in (WEB / "templates").glob("*.html")]
    texts += [path.read_text("utf-8") for path in (WEB / "routes").glob("*.py")]
    named = set(re.findall(r"[\"']([a-z0-9-]+)[\"']", "\n".join(texts)))
    icons = {path.stem for path in (VENDOR / "icons").glob("*.svg")}
    assert icons <= named
    for name in icons:
        assert "<path" in icon(name) or "<rect" in icon(name) or "<circle" in icon(name)


def test_templates_trust_no_text() -> None:
    """No template switches escaping off."""
    for path in (WEB / "templates").glob("*.html"):
        text = path.read_text("utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape", text), path.name
