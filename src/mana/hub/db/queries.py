"""Named SQL statements in `.sql` files beside the store that uses them.

A statement begins after a line `-- name: append_changes` and ends before the next such line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Final

from mana.domain.errors import Invalid

_NAME: Final = re.compile(r"^--\s*name:\s*(\S+)\s*$", re.MULTILINE)
_WORD: Final = re.compile(r"[a-z][a-z0-9_]*")


def load_queries(package: str, file: str = "queries.sql") -> Mapping[str, str]:
    """Return the statements of one file of a package, by name."""
    return parse_queries(resources.files(package).joinpath(file).read_text(encoding="utf-8"))


def parse_queries(text: str) -> Mapping[str, str]:
    """Return the statements of a text; refuse a repeated, empty or badly formed name."""
    pieces = _NAME.split(text)
    if any(line.strip() and not line.lstrip().startswith("--") for line in pieces[0].splitlines()):
        raise Invalid("a statement stands before the first name")
    statements: dict[str, str] = {}
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        statement = body.strip().rstrip(";").rstrip()
        if not _WORD.fullmatch(name) or name in statements or not statement:
            raise Invalid(f"query name is repeated, empty or badly formed: {name}")
        statements[name] = statement
    return MappingProxyType(statements)
