"""What a transaction of the replica takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from mana.domain.records import Entry, Record
from mana.protocol.messages import ChangeMessage

Key: TypeAlias = tuple[str, str]
"""Table and record id."""
HUB_TIME: Final = "hubMs"
"""The hub's newest time that was seen, in ms."""


@dataclass(frozen=True, slots=True)
class Space:
    """How far a space was read. `cursor` None: the state is still being read.

    `state` is `active`, or `left`: no longer synced, and still readable.
    """

    space: str
    type: str
    cursor: int | None
    page: str | None
    head: int | None
    state: str = "active"


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A change of this device that is not yet in the log here."""

    position: int
    space: str
    message: ChangeMessage
    state: str
    code: str
    refused_ms: int
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """What of a page of changes concerns the person at this device.

    `differ` says of table, the record before and after, and a path, whether the opened values
    differ.
    """

    account_id: str
    device_id: str
    hub_ms: int
    differ: Callable[[str, Record, Record, str], bool]


@dataclass(frozen=True, slots=True)
class Overwritten:
    """Edits of this person on this device that something newer overwrote, by path."""

    number: int
    space: str
    table: str
    record_id: str
    at_ms: int
    was: Mapping[str, Entry]
    now: Mapping[str, Entry]
