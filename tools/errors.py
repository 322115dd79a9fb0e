"""Write docs/protocol/errors.md from the tree of errors, so that it says what the code says.

`python tools/errors.py` writes it; a test compares.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import mana
from mana.cli.exits import exit_status
from mana.domain.errors import ManaError
from mana.hub.http.problems import status_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "protocol" / "errors.md"
HEAD = """# Errors: the codes

Written by `python tools/errors.py`; a test keeps it equal to the code. A code never changes its meaning once released; what is not
listed here is no code of this version. On the wire an error is `application/problem+json` (`Problem`): `code`, `title`, `status`, `advice`, `detail`.

*Status* is the HTTP status at the hub, *exit* the exit status of a command; both follow from the error's family, so a code that a device meets only
locally has them too. The page answers 422 where the hub answers 400 for what did not open or verify. A code with two statuses is raised in two places.
`METHOD_NOT_ALLOWED` (405) is the hub's for a path that does not take a method. Codes of single refused changes are in `sync.md`, 4; reasons of
runs that did not happen in `grants.md`, 2 and 3.

| code | what it means | what to do | status | exit |
|---|---|---|---|---|
"""


def errors() -> list[type[ManaError]]:
    """Return the classes of Mana's own packages that give a code, by code."""
    for module in pkgutil.walk_packages(mana.__path__, "mana."):
        if not module.name.startswith("mana.testing") and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    # Tests and unknown codes from a hub make classes too; those are nobody's contract.
    own = {one for one in _tree(ManaError) if one.__module__ in sys.modules and _is_own(one)}
    return sorted(own, key=lambda one: (one.code, one.__module__, one.__name__))


def meaning(error: type[ManaError]) -> str:
    """Return the first paragraph of a class's docstring, on one line."""
    return " ".join((error.__doc__ or "").split("\n\n")[0].split())


def page() -> str:
    """Return the page."""
    lines = []
    by_code: dict[str, list[type[ManaError]]] = {}
    for error in errors():
        by_code.setdefault(error.code, []).append(error)
    for code, found in by_code.items():
        statuses = sorted({status_of(_bare(error)) for error in found})
        exits = sorted({exit_status(_bare(error)) for error in found})
        cells = (
            f"`{code}`",
            meaning(found[0]),
            found[0].advice,
            ", ".join(map(str, statuses)),
            ", ".join(map(str, exits)),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


def _tree(root: type[ManaError]) -> Iterator[type[ManaError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def _is_own(error: type[ManaError]) -> bool:
    module = error.__module__
    named = getattr(sys.modules[module], error.__name__, None)
    return (
        module.startswith("mana.")
        and not module.startswith("mana.testing")
        and named is error
        and "code" in vars(error)
    )


def _bare(error: type[ManaError]) -> ManaError:
    # Some classes take other arguments to be raised; only the family counts here.
    made = error.__new__(error)
    ManaError.__init__(made)
    return made


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
