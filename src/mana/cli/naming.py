"""How a person names something in a command: by its name, its id, or the start of its id.

An id that was made a moment after another begins like it, so lists show as much of an id as
tells it from all others, and at least eight characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from mana.domain.errors import Conflict, NotFound
from mana.domain.missions import InputRef

SHORT_MIN: Final = 8
PREFIX_MIN: Final = 4
CANDIDATES_MAX: Final = 8


class NameUnknown(NotFound):
    """Nothing has this name, this id, or an id that begins so."""

    code = "NAME_UNKNOWN"
    advice = "List them to see names and ids."


class NameAmbiguous(Conflict):
    """Several things have this name, or an id that begins so. `detail` holds their ids."""

    code = "NAME_AMBIGUOUS"
    advice = "Give the id, or more of its beginning."

    def __init__(self, what: str, ids: Sequence[str], shown: Sequence[str] | None = None) -> None:
        """Name the things that fit, by `shown` where their ids alone would say little."""
        words = ", ".join((ids if shown is None else shown)[:CANDIDATES_MAX])
        more = f" and {len(ids) - CANDIDATES_MAX} more" if len(ids) > CANDIDATES_MAX else ""
        super().__init__(f"more than one {what} fits: {words}{more}", detail={"ids": list(ids)})
        self.ids = tuple(ids)


def resolve(query: str, named: Iterable[tuple[str, str]], what: str) -> str:
    """Return the id of the one thing that `query` names among `(id, name)` pairs.

    An exact id wins, then a name without regard to case, then the start of an id, then a part
    of a name. Raises NameUnknown or NameAmbiguous.
    """
    wanted = query.strip()
    folded = wanted.casefold()
    pairs = list(named)
    attempts: tuple[list[str], ...] = (
        [ident for ident, _ in pairs if ident == wanted],
        [ident for ident, name in pairs if name.strip().casefold() == folded],
        [
            ident
            for ident, _ in pairs
            if len(wanted) >= PREFIX_MIN and ident.casefold().startswith(folded)
        ],
        [ident for ident, name in pairs if len(folded) >= 3 and folded in name.casefold()],
    )
    for found in attempts:
        if len(found) == 1:
            return found[0]
        if found:
            raise NameAmbiguous(what, found)
    raise NameUnknown(f"there is no {what} of this name or id")


def resolve_step(query: str, step_ids: Iterable[str]) -> str:
    """Return the id of the one step that `query` names.

    A step's id is its iteration's and a number, `<iteration>-<number>`. The start of the
    iteration's id may stand for all of it; the number may be left out where there is one step.
    """
    wanted = query.strip().removeprefix("step:").lower()
    known = list(step_ids)
    if wanted in known:
        return wanted
    head, _, number = wanted.rpartition("-")
    # First as lists show it: `0a1b2c3d-0` is step 0, although an id may also begin so.
    found = [
        ident
        for ident in known
        if len(head) >= PREFIX_MIN
        and number.isdigit()
        and ident.startswith(head)
        and ident.rpartition("-")[2] == number
    ]
    if not found and len(wanted) >= PREFIX_MIN:
        found = [ident for ident in known if ident.startswith(wanted)]
    if len(found) > 1:
        raise NameAmbiguous("step", [short_step(ident, known) for ident in found])
    if not found:
        raise NameUnknown("there is no step of this id")
    return found[0]


def resolve_input(text: str, pickable: Sequence[tuple[InputRef, str]]) -> InputRef:
    """Return the record that `text` names as an input: `notes:<id or title>`, or only its name."""
    head, colon, rest = text.partition(":")
    modules = {ref.module for ref, _ in pickable} | {ref.table for ref, _ in pickable}
    if colon and head in modules:
        among = [pair for pair in pickable if head in (pair[0].table, pair[0].module)]
        wanted = rest
    else:
        among, wanted = list(pickable), text
    by_key = {ref.id: ref for ref, _ in among}
    return by_key[resolve(wanted, [(ref.id, title) for ref, title in among], "record")]


def shorts(ids: Iterable[str]) -> Mapping[str, str]:
    """Return for each id its shortest beginning that no other of them shares."""
    ordered = sorted(set(ids))
    found: dict[str, str] = {}
    for place, ident in enumerate(ordered):
        shared = max(
            (
                _shared(ident, ordered[near])
                for near in (place - 1, place + 1)
                if 0 <= near < len(ordered)
            ),
            default=0,
        )
        found[ident] = ident[: max(SHORT_MIN, shared + 1)]
    return found


def short_step(step_id: str, known: Iterable[str]) -> str:
    """Return a step's id with its iteration's shortened."""
    iteration, _, number = step_id.rpartition("-")
    short = shorts(ident.rpartition("-")[0] for ident in (*known, step_id))
    return f"{short[iteration]}-{number}"


def _shared(one: str, other: str) -> int:
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
