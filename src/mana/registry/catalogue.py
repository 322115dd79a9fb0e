"""The catalogue: every installed table and tool, checked once, then frozen.

Built by an explicit call when a process starts, and once in its life: what is installed later
needs a new process. Modules come with Mana or from the entry point group `mana.modules`; one that
breaks a rule stops the start, named, rather than being found out by a person's data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Final

from mana.domain.agents import AGENT_MEMORY, AGENTS
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import Conflict, ManaError, NotFound
from mana.domain.iterations import ITERATIONS, JOURNAL, STEPS
from mana.domain.manifest import InputKind, ModuleManifest
from mana.domain.missions import MISSIONS
from mana.domain.policy import EFFECTS
from mana.domain.settings import INVITATIONS, MODELS, SETTINGS
from mana.domain.spaces import MEMBER_NAMES, PROFILE, SPACE_POLICY, SPACE_POLICY_AUDIT
from mana.domain.tables import Sealing, Table
from mana.domain.tools import TASK, Call, Tool
from mana.modules.agents.manifest import MANIFEST as OF_AGENTS
from mana.modules.notes.manifest import MANIFEST as NOTES
from mana.modules.todo.manifest import MANIFEST as TODO
from mana.registry.schemas import function_schema

ENTRY_POINTS: Final = "mana.modules"
BUILT_IN: Final[tuple[ModuleManifest, ...]] = (NOTES, TODO)
CORE: Final[tuple[ModuleManifest, ...]] = (OF_AGENTS,)
"""Tools of Mana itself: in every catalogue, after all others, and none of its modules."""
AI_TABLES: Final[tuple[Table, ...]] = (
    AGENTS,
    AGENT_MEMORY,
    MISSIONS,
    ITERATIONS,
    STEPS,
    JOURNAL,
    SETTINGS,
    INVITATIONS,
    MODELS,
    PROFILE,
    MEMBER_NAMES,
    SPACE_POLICY,
    SPACE_POLICY_AUDIT,
)
_TOOL_NAME: Final = re.compile(r"[a-z_]{1,64}")
_MODULE_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_TABLE_NAME: Final = re.compile(r"[a-z][A-Za-z0-9]{0,63}")
_FIELD_NAME: Final = re.compile(r"[a-z][A-Za-z0-9]{0,63}")


class UnknownTable(NotFound):
    """No installed module declares a table of this name."""

    code = "UNKNOWN_TABLE"
    advice = "Install the module that the table belongs to, or update Mana."


class UnknownTool(NotFound):
    """No installed module declares a tool of this name."""

    code = "UNKNOWN_TOOL"
    advice = "Use one of the tools that are listed."


class ManifestRefused(Conflict):
    """A module's declaration breaks a rule; nothing was installed."""

    code = "MANIFEST_REFUSED"
    advice = "Correct or remove the module, then start again."


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The frozen set of installed modules, tables and tools, each in a fixed order."""

    modules: tuple[ModuleManifest, ...]
    _tables: Mapping[str, Table]
    _tools: Mapping[str, Tool]
    _inputs: Mapping[str, InputKind]
    _module_by_table: Mapping[str, str]
    _schemas: Mapping[str, dict[str, Json]]
    _schema_sizes: Mapping[str, int]

    @property
    def tables(self) -> tuple[Table, ...]:
        """Return every table: Mana's own, then the modules'."""
        return tuple(self._tables.values())

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Return every tool, in the order of the modules; Mana's own come last."""
        return tuple(self._tools.values())

    @property
    def inputs(self) -> Mapping[str, InputKind]:
        """Return by table name how its records are offered as inputs."""
        return self._inputs

    def table(self, name: str) -> Table:
        """Return a table; raise UnknownTable."""
        found = self._tables.get(name)
        if found is None:
            raise UnknownTable("no installed module has a table of this name")
        return found

    def tool(self, name: str) -> Tool:
        """Return a tool; raise UnknownTool."""
        found = self._tools.get(name)
        if found is None:
            raise UnknownTool("no installed module has a tool of this name")
        return found

    def input_kind(self, table: str) -> InputKind | None:
        """Return how a table's records are shown as inputs; None if they are not."""
        return self._inputs.get(table)

    def module_of(self, table: str) -> str:
        """Return the id of the module that declares a table; Mana's own give their app id."""
        return self._module_by_table.get(table) or self.table(table).app_id

    def app_id(self, table: str) -> str:
        """Return the sync app id of a table; raise UnknownTable."""
        return self.table(table).app_id

    def schema(self, tool: str) -> dict[str, Json]:
        """Return the function-calling form of a tool; raise UnknownTool."""
        return self._schemas[self.tool(tool).name]

    def schema_size(self, tool: str) -> int:
        """Return the bytes of a tool's function-calling form; raise UnknownTool."""
        return self._schema_sizes[self.tool(tool).name]


