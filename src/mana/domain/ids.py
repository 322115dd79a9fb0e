"""Identifiers: each kind is a type of its own, so that two in one call cannot be swapped.

Random ids are UUIDs made by the caller; derived ids are a pure function of what they stand
for, so that the same step run twice names the same record.
"""

from __future__ import annotations

import re
from typing import Final, NewType

from mana.domain.encoding import length_prefixed, sha256
from mana.domain.errors import Invalid

AccountId = NewType("AccountId", str)
SpaceId = NewType("SpaceId", str)
DeviceId = NewType("DeviceId", str)
RecordId = NewType("RecordId", str)
MissionId = NewType("MissionId", str)
AgentId = NewType("AgentId", str)
OccurrenceId = NewType("OccurrenceId", str)
IterationId = NewType("IterationId", str)
StepId = NewType("StepId", str)
GrantId = NewType("GrantId", str)

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SPACE: Final = re.compile(r"[0-9a-f]{64}")
_RECORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def derived_id(purpose: str, *parts: str) -> str:
    """Return the UUID (version 8) that stands for these parts, the same on every machine."""
    digest = bytearray(sha256(length_prefixed("mana-id:v1", purpose, *parts))[:16])
    digest[6] = (digest[6] & 0x0F) | 0x80
    digest[8] = (digest[8] & 0x3F) | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def require_uuid(value: str, what: str) -> str:
    """Return `value` if it is a lower-case UUID; raise Invalid naming `what` otherwise."""
    if not _UUID.fullmatch(value):
        raise Invalid(f"{what} is not a UUID")
    return value


def require_space_id(value: str) -> SpaceId:
    """Return `value` if it has the form of a space id (64 hex digits)."""
    if not _SPACE.fullmatch(value):
        raise Invalid("space id is not 64 hex digits")
    return SpaceId(value)


def require_record_id(value: str) -> RecordId:
    """Return `value` if it can name a record (1 to 128 of letters, digits, `.`, `_`, `-`)."""
    if not _RECORD.fullmatch(value):
        raise Invalid("record id has a character or length that is not allowed")
    return RecordId(value)


def iteration_id(mission: MissionId, scheduled_for: str) -> IterationId:
    """Return the one iteration id of an occurrence (`scheduled_for`: ISO, milliseconds, Z)."""
    return IterationId(derived_id("iteration", mission, scheduled_for))


def step_id(iteration: IterationId, index: int) -> StepId:
    """Return the id of an iteration's step, counted from 0."""
    return StepId(f"{iteration}-{index}")


def created_id(step: StepId, ordinal: int) -> RecordId:
    """Return the id of the `ordinal`-th record that a step creates."""
    return RecordId(derived_id("created", step, str(ordinal)))
