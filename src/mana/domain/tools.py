"""Tools: what an agent or a person can ask for by name.

A tool takes a typed call and read access to records, and returns changes or an answer. It
never writes: `planning.dispatch` is the only caller, asks the policy, and the device applies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from mana.domain.changes import Change
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.records import Records

Effect = Literal["read", "write", "destructive", "external"]


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


@dataclass(frozen=True, slots=True)
class Tool:
    """A declared tool. `sentence` says in words what the call would do, for a proposal."""

    name: str
    module: str
    effect: Effect
    description: str
    call: type[Call]
    run: Callable[[Any, Records], Outcome]
    sentence: Callable[[Any, Records], str]


def parse_call(tool: Tool, arguments: Json) -> Call:
    """Return the typed call of raw arguments.

    Numbers and booleans written as strings are accepted, because models write them so.
    Raises Invalid with the path and reason, without the offending value.
    """
    try:
        return msgspec.convert(arguments, tool.call, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(f"{tool.name}: {error}") from error
