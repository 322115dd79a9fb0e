"""The files of the project, as its own checks see them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tracked_files() -> list[Path]:
    """Return every file that git tracks and that is there; all tests need a checkout for it."""
    # A checkout that another account owns is read all the same: nothing of it is run.
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]


def text_of(path: Path) -> str:
    """Return the text of `path`; of a picture or a font, nothing."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return ""
