"""What a command answers: for a person aligned text, for a program exactly one JSON document.

Both come from the same answer, so neither knows less. Text of people goes through `text.py`.
Colour only on a terminal, and never where NO_COLOR is set.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from mana.cli.text import harmless, harmless_json, one_line
from mana.domain.cadences import Cadence
from mana.domain.clock import iso_ms, parse_stamp
from mana.domain.encoding import Json
from mana.domain.errors import ManaError
from mana.domain.policy import Policy
from mana.domain.records import View

GAP: Final = "  "
CELL_MIN: Final = 12


@dataclass(frozen=True, slots=True)
class Line:
    """One line or paragraph. `mark`: how it stands out: `title`, `quiet`, `gone`, `new`, ``."""

    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """Aligned columns under a head. On a narrow terminal the column `flexible` is cut."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    flexible: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, one a line, the values aligned; empty values are left out."""

    pairs: Sequence[tuple[str, str]]


Block: TypeAlias = "Line | Rows | Facts | str"
STYLES: Final[Mapping[str, str]] = {
    "title": "bold",
    "quiet": "dim",
    "gone": "red",
    "new": "green",
    "": "",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found or did. `document` for programs, `blocks` for people.

    `wrote`: something was written on this device, which is then sent to the hub.
    """

    document: Mapping[str, object]
    blocks: Sequence[Block] = ()
    wrote: bool = False


def show(answer: Answer, *, as_json: bool) -> None:
    """Print the answer on standard output."""
    if as_json:
        print_json(answer.document)
        return
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for block in answer.blocks:
        for line in _lines(block, console.width if console.is_terminal else None):
            console.print(line)


def as_text(blocks: Sequence[Block]) -> str:
    """Return what `show` prints, without colour."""
    return "\n".join(line.plain for block in blocks for line in _lines(block, None))


def print_json(document: Mapping[str, object]) -> None:
    """Print one JSON document and nothing else on standard output."""
    sys.stdout.write(encode(document) + "\n")
    sys.stdout.flush()


def encode(document: object) -> str:
    """Return JSON text that no terminal obeys."""
    plain = to_json(document)
    return harmless_json(json.dumps(plain, ensure_ascii=False, indent=2, allow_nan=False))


def print_error(error: ManaError, *, as_json: bool) -> None:
    """Print an error on standard error: one line, or with `--json` one problem document."""
    if as_json:
        problem = {
            "code": error.code,
            "title": error.message,
            "advice": error.advice,
            "detail": {name: _or_text(value) for name, value in error.detail.items()},
        }
        sys.stderr.write(encode(problem) + "\n")
    else:
        sentence = f"{error.message} [{error.code}]"
        sys.stderr.write(f"mana: {one_line(f'{sentence} {error.advice}')}\n")
    sys.stderr.flush()


def to_json(value: object) -> Json:
    """Return a value as JSON: names in camelCase, moments (`…_ms`) as ISO under `…At`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, View):
        return record_document(value)
    if isinstance(value, Cadence | Policy):
        return value.to_wire()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dict(
            _member(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)
        )
    if isinstance(value, Mapping):
        return {str(name): to_json(member) for name, member in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        members = sorted(value) if isinstance(value, set | frozenset) else value
        return [to_json(member) for member in members]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def record_document(view: View) -> dict[str, Json]:
    """Return a record: its id, its values by field name, and when it was written."""
    return {
        "table": view.table,
        "id": view.id,
        "values": {name: to_json(value) for name, value in sorted(view.values.items())},
        "unreadable": list(view.sealed_fields),
        "deleted": view.deleted,
        "visibility": view.visibility,
        "createdAt": _stamp_iso(view.created_at),
        "writtenAt": _stamp_iso(view.written_at),
    }


def wire_name(name: str) -> str:
    """Return a Python name in camelCase."""
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


def _member(name: str, value: object) -> tuple[str, Json]:
    if not name.endswith("_ms"):
        return wire_name(name), to_json(value)
    moment = name.removesuffix("_ms")
    shown = "at" if moment == "at" else wire_name(moment) + "At"
    if isinstance(value, Sequence):
        return shown, [iso_ms(one) for one in value if isinstance(one, int)]
    return shown, iso_ms(value) if isinstance(value, int) else None


def _or_text(value: object) -> Json:
    try:
        return to_json(value)
    except TypeError:
        return str(value)


def _stamp_iso(stamp: str) -> str | None:
    return iso_ms(parse_stamp(stamp).wall_ms) if stamp else None


def _lines(block: Block, width: int | None) -> list[Text]:
    if isinstance(block, str):
        return [Text(harmless(block))]
    if isinstance(block, Line):
        return [Text(harmless(block.text), style=STYLES[block.mark])]
    if isinstance(block, Facts):
        return _facts(block)
    return _columns(block, width)


def _facts(block: Facts) -> list[Text]:
    pairs = [(name, harmless(value)) for name, value in block.pairs if value]
    wide = max((cell_len(name) for name, _ in pairs), default=0)
    lines: list[Text] = []
    for name, value in pairs:
        first, *rest = value.split("\n")
        line = Text(set_cell_size(name, wide), style=STYLES["quiet"])
        line.append(GAP + first, style="not dim")
        lines.append(line)
        lines += [Text(" " * wide + GAP + more) for more in rest]
    return lines


def _columns(block: Rows, width: int | None) -> list[Text]:
    rows = [[one_line(cell) for cell in row] for row in block.rows]
    wide = [
        max([cell_len(head), *(cell_len(row[place]) for row in rows)])
        for place, head in enumerate(block.head)
    ]
    if width is not None:
        others = sum(wide) - wide[block.flexible] + len(GAP) * (len(wide) - 1)
        head_min = cell_len(block.head[block.flexible])
        wide[block.flexible] = min(
            wide[block.flexible], max(CELL_MIN, head_min, width - others - 1)
        )
    head = Text(_aligned(block.head, wide), style=STYLES["quiet"])
    return [head, *(Text(_aligned(row, wide)) for row in rows)]


def _aligned(cells: Sequence[str], wide: Sequence[int]) -> str:
    fitted = [set_cell_size(_cut(cell, size), size) for cell, size in zip(cells, wide, strict=True)]
    return GAP.join(fitted).rstrip()


def _cut(cell: str, size: int) -> str:
    return cell if cell_len(cell) <= size else set_cell_size(cell, size - 1) + "…"
