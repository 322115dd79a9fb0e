"""Tools: what an agent or a person can ask for by name.

A tool takes a typed call and read access to records, and returns changes or an answer. It
never writes: `planning.dispatch` is the only caller, asks the policy, and the device applies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import msgspec

from mana.domain.changes import Change
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.records import Records

Effect = Literal["read", "write", "destructive", "external"]
TASK: Final = "task"
"""The call by which an agent gives a part of its work to a sub-agent. It belongs to the planner, so no
module may have a tool of this name.
"""
PROPOSE_MEMORY: Final = "propose_memory"
"""The one tool that may change what decides: the memory of the agent that calls it, and only by a
proposal.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool call comes to.

    `message` is one sentence for the model and the person, `data` the answer of a read,
    `changes` what a write would change. Created records are named in `data` by the tool.
    """

    message: str
    data: Json = None
    changes: tuple[Change, ...] = ()


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The typed parameters of one tool; each tool declares a subclass."""


AnyCall = TypeVar("AnyCall", bound=Call)


@dataclass(frozen=True, slots=True)
class Tool:
    """A declared tool. `sentence` says in words what the call would do, for a proposal.

    `always_asks`: a person decides on each call of an agent, whatever the policies say. `words`:
    what people read instead of the name, as it follows “may”: `add a task`.
    """

    name: str
    module: str
    effect: Effect
    description: str
    call: type[Call]
    run: Callable[[Any, Records], Outcome]
    sentence: Callable[[Any, Records], str]
    always_asks: bool = False
    words: str = ""


def parse_call(tool: Tool, arguments: Json) -> Call:
    """Return the typed call of raw arguments; raise Invalid, as `converted`."""
    return converted(tool.name, tool.call, arguments)


def converted(name: str, call: type[AnyCall], arguments: Json) -> AnyCall:
    """Return the typed call of the raw arguments of a tool of this name.

    Numbers and booleans written as strings are accepted, because models write them so.
    Raises Invalid with the path and reason.
    """
    try:
        return msgspec.convert(arguments, call, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(f"{name}: {error}") from error
