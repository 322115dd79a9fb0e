"""Collections on the wire: which elements a whole new value of a set, list or counter writes.

A person and a tool give a field's whole value; what travels is one entry per element, so that two
people who add to one list both keep what they added. Rules: docs/protocol/sync.md 2.
"""

from __future__ import annotations

import difflib
import itertools
import secrets
from collections.abc import Mapping, Sequence
from typing import Final

from mana.crypto.envelope import RecordKey, element_token
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import Invalid
from mana.domain.tables import Field, Shape, Table

POSITION_LENGTH_MAX: Final = 64
_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_WIDTH: Final = 4


def expand(
    table: Table,
    key: RecordKey,
    device_id: str,
    current: Mapping[str, Json],
    values: Mapping[str, Json],
) -> dict[str, Json]:
    """Return what is written by path. `current` holds the record's opened values by path."""
    out: dict[str, Json] = {}
    for path, value in values.items():
        name, slash, _ = path.partition("/")
        declared = table.by_name.get(name)
        if declared is None or declared.shape is Shape.VALUE:
            out[path] = value
        elif not slash:
            live = {
                place.partition("/")[2]: found
                for place, found in current.items()
                if place.startswith(f"{name}/") and found is not None
            }
            out.update(_whole(declared, key, device_id, live, value))
        elif declared.shape is Shape.SET and value is not None:
            out[f"{name}/{element_token(key, name, value)}"] = value
        else:
            out[path] = value
    return out


def between(low: str, high: str | None) -> str:
    """Return a position after `low` and before `high`; None: at the end."""
    out = ""
    place = 0
    while True:
        floor = _DIGITS.index(low[place]) if place < len(low) else 0
        ceiling = len(_DIGITS)
        if high is not None and place < len(high):
            ceiling = _DIGITS.index(high[place])
        middle = (floor + ceiling) // 2
        if middle > floor:
            return out + _DIGITS[middle]
        out += _DIGITS[floor]
        place += 1
        if floor < ceiling:
            high = None


def _whole(
    declared: Field, key: RecordKey, device_id: str, live: Mapping[str, Json], value: Json
) -> dict[str, Json]:
    name = declared.name
    if declared.shape is Shape.COUNTER:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Invalid(f"{name} is a number")
        others = sum(
            found
            for element, found in live.items()
            if element != device_id and isinstance(found, int | float)
        )
        return {f"{name}/{device_id}": value - others}
    wanted = [] if value is None else value
    if not isinstance(wanted, list):
        raise Invalid(f"{name} is a list")
    if declared.shape is Shape.SET:
        found = {element_token(key, name, element): element for element in wanted}
        gone: dict[str, Json] = {f"{name}/{token}": None for token in live if token not in found}
        new = {f"{name}/{token}": one for token, one in found.items() if token not in live}
        return {**gone, **new}
    return {f"{name}/{element}": one for element, one in _list(live, wanted).items()}


def _list(live: Mapping[str, Json], wanted: Sequence[Json]) -> dict[str, Json]:
    """Return the elements that change, keeping those that stay where they are."""
    standing: list[tuple[str, str, Json]] = sorted(
        (
            (str(found.get("position")), element, found.get("value"))
            for element, found in live.items()
            if isinstance(found, dict)
        ),
        key=lambda item: item[:2],
    )
    out: dict[str, Json] = dict.fromkeys(live)
    matcher = difflib.SequenceMatcher(
        None,
        [canonical_json(value) for _, _, value in standing],
        [canonical_json(value) for value in wanted],
        autojunk=False,
    )
    kept: dict[int, tuple[str, str]] = {}
    for old, new, length in matcher.get_matching_blocks():
        for offset in range(length):
            position, element, _ = standing[old + offset]
            kept[new + offset] = (position, element)
    positions = _positions(
        [kept[place][0] if place in kept else None for place in range(len(wanted))]
    )
    for place, value in enumerate(wanted):
        position, element = kept.get(place, ("", ""))
        if element and position == positions[place]:
            del out[element]
        else:
            named = element or secrets.token_hex(8)
            out[named] = {"position": positions[place], "value": value}
    return out


def _positions(kept: Sequence[str | None]) -> list[str]:
    """Return a position for each place, keeping those given if they still are in order."""
    given = [position for position in kept if position is not None]
    usable = all(
        position and set(position) <= set(_DIGITS) and not position.endswith(_DIGITS[0])
        for position in given
    ) and all(low < high for low, high in itertools.pairwise(given))
    if given and usable:
        out: list[str] = []
        for place, position in enumerate(kept):
            if position is None:
                after = next((one for one in kept[place:] if one is not None), None)
                position = between(out[-1] if out else "", after)
            out.append(position)
        if max(map(len, out)) <= POSITION_LENGTH_MAX:
            return out
    return [_spread(place + 1, len(kept) + 1) for place in range(len(kept))]


def _spread(place: int, places: int) -> str:
    """Return one of evenly spread positions of one width, none of which ends in zero."""
    number = place * len(_DIGITS) ** _WIDTH // places
    text = ""
    for _ in range(_WIDTH):
        number, digit = divmod(number, len(_DIGITS))
        text = _DIGITS[digit] + text
    return f"{text}V"
