"""The catalogue: what is installed is whole, bounded and in a fixed order, or nothing starts."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from mana.domain.errors import ManaError
from mana.domain.manifest import InputKind, ModuleManifest
from mana.domain.records import Records
from mana.domain.tables import Flag, Sealing, Table, Text, guarded, sealed
from mana.domain.tools import Call, Outcome, Tool
from mana.registry import catalogue as registry
from mana.registry.catalogue import (
    BUILT_IN,
    ManifestRefused,
    UnknownTable,
    UnknownTool,
    build_catalogue,
    load_catalogue,
)
from mana.registry.schemas import RATIONALE, RATIONALE_MAX, SchemaUnbounded, call_schema

CATALOGUE = build_catalogue()


class Given(Call, frozen=True):
    """A call with one bounded text."""

    text: Annotated[str, Meta(max_length=10)]


def run(call: Call, records: Records) -> Outcome:
    """Do nothing."""
    return Outcome("nothing")


TABLE = Table("trials", "trial", (sealed("title", Text(20)),))
TOOL = Tool("try_it", "trial", "write", "Try.", Given, run, lambda call, records: "Try")
MANIFEST = ModuleManifest("trial", "Trial", "x", (TABLE,), (TOOL,))


def test_lookups_name_what_is_missing() -> None:
    """An unknown table or tool has a code of its own."""
    assert CATALOGUE.table("notes").app_id == CATALOGUE.app_id("notes") == "notes"
    assert CATALOGUE.tool("list_tasks").module == "todo"
    assert (CATALOGUE.module_of("tasks"), CATALOGUE.module_of("agents")) == ("todo", "ai")
    assert set(CATALOGUE.inputs) == {"notes", "tasks"}
    with pytest.raises(UnknownTable) as table:
        CATALOGUE.table("nothing")
    with pytest.raises(UnknownTool) as tool:
        CATALOGUE.schema("nothing")
    assert (table.value.code, tool.value.code) == ("UNKNOWN_TABLE", "UNKNOWN_TOOL")


def test_no_tool_writes_what_decides() -> None:
    """Tables that decide belong to no module and are closed to agents."""
    owned = {table.name for manifest in BUILT_IN for table in manifest.tables}
    for table in CATALOGUE.tables:
        if table.name not in owned:
            assert not table.agents_may_write


def test_tools_have_the_reference_s_names() -> None:
    """Tools and their parameters are those of the format, in a fixed order."""
    shown = {
        tool.name: list(CATALOGUE.schema(tool.name)["function"]["parameters"]["properties"])  # type: ignore[index,call-overload,arg-type]
        for tool in CATALOGUE.tools
    }
    assert shown == {
        "create_note": ["content", "title", "rationale"],
        "update_note": ["noteId", "title", "content", "rationale"],
        "append_to_note": ["noteId", "content", "rationale"],
        "add_tag_to_note": ["noteId", "tag", "rationale"],
        "list_notes": ["limit", "query", "includeArchived"],
        "create_task": ["title", "dueDate", "priority", "description", "rationale"],
        "complete_task": ["taskId", "rationale"],
        "complete_tasks_by_title": ["titleMatch", "rationale"],
        "get_task_stats": [],
        "list_tasks": ["filter", "limit"],
        "propose_memory": ["reason", "content", "append", "rationale"],
    }
    assert list(shown) == [tool.name for tool in CATALOGUE.tools]
    assert set(shown) <= {tool.name for tool in load_catalogue().tools}


def bounded(schema: Any) -> bool:
    """Say whether a schema is closed and has a limit everywhere."""
    if "enum" in schema:
        return True
    kind = schema["type"]
    if kind == "object":
        return schema["additionalProperties"] is False and all(
            map(bounded, schema["properties"].values())
        )
    if kind == "array":
        return "maxItems" in schema and bounded(schema["items"])
    limits = {"string": {"maxLength"}, "integer": {"minimum", "maximum"}, "boolean": set()}
    return limits[kind] <= set(schema)


def test_every_schema_is_bounded_and_inlined() -> None:
    """A model can fill nothing without a limit; writes take a rationale, reads do not."""
    for tool in CATALOGUE.tools:
        parameters: Any = CATALOGUE.schema(tool.name)["function"]["parameters"]  # type: ignore[index,call-overload]
        assert bounded(parameters)
        assert "$ref" not in str(parameters)
        rationale = parameters["properties"].get(RATIONALE)
        assert (rationale is None) == (tool.effect == "read")
        assert rationale is None or rationale["maxLength"] == RATIONALE_MAX
        assert RATIONALE not in parameters["required"]


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a call."""

    word: Annotated[str, Meta(max_length=5)]


class Nested(Call, frozen=True):
    """A call with a list of parts."""

    parts: Annotated[list[Inner], Meta(max_length=3)]


def test_nested_parts_are_inlined() -> None:
    """A part with a schema of its own stands where it is used."""
    schema: Any = call_schema(Nested)
    assert bounded(schema)
    assert schema["properties"]["parts"]["items"]["properties"]["word"]["maxLength"] == 5


