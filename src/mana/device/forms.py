"""A tool's parameters as a form: what can be given, within which bounds, and what is wrong with it.

Made from the same schema that a model is given, so that a person can say neither more nor less.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from mana.device.views import Fault, ParameterKind, ToolParameter
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.tools import Tool, parse_call
from mana.registry.schemas import call_schema

LONG_TEXT: Final = 200
"""A text that may be longer than this is asked for on several lines."""
_DAY: Final = r"^\d{4}-\d{2}-\d{2}$"
_AT: Final = re.compile(r"^(?P<reason>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_NAMED: Final = re.compile(r"field `(?P<name>[^`]+)`$")

Named = Callable[[str], tuple[str, str]]
"""Returns table and title of the record of an id, both empty if it is none that is known."""


def parameters_of(
    tool: Tool, values: Mapping[str, Json], named: Named
) -> tuple[ToolParameter, ...]:
    """Return a tool's parameters with these values, in the order of its declaration."""
    schema = call_schema(tool.call)
    types = {one.encode_name: one.type for one in msgspec.structs.fields(tool.call)}
    required, properties = schema.get("required"), schema.get("properties")
    needed = required if isinstance(required, list) else []
    return tuple(
        _parameter(name, member, types.get(name), values.get(name), name in needed, named)
        for name, member in (properties.items() if isinstance(properties, dict) else ())
        if isinstance(member, dict)
    )


def faults_of(tool: Tool, arguments: Mapping[str, Json]) -> tuple[Fault, ...]:
    """Return what is wrong with the form of these arguments; empty: nothing."""
    try:
        parse_call(tool, dict(arguments))
    except Invalid as error:
        cause = error.__cause__
        said = str(cause) if isinstance(cause, msgspec.ValidationError) else error.message
        return (_fault(said),)
    return ()


def _fault(said: str) -> Fault:
    """Return path and reason of what a schema says of a value."""
    match = _AT.match(said)
    reason, path = (match["reason"], match["path"] or "") if match is not None else (said, "")
    found = _NAMED.search(reason)
    if found is not None:
        # A member that is missing or unknown is named by the object that it is missing in.
        path = f"{path}.{found['name']}" if path else found["name"]
    return Fault(path, reason)


def _parameter(
    name: str,
    member: Mapping[str, Any],
    declared: object,
    value: Json,
    required: bool,
    named: Named,
) -> ToolParameter:
    kind = _kind(member)
    table, title = "", ""
    if kind == "text" and isinstance(value, str):
        table, title = named(value)
        kind = "record" if table else kind
    return ToolParameter(
        name=name,
        kind=kind,
        described=str(member.get("description") or ""),
        value=value,
        required=required,
        choices=_choices(member, declared, value),
        length_max=member.get("maxItems") if kind == "list" else member.get("maxLength"),
        low=member.get("minimum", member.get("exclusiveMinimum")),
        high=member.get("maximum", member.get("exclusiveMaximum")),
        table=table,
        title=title,
    )


def _choices(member: Mapping[str, Any], declared: object, value: Json) -> tuple[str, ...]:
    """Return what may be chosen: what is chosen now, then the others as the module lists them.

    A schema lists them by the alphabet, which is no order to a person.
    """
    offered = [str(one) for one in member.get("enum", ())]
    listed = [one for one in _literals(declared) if one in offered]
    listed += [one for one in offered if one not in listed]
    return tuple(sorted(listed, key=lambda one: one != value))


def _literals(declared: object) -> tuple[str, ...]:
    if get_origin(declared) is Literal:
        return tuple(str(one) for one in get_args(declared))
    return tuple(one for part in get_args(declared) for one in _literals(part))


def _kind(member: Mapping[str, Any]) -> ParameterKind:
    if "enum" in member:
        return "choice"
    kinds: Mapping[str, ParameterKind] = {
        "boolean": "yes-no",
        "integer": "whole",
        "number": "number",
        "string": "text",
    }
    kind = member.get("type")
    if kind == "array":
        items = member.get("items")
        return "list" if isinstance(items, dict) and items.get("type") == "string" else "other"
    found = kinds.get(str(kind), "other")
    if found == "text" and member.get("pattern") == _DAY:
        return "day"
    return "long-text" if found == "text" and member.get("maxLength", 0) > LONG_TEXT else found
