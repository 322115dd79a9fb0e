"""JSON schemas of tool calls, for function calling: inlined, closed and bounded.

A model can fill only what has a bound, so that no reply becomes a record of any size.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.tools import Call, Tool

RATIONALE: Final = "rationale"
RATIONALE_MAX: Final = 500
_DEPTH_MAX: Final = 8
_KEPT: Final = (
    "type",
    "enum",
    "description",
    "minLength",
    "maxLength",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minItems",
    "maxItems",
)


class SchemaUnbounded(Invalid):
    """A tool's call has a member without a limit, or of a kind that models cannot fill."""

    code = "SCHEMA_UNBOUNDED"
    advice = "Give every text and list of the call a limit."


def call_schema(call: type[Call]) -> dict[str, Json]:
    """Return the schema of a call's parameters; raise SchemaUnbounded where it has no limit."""
    raw = msgspec.json.schema(call)
    definitions = raw.get("$defs", {})
    schema: dict[str, Json] = _closed(raw, definitions, call.__name__, depth=0)
    # The docstring of the call speaks to its reader, the tool's description to the model.
    schema.pop("description", None)
    return schema


def function_schema(tool: Tool) -> dict[str, Json]:
    """Return the function-calling form of a tool; all but reads also take a `rationale`.

    It comes last, because models choose better when they name what they do before the why.
    """
    parameters = call_schema(tool.call)
    if tool.effect != "read":
        properties = parameters["properties"]
        if not isinstance(properties, dict) or RATIONALE in properties:
            raise SchemaUnbounded(f"{tool.name}: {RATIONALE} is added by the registry")
        properties[RATIONALE] = {
            "type": "string",
            "maxLength": RATIONALE_MAX,
            "description": "Why, in one sentence, naming the inputs it rests on.",
        }
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": parameters,
        },
    }


def _closed(raw: dict[str, Any], definitions: dict[str, Any], at: str, *, depth: int) -> Any:
    """Return a schema without references, with every bound checked."""
    if depth > _DEPTH_MAX:
        raise SchemaUnbounded(f"{at}: nested too deeply, or within itself")
    reference = raw.get("$ref")
    if isinstance(reference, str):
        target = definitions.get(reference.removeprefix("#/$defs/"))
        if target is None:
            raise SchemaUnbounded(f"{at}: refers to an unknown definition")
        return _closed({**target, **_without(raw, "$ref")}, definitions, at, depth=depth + 1)
    if "anyOf" in raw:
        return _optional(raw, definitions, at, depth=depth)
    kept: dict[str, Any] = {name: raw[name] for name in _KEPT if name in raw}
    if "enum" in kept:
        if all(isinstance(value, str) for value in kept["enum"]):
            return {"type": "string", **kept}
        return kept
    kind = kept.get("type")
    if kind == "object":
        return _object(raw, kept, definitions, at, depth=depth)
    if kind == "array":
        if "maxItems" not in kept or not isinstance(raw.get("items"), dict):
            raise SchemaUnbounded(f"{at}: a list needs max_length and a kind of item")
        kept["items"] = _closed(raw["items"], definitions, f"{at}[]", depth=depth + 1)
        return kept
    if kind == "string":
        if "maxLength" not in kept:
            raise SchemaUnbounded(f"{at}: a text needs max_length")
    elif kind in ("integer", "number"):
        if not ({"minimum", "exclusiveMinimum"} & set(kept)) or not (
            {"maximum", "exclusiveMaximum"} & set(kept)
        ):
            raise SchemaUnbounded(f"{at}: a number needs ge or gt, and le or lt")
    elif kind != "boolean":
        raise SchemaUnbounded(f"{at}: a model cannot fill this kind of value")
    return kept


def _object(
    raw: dict[str, Any],
    kept: dict[str, Any],
    definitions: dict[str, Any],
    at: str,
    *,
    depth: int,
) -> dict[str, Any]:
    """Return a closed object; one that takes unknown members has no bound."""
    if raw.get("additionalProperties") is not False:
        raise SchemaUnbounded(f"{at}: an object must forbid unknown members")
    kept["properties"] = {
        name: _closed(member, definitions, f"{at}.{name}", depth=depth + 1)
        for name, member in raw.get("properties", {}).items()
    }
    kept["required"] = list(raw.get("required", []))
    kept["additionalProperties"] = False
    return kept


def _optional(raw: dict[str, Any], definitions: dict[str, Any], at: str, *, depth: int) -> Any:
    """Return the one form of an optional member: models leave out what they do not need."""
    forms = [form for form in raw["anyOf"] if form.get("type") != "null"]
    if len(forms) != 1:
        raise SchemaUnbounded(f"{at}: a member has one form, or none")
    return _closed({**forms[0], **_without(raw, "anyOf")}, definitions, at, depth=depth + 1)


def _without(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in (name, "default")}