class OpenInner(msgspec.Struct):
    """A part that takes unknown members."""

    word: Annotated[str, Meta(max_length=5)]


class Unbounded(Call, frozen=True):
    """A text without a limit."""

    text: str


class UnboundedList(Call, frozen=True):
    """A list without a limit."""

    words: list[Annotated[str, Meta(max_length=5)]]


class UnboundedNumber(Call, frozen=True):
    """A number without limits."""

    number: int


class AnyObject(Call, frozen=True):
    """An object of any members."""

    patch: dict[str, str]


class Anything(Call, frozen=True):
    """A value of any kind."""

    value: Any


class Either(Call, frozen=True):
    """A value of two kinds."""

    value: Annotated[str, Meta(max_length=5)] | bool


class OpenPart(Call, frozen=True):
    """A part that takes unknown members."""

    part: OpenInner


class Endless(msgspec.Struct, forbid_unknown_fields=True):
    """A part within itself."""

    inner: Endless | None = None


class Recursive(Call, frozen=True):
    """A call with a part within itself."""

    part: Endless


class OwnRationale(Call, frozen=True):
    """A call that takes the name that the registry adds."""

    rationale: Annotated[str, Meta(max_length=5)]


@pytest.mark.parametrize(
    "call",
    [
        Unbounded,
        UnboundedList,
        UnboundedNumber,
        AnyObject,
        Anything,
        Either,
        OpenPart,
        Recursive,
    ],
)
def test_calls_without_a_limit_are_refused(call: type[Call]) -> None:
    """A tool whose call has no bound cannot be installed."""
    with pytest.raises(SchemaUnbounded):
        call_schema(call)
    with pytest.raises(ManifestRefused):
        build_catalogue((replace(MANIFEST, tools=(replace(TOOL, call=call),)),))


@pytest.mark.parametrize(
    "manifest",
    [
        replace(MANIFEST, id="Trial"),
        replace(MANIFEST, id="ai"),
        replace(MANIFEST, id="notes"),
        replace(MANIFEST, tables=(replace(TABLE, app_id="notes"),)),
        replace(MANIFEST, tables=(replace(TABLE, name="agents"),)),
        replace(MANIFEST, tables=(replace(TABLE, name="notes"),)),
        replace(MANIFEST, tables=(replace(TABLE, name="Bad name"),)),
        replace(MANIFEST, tables=(TABLE, TABLE)),
        replace(MANIFEST, tables=(replace(TABLE, authority=True),)),
        replace(MANIFEST, tables=(replace(TABLE, sealing=Sealing.MISSION),)),
        replace(MANIFEST, tables=(replace(TABLE, title_field="nothing"),)),
        replace(
            MANIFEST,
            tables=(replace(TABLE, fields=(guarded("status", Flag(), because="a test"),)),),
        ),
        replace(
            MANIFEST,
            tables=(replace(TABLE, fields=(sealed("on", Flag(), default="yes"),)),),
        ),
        replace(
            MANIFEST,
            tables=(replace(TABLE, fields=(sealed("on", Flag()), sealed("on", Flag()))),),
        ),
        replace(MANIFEST, tables=(replace(TABLE, fields=(sealed("a/b", Flag()),)),)),
        replace(MANIFEST, tools=(replace(TOOL, name="tryIt"),)),
        replace(MANIFEST, tools=(replace(TOOL, name="create_task"),)),
        replace(MANIFEST, tools=(TOOL, TOOL)),
        replace(MANIFEST, tools=(replace(TOOL, module="notes"),)),
        replace(MANIFEST, tools=(replace(TOOL, effect="admin"),)),  # type: ignore[arg-type]
        replace(MANIFEST, tools=(replace(TOOL, description=" "),)),
        replace(MANIFEST, tools=(replace(TOOL, call=OwnRationale),)),
        replace(MANIFEST, inputs=(InputKind(CATALOGUE.table("notes"), str, str),)),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(manifest: ModuleManifest) -> None:
    """A module with a taken name, a claimed authority or a malformed part stops the start."""
    with pytest.raises(ManaError) as refused:
        build_catalogue((*BUILT_IN, manifest))
    assert refused.value.code == "MANIFEST_REFUSED"


def test_modules_from_outside_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest behind an entry point is part of the catalogue; anything else stops the start."""
    points = [EntryPoint("trial", f"{__name__}:MANIFEST", registry.ENTRY_POINTS)]
    monkeypatch.setattr(EntryPoint, "load", lambda self: MANIFEST)
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points)
    load_catalogue.cache_clear()
    try:
        assert load_catalogue().tool("try_it").module == "trial"
        load_catalogue.cache_clear()
        monkeypatch.setattr(EntryPoint, "load", lambda self: "no manifest")
        with pytest.raises(ManifestRefused):
            load_catalogue()
    finally:
        load_catalogue.cache_clear()
