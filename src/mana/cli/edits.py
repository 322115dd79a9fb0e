"""What a person types to change a proposal: `--set NAME=VALUE` and `--unset NAME`, by its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Final

import msgspec

from mana.cli.cadences import day_from_words
from mana.device.views import EditForm, ToolParameter
from mana.domain.encoding import Json
from mana.domain.errors import Invalid

_YES_NO: Final[Mapping[str, bool]] = {"yes": True, "true": True, "no": False, "false": False}


class ParameterUnknown(Invalid):
    """The proposal has no parameter of this name."""

    code = "PARAMETER_UNKNOWN"
    advice = "`mana inbox fields STEP` lists those that can be set."


class ValueMisread(Invalid):
    """The value is not of the parameter's kind."""

    code = "VALUE_MISREAD"
    advice = "`mana inbox fields STEP` says what each may be."


def edited(
    form: EditForm, values: Sequence[str], unset: Sequence[str], *, today: date
) -> dict[str, Json]:
    """Return the arguments of a proposed call with what the person changed.

    Raises ParameterUnknown, ValueMisread, UnknownDay; what the tool takes is not checked here.
    """
    by_name = {one.name: one for one in form.parameters}
    arguments: dict[str, Json] = {
        one.name: one.value for one in form.parameters if one.value is not None
    }
    for name in unset:
        arguments.pop(_known(by_name, name).name, None)
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueMisread("what is set is written NAME=VALUE")
        one = _known(by_name, name)
        arguments[one.name] = _read(one, value, today=today)
    return arguments


def _known(by_name: Mapping[str, ToolParameter], name: str) -> ToolParameter:
    found = by_name.get(name.strip())
    if found is None:
        raise ParameterUnknown(f"there is no {name.strip()!r} among: {', '.join(by_name)}")
    return found


def _read(one: ToolParameter, text: str, *, today: date) -> Json:
    if one.kind == "day":
        return day_from_words(text, today=today)
    if one.kind == "yes-no":
        if (said := _YES_NO.get(text.strip().casefold())) is None:
            raise ValueMisread(f"{one.name} is yes or no")
        return said
    if one.kind in ("text", "long-text", "choice", "record"):
        return text
    try:
        found: Json = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        found = None
    if not _fits(one.kind, found):
        example = {"whole": "3", "number": "1.5", "list": '["one", "two"]'}.get(one.kind, "JSON")
        raise ValueMisread(f"{one.name} is written as {example}")
    return found


def _fits(kind: str, found: Json) -> bool:
    if kind == "whole":
        return isinstance(found, int) and not isinstance(found, bool)
    if kind == "number":
        return isinstance(found, int | float) and not isinstance(found, bool)
    return isinstance(found, list) if kind == "list" else found is not None
