"""What a record was and would be, field by field, and word by word for long text.

Pure. The work is bounded: past a size, a text is shown as gone and new instead of compared,
because the time of a comparison grows with the product of both lengths. What a text hides is said.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Final, Literal

from mana.device.unseen import visible, visible_json
from mana.device.views import FieldDiff, RecordDiff
from mana.domain.encoding import Json
from mana.domain.tables import DELETED_AT

WORDS_MAX: Final = 1_200
"""Words on each side, after equal beginnings and ends were taken off."""
SPANS_MAX: Final = 400
OUTGOING: Final = "outgoing text"
"""Stands in the place of a table for what would leave this machine."""
_WORD: Final = re.compile(r"\s+|\w+|[^\w\s]")

Span = tuple[Literal["same", "gone", "new"], str]
Titles = Callable[[str, str], str]
"""Return the title of a record by table and id, empty if it has none here."""


def word_spans(before: str, after: str) -> tuple[Span, ...]:
    """Return spans whose `same` and `gone` join to `before`, `same` and `new` to `after`."""
    old, new = _WORD.findall(before), _WORD.findall(after)
    head = _shared(old, new)
    tail = _shared(old[head:][::-1], new[head:][::-1])
    spans: list[Span] = []
    _add(spans, "same", old[:head])
    _middle(spans, old[head : len(old) - tail], new[head : len(new) - tail])
    _add(spans, "same", old[len(old) - tail :])
    if len(spans) > SPANS_MAX:
        # More pieces than anyone reads: two whole texts say it better.
        return (("gone", before), ("new", after))
    return tuple(spans)


def field_diff(name: str, before: Json, after: Json) -> FieldDiff:
    """Return one field before and after, with words where both are text."""
    before, after = visible_json(before), visible_json(after)
    if isinstance(before, str) and isinstance(after, str) and (before or after):
        return FieldDiff(name, before, after, word_spans(before, after))
    return FieldDiff(name, before, after)


def record_diff(
    table: str,
    record_id: str,
    op: str,
    before: Mapping[str, Json],
    after: Mapping[str, Json],
    *,
    title: str,
) -> RecordDiff:
    """Return what one record would become. Paths that stay as they are are left out."""
    fields = tuple(
        field_diff(path, before.get(path), value)
        for path, value in after.items()
        if before.get(path) != value and path != DELETED_AT
    )
    return RecordDiff(table, record_id, visible(title), op, fields)


def outgoing_diff(tool: str, arguments: Mapping[str, Json]) -> RecordDiff:
    """Return all that a call would send, as differences show what is new."""
    fields = tuple(field_diff(name, None, value) for name, value in arguments.items())
    return RecordDiff(OUTGOING, "", tool, "insert", fields)


def preview_diffs(
    preview: Json, titles: Titles, title_field: Callable[[str], str | None]
) -> tuple[RecordDiff, ...]:
    """Return the differences of a step's preview; items of another shape are left out.

    A record that the step creates bears the title that it is about to get.
    """
    found: list[RecordDiff] = []
    for item in preview if isinstance(preview, list) else []:
        match item:
            case {
                "table": str(table),
                "id": str(record_id),
                "op": str(op),
                "before": dict(before),
                "after": dict(after),
            }:
                title = titles(table, record_id)
                named = title_field(table)
                if not title and named is not None and isinstance(after.get(named), str):
                    title = str(after[named])
                found.append(record_diff(table, record_id, op, before, after, title=title))
            case _:
                continue
    return tuple(found)


def _shared(left: list[str], right: list[str]) -> int:
    """Return how many words both begin with."""
    count = 0
    for ours, theirs in zip(left, right, strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def _middle(spans: list[Span], old: list[str], new: list[str]) -> None:
    if len(old) > WORDS_MAX or len(new) > WORDS_MAX:
        _add(spans, "gone", old)
        _add(spans, "new", new)
        return
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for op, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if op == "equal":
            _add(spans, "same", old[old_from:old_to])
            continue
        _add(spans, "gone", old[old_from:old_to])
        _add(spans, "new", new[new_from:new_to])


def _add(spans: list[Span], kind: Literal["same", "gone", "new"], words: list[str]) -> None:
    if not words:
        return
    text = "".join(words)
    if spans and spans[-1][0] == kind:
        spans[-1] = (kind, spans[-1][1] + text)
    else:
        spans.append((kind, text))
