"""Find the browser for the page's tests; as root on Debian, install it when there is none.

Prints its path. Without one it says so in one line that names the package, and fails only
under `MANA_REQUIRE_BROWSER=1`, where a test that is left out counts as broken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("chromium", "fonts-dejavu-core")
MISSING = "no browser found: install the package `chromium`, or set MANA_CHROMIUM to its path"


def find() -> str | None:
    """Return the path of a browser that the tests can drive, or None."""
    named = os.environ.get("MANA_CHROMIUM", "")
    if named:
        return shutil.which(named)
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def is_required() -> bool:
    """Tell whether going on without a browser is a failure."""
    return os.environ.get("MANA_REQUIRE_BROWSER", "") == "1"


def can_install() -> bool:
    """Tell whether this is a Debian where we may install packages."""
    return (
        not os.environ.get("MANA_CHROMIUM")
        and os.geteuid() == 0
        and Path("/etc/debian_version").exists()
        and shutil.which("apt-get") is not None
    )


def install() -> None:
    """Install the browser by apt-get; its output is shown only if it fails."""
    print(f"Installing {' '.join(PACKAGES)} by apt-get for the page's tests", file=sys.stderr)
    # Another apt may be at work; waiting for it is better than failing beside it.
    apt = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for verb in (("update",), ("install", "--no-install-recommends", *PACKAGES)):
        done = subprocess.run(
            [*apt, *verb],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            print(done.stdout, file=sys.stderr)
            return


def main() -> int:
    """Print the browser's path, after installing it where that is ours to do."""
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
