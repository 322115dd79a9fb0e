"""Make `.venv` hold exactly what the lock files pin, and do nothing when it already does.

Runs before anything is installed, so it uses the standard library only. Every download is
checked against a hash in requirements/. uv installs; where it cannot (a mirror that only pip
is told about), pip does the same work slower.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STATE = VENV / "mana-setup.json"
LOCKS = {
    "build": ROOT / "requirements" / "build.txt",
    "runtime": ROOT / "requirements" / "runtime.txt",
    "dev": ROOT / "requirements" / "dev.txt",
}
STEPS = 4


class SetupFailed(Exception):
    """One line for the person, and what the failing tool said."""

    def __init__(self, line: str, said: str = "") -> None:
        super().__init__(line)
        self.said = said


def wanted_key() -> str:
    """Return what `.venv` must have been made from; the place counts, as scripts name it."""
    import hashlib

    digest = hashlib.sha256(str(ROOT).encode())
    for path in (ROOT / "pyproject.toml", *LOCKS.values()):
        digest.update(b"\0" + path.read_bytes())
    return digest.hexdigest()


def read_state() -> dict[str, str]:
    """Return what the last finished set-up noted, or nothing."""
    try:
        state = json.loads(STATE.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def is_asked_python(state: dict[str, str]) -> bool:
    """Tell whether `.venv` came from the Python that the person names, if they name one."""
    asked = os.environ.get("PYTHON", "")
    return not asked or state.get("asked") == asked


def is_current(group: str) -> bool:
    """Tell whether `.venv` serves `group` as it stands; the larger group serves both."""
    state = read_state()
    return (
        state.get("group") in (group, "dev")
        and is_asked_python(state)
        and state.get("key") == wanted_key()
    )


def say(step: int, text: str) -> None:
    """Tell the person which of the steps begins."""
    print(f"[set-up {step}/{STEPS}] {text}", file=sys.stderr, flush=True)


def quiet_environment() -> dict[str, str]:
    """Return the environment for pip and uv: theirs, without what would aim them elsewhere."""
    env = dict(os.environ)
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX"):
        env.pop(name, None)
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    # Copies, not links: a file of `.venv` must not be the file of a cache or of another checkout.
    env.setdefault("UV_LINK_MODE", "copy")
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  (Path.home() raises without an account)
    if not os.access(home, os.W_OK):
        env.setdefault("UV_NO_CACHE", "1")
        env.setdefault("PIP_NO_CACHE_DIR", "1")
    return env


def run(*command: str | Path) -> None:
    """Run one tool; its output is shown only if it fails."""
    import subprocess

    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=quiet_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        name = " ".join(Path(part).name for part in command[:4])
        raise SetupFailed(f"`{name} …` ended with status {done.returncode}", done.stdout)


def venv_works() -> bool:
    """Tell whether the Python behind `.venv` still runs (it is gone after some upgrades)."""
    try:
        run(VENV_PYTHON, "-I", "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))")
    except (OSError, SetupFailed):
        return False
    return True


def make_venv(state: dict[str, str]) -> None:
    """Make `.venv`, unless a finished one made here can be brought up to date."""
    if state.get("root") == str(ROOT) and is_asked_python(state) and venv_works():
        say(1, "Keep .venv")
        return
    import shutil

    # Inside a virtual environment (perhaps this very `.venv`, activated) the one behind it counts.
    python = str(getattr(sys, "_base_executable", "") or sys.executable)
    say(1, f"Make .venv with Python {sys.version.split()[0]} ({python})")
    if VENV.exists():
        shutil.rmtree(VENV)
    run(python, "-I", "-m", "venv", VENV)


def install(group: str) -> None:
    """Install what the locks pin, hashes checked, and take out what they do not name."""
    say(2, "Install the installer (uv)")
    pip = (VENV_PYTHON, "-I", "-m", "pip", "--no-input", "install", "--require-hashes", "--quiet")
    run(*pip, "-r", LOCKS["build"])

    locks = [LOCKS[group]] if group == "dev" else [LOCKS[group], LOCKS["build"]]
    pinned = {line.split("==")[0] for lock in locks for line in pins(lock)}
    say(3, f"Install {len(pinned)} locked packages, hashes checked")
    uv = VENV / "bin" / "uv"
    try:
        run(uv, "pip", "sync", "--quiet", "--python", VENV_PYTHON, "--require-hashes", *locks)
    except SetupFailed as error:
        print(f"{error}; trying pip, which is slower", file=sys.stderr, flush=True)
        run(*pip, *(part for lock in locks for part in ("-r", str(lock))))


def pins(lock: Path) -> list[str]:
    """Return the lines of `lock` that pin a package."""
    return [line for line in lock.read_text("utf-8").splitlines() if line[:1].isalnum()]


def install_mana() -> None:
    """Install the checkout itself, editable; needs no network."""
    say(4, "Install mana itself")
    editable = ("install", "--no-deps", "--no-build-isolation", "--quiet", "--editable", ROOT)
    try:
        run(VENV / "bin" / "uv", "pip", *editable, "--offline", "--python", VENV_PYTHON)
    except SetupFailed:
        run(VENV_PYTHON, "-I", "-m", "pip", "--no-input", *editable)


def note(group: str) -> None:
    """Note that `.venv` serves `group`; written last, so that a torn set-up is none."""
    noted = {
        "key": wanted_key(),
        "group": group,
        "root": str(ROOT),
        "asked": os.environ.get("PYTHON", ""),
    }
    STATE.write_text(json.dumps(noted), "utf-8")


def set_up(group: str) -> None:
    """Bring `.venv` to what the locks say for `group`; only a finished set-up is noted."""
    import fcntl

    # Two calls at once (two terminals) take turns on the folder itself, which is always there.
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if is_current(group):
            return
        state = read_state()
        if state.get("group") == "dev" and is_asked_python(state):
            group = "dev"
        STATE.unlink(missing_ok=True)
        make_venv(state)
        install(group)
        install_mana()
        note(group)
    finally:
        os.close(folder)


def main(arguments: list[str]) -> int:
    """Run `setup.py runtime|dev`, or answer `--is-current runtime|dev` by the exit status."""
    group = arguments[-1] if arguments else ""
    if group not in ("runtime", "dev"):
        print("usage: tools/setup runtime|dev", file=sys.stderr)
        return 2
    if arguments[0] == "--is-current":
        return 0 if is_current(group) else 1
    try:
        set_up(group)
    except (SetupFailed, OSError) as error:
        print(getattr(error, "said", ""), file=sys.stderr)
        advice = "if the network was away, the same command goes on when it is back"
        print(f"mana: set-up stopped: {error}; {advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mana: set-up interrupted; the next one starts over", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
