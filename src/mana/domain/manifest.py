"""What a module declares about itself; the registry checks and freezes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mana.domain.records import View
from mana.domain.tables import Table
from mana.domain.tools import Tool


@dataclass(frozen=True, slots=True)
class InputKind:
    """How a record of this module is offered as a mission's input and shown to a model.

    `title` is what the person sees in the picker and the consent; `content` the text that a
    model reads; `pickable` says whether the record is offered.
    """

    table: Table
    title: Callable[[View], str]
    content: Callable[[View], str]
    pickable: Callable[[View], bool] = lambda view: not view.deleted


@dataclass(frozen=True, slots=True)
class ModuleManifest:
    """A module: its id (also the sync app id), label, tables, tools and inputs."""

    id: str
    label: str
    icon: str
    tables: tuple[Table, ...]
    tools: tuple[Tool, ...]
    inputs: tuple[InputKind, ...] = ()
