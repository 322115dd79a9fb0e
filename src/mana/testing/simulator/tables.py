"""The tables that a simulated world writes: real modules, and one with every shape of field."""

from __future__ import annotations

from typing import Final

from mana.domain.iterations import STEPS
from mana.domain.manifest import ModuleManifest
from mana.domain.tables import Number, Shape, Table, Text, Whole, plain, sealed
from mana.modules.notes.tables import NOTES
from mana.registry.catalogue import BUILT_IN, Catalogue, build_catalogue

THINGS: Final = Table(
    name="simulatedThings",
    app_id="links",
    title_field="title",
    described="Records with a field of each shape.",
    fields=(
        sealed("title", Text(200)),
        sealed("tags", Text(64), shape=Shape.SET),
        sealed("items", Text(64), shape=Shape.LIST),
        sealed("total", Number(), shape=Shape.COUNTER),
        plain("order", Whole(0, 1_000_000), because="a plain field merges as a sealed one does"),
    ),
)
WRITTEN: Final = (NOTES.name, THINGS.name, STEPS.name)


def simulated_catalogue() -> Catalogue:
    """Return the installed modules and the simulated one."""
    module = ModuleManifest(id="links", label="Simulated", icon="note", tables=(THINGS,), tools=())
    return build_catalogue((*BUILT_IN, module))
