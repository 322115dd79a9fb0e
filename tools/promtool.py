"""Find promtool for the tests of the alert rules; as root on Debian, fetch it when there is none.

Prints its path. Only the one program is taken out of its package: nothing is installed that would
start a server. Without it this says so in one line, and fails only under `MANA_REQUIRE_PROMTOOL=1`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.browser import can_install as is_ours_to_install

PACKAGE = "prometheus"
OWN = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "promtool"
MISSING = "no promtool found: install the package `prometheus`, or set MANA_PROMTOOL to its path"


def find() -> str | None:
    """Return the path of promtool, or None."""
    named = os.environ.get("MANA_PROMTOOL", "")
    if named:
        return shutil.which(named)
    return shutil.which(str(OWN)) or shutil.which("promtool")


def is_required() -> bool:
    """Tell whether going on without promtool is a failure."""
    return os.environ.get("MANA_REQUIRE_PROMTOOL", "") == "1"


def can_install() -> bool:
    """Tell whether this is a Debian where we may fetch packages."""
    return not os.environ.get("MANA_PROMTOOL") and is_ours_to_install()


def install() -> None:
    """Take promtool out of Debian's package into `.venv`; output is shown only if it fails."""
    print(f"Taking promtool out of the package {PACKAGE} for the alerts' tests", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="mana-promtool-") as folder:
        steps = (
            ("apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update"),
            ("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", PACKAGE),
        )
        for step in steps:
            if not _done(step, folder):
                return
        package = next(Path(folder).glob(f"{PACKAGE}_*.deb"), None)
        if package is None or not _done(("dpkg", "-x", package.name, "out"), folder):
            return
        OWN.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(folder) / "out" / "usr" / "bin" / "promtool", OWN)


def _done(command: tuple[str, ...], folder: str) -> bool:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    return done.returncode == 0


def main() -> int:
    """Print promtool's path, after fetching it where that is ours to do."""
    path = find()
    if path is None and can_install():
        install()
        path = find()
    if path is not None:
        print(path)
        return 0
    print(MISSING, file=sys.stderr)
    return 1 if is_required() else 0


if __name__ == "__main__":
    sys.exit(main())