@cache
def load_catalogue() -> Catalogue:
    """Return the catalogue of what is installed; raise ManifestRefused where a rule is broken."""
    found: list[ModuleManifest] = []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            manifest = point.load()
        except Exception as error:
            raise ManifestRefused(f"module {point.name} cannot be loaded") from error
        if not isinstance(manifest, ModuleManifest):
            raise ManifestRefused(f"module {point.name} gives no manifest")
        found.append(manifest)
    return build_catalogue((*BUILT_IN, *found))


def build_catalogue(modules: Iterable[ModuleManifest] = BUILT_IN) -> Catalogue:
    """Return the catalogue of these modules; raise ManifestRefused where a rule is broken."""
    manifests = tuple(modules)
    tables: dict[str, Table] = {}
    tools: dict[str, Tool] = {}
    inputs: dict[str, InputKind] = {}
    module_by_table: dict[str, str] = {}
    for table in AI_TABLES:
        _add_table(tables, table)
    seen = {table.app_id for table in AI_TABLES}
    # A module that takes the name of a core module or its tools is refused, so those are known first.
    own = {tool.name for manifest in CORE for tool in manifest.tools} | {TASK}
    seen |= {manifest.id for manifest in CORE}
    for manifest in manifests:
        if not _MODULE_ID.fullmatch(manifest.id) or manifest.id in seen:
            raise ManifestRefused(f"module id {manifest.id} is malformed or taken")
        seen.add(manifest.id)
        for table in manifest.tables:
            _check_module_table(manifest, table)
            _add_table(tables, table)
            module_by_table[table.name] = manifest.id
        for tool in manifest.tools:
            _check_tool(manifest, tool)
            if tool.name in tools or tool.name in own:
                raise ManifestRefused(f"tool {tool.name} is declared twice")
            tools[tool.name] = tool
        for kind in manifest.inputs:
            if kind.table not in manifest.tables or kind.table.name in inputs:
                raise ManifestRefused(f"module {manifest.id} offers inputs of a strange table")
            inputs[kind.table.name] = kind
    for manifest in CORE:
        tools.update({tool.name: tool for tool in manifest.tools})
    schemas = {name: _schema(tool) for name, tool in tools.items()}
    return Catalogue(
        modules=manifests,
        _tables=MappingProxyType(tables),
        _tools=MappingProxyType(tools),
        _inputs=MappingProxyType(inputs),
        _module_by_table=MappingProxyType(module_by_table),
        _schemas=MappingProxyType(schemas),
        # Each run asks how long its tools are, and they never change.
        _schema_sizes=MappingProxyType(
            {name: len(canonical_json(schema)) for name, schema in schemas.items()}
        ),
    )


def _add_table(tables: dict[str, Table], table: Table) -> None:
    """Add a table whose name is free and whose fields are legal."""
    if not _TABLE_NAME.fullmatch(table.name) or table.name in tables:
        raise ManifestRefused(f"table {table.name} is malformed or declared twice")
    try:
        names = table.by_name
    except ManaError as error:
        raise ManifestRefused(f"table {table.name} declares a field twice") from error
    for declared in names.values():
        if not _FIELD_NAME.fullmatch(declared.name):
            raise ManifestRefused(f"table {table.name} has a field with a malformed name")
        try:
            if declared.default is not None:
                declared.kind.check(declared.default)
        except ManaError as error:
            raise ManifestRefused(
                f"default of {table.name}.{declared.name} is not of its kind"
            ) from error
    if table.title_field is not None and table.title_field not in names:
        raise ManifestRefused(f"table {table.name} names a title field that it does not have")
    tables[table.name] = table


def _check_module_table(manifest: ModuleManifest, table: Table) -> None:
    """Refuse a module's table that would decide something, or take another key."""
    if table.app_id != manifest.id:
        raise ManifestRefused(f"table {table.name} bears another app id than its module")
    if table.authority or table.sealing is not Sealing.SPACE:
        raise ManifestRefused(f"table {table.name} claims an authority that modules do not have")
    if any(declared.guarded for declared in table.fields):
        raise ManifestRefused(f"table {table.name} has a guarded field")


def _check_tool(manifest: ModuleManifest, tool: Tool) -> None:
    """Refuse a tool whose name, effect or call breaks a rule."""
    if not _TOOL_NAME.fullmatch(tool.name):
        raise ManifestRefused(f"a tool of module {manifest.id} has a malformed name")
    if tool.module != manifest.id:
        raise ManifestRefused(f"tool {tool.name} bears another module than its own")
    if tool.effect not in EFFECTS or not tool.description.strip():
        raise ManifestRefused(f"tool {tool.name} has no known effect or no description")
    if not issubclass(tool.call, Call):
        raise ManifestRefused(f"tool {tool.name} has no typed call")


def _schema(tool: Tool) -> dict[str, Json]:
    """Return the tool's schema, or refuse the module."""
    try:
        return function_schema(tool)
    except ManaError as error:
        raise ManifestRefused(f"tool {tool.name}: {error.message}") from error
    except (TypeError, KeyError) as error:
        raise ManifestRefused(f"tool {tool.name} has a call that has no schema") from error
