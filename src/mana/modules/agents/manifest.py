"""What the core module of agents declares: a tool, and no table of its own."""

from __future__ import annotations

from typing import Final

from mana.domain.manifest import ModuleManifest
from mana.modules.agents.tools import PROPOSE_MEMORY_TOOL

MANIFEST: Final = ModuleManifest(
    id="agents", label="Agents", icon="agent", tables=(), tools=(PROPOSE_MEMORY_TOOL,)
)
