"""Which changes the hub takes, as far as the change alone and its space can tell. Pure.

Answers a code of docs/protocol/sync.md, or None. What depends on the record as it stands is
in `apply.py`. One bad change is refused by itself and never fails the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from mana.crypto.authority import facts_of
from mana.crypto.envelope import KeyClass, parse_envelope
from mana.crypto.errors import Malformed
from mana.crypto.primitives import unb64
from mana.crypto.signatures import (
    SIGNATURE_BYTES,
    VerifyKey,
    verify_change,
    verify_reseal,
)
from mana.domain.actors import Actor, actor_from_wire, origin_of
from mana.domain.agents import AGENT_MEMORY, AGENTS
from mana.domain.cadences import cadence_from_wire, zone
from mana.domain.clock import is_ahead, parse_stamp
from mana.domain.encoding import Json
from mana.domain.errors import CryptoFailed, Invalid
from mana.domain.ids import AccountId, DeviceId, SpaceId, require_record_id, require_uuid
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.missions import MISSIONS, RUNS_ON_HUB
from mana.domain.records import VISIBILITIES
from mana.domain.settings import INVITATIONS, MODELS, SETTINGS, USER_TABLES
from mana.domain.spaces import (
    MEMBER_NAMES,
    PROFILE,
    SPACE_POLICY,
    SPACE_POLICY_AUDIT,
    Role,
    can_manage,
    can_write,
    holds,
)
from mana.domain.tables import Field, Sealing, Table
from mana.protocol.codec import SEQ_MAX, check_value, encode
from mana.protocol.messages import CHANGE_BYTES_MAX, CHANGE_FIELDS_MAX, ChangeMessage

RESEAL: Final = "reseal"
FLIP: Final = "flip"
OPS: Final = ("insert", "update", "delete", RESEAL, FLIP)
SYSTEM_PRINCIPALS: Final = ("system:migration", "system:bootstrap")
RUNNER_TABLES: Final = frozenset({ITERATIONS.name, STEPS.name})
PEOPLE_TABLES: Final = frozenset(
    table.name
    for table in (
        MISSIONS,
        AGENTS,
        AGENT_MEMORY,
        SETTINGS,
        INVITATIONS,
        MODELS,
        PROFILE,
        MEMBER_NAMES,
        SPACE_POLICY,
        SPACE_POLICY_AUDIT,
    )
)
"""Tables that no AI actor writes: what decides over agents, who is in a space and how they are
called, and the person's settings.
"""
PEOPLE_PATHS: Final[Mapping[str, frozenset[str]]] = {
    ITERATIONS.name: frozenset({"feedback"}),
    STEPS.name: frozenset({"feedback", "rejectReason", "edited", "decidedAt"}),
}
"""What a person says of a run and its steps; no AI actor says it in their place."""
_RUNS_ON_DEVICE: Final = "device:"
_ENTRY_LENGTH: Final = 100
"""More characters than an entry has beside its path and value: names, stamp, signs."""
_ACTOR_MEMBERS: Final = 8
_SHORT_BYTES: Final = 16 * 1_024
"""More bytes than all short members of a change take, the signature's and names included."""


class WriterKind(Enum):
    """Who pushes."""

    DEVICE = "device"
    RUNNER = "runner"


@dataclass(frozen=True, slots=True)
class Writer:
    """Who pushes: a registered device of the account, or the runner for it.

    `key_id` names the runner's key and is empty for devices.
    """

    kind: WriterKind
    account: AccountId
    device_id: DeviceId
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """The space that is written to, and what holds for this writer in it.

    `device_key` is None for the runner, whose signatures devices check against the grant.
    """

    space_id: SpaceId
    type: str
    key_version: int
    role: Role
    device_key: VerifyKey | None
    now_ms: int


class Refused(Exception):
    """A change is refused with a code of the protocol. Never leaves this package."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def refusal_of(
    change: ChangeMessage, tables: Mapping[str, Table], writer: Writer, place: Place
) -> str | None:
    """Return why the hub refuses this change whatever stands, or None."""
    try:
        check(change, tables, writer, place)
    except Refused as refused:
        return refused.code
    return None


def actor_of(change: ChangeMessage) -> Actor:
    """Return the actor of a change; refuse one that does not exist, or names words for ids."""
    try:
        return _actor(tuple(change.actor.items()))
    except Invalid:
        raise Refused("forged-actor") from None


# A batch names the same actor and the same stamp again and again. What is refused is not kept,
# so that what is kept is short.
@lru_cache(maxsize=1_024)
def _actor(members: tuple[tuple[str, str], ...]) -> Actor:
    actor = actor_from_wire(dict(members))
    if actor.kind == "ai":
        require_record_id(actor.principal_id)
    for name in (actor.mission_id, actor.iteration_id, actor.team_id):
        if name is not None:
            require_record_id(name)
    return actor


_stamp: Final = lru_cache(maxsize=1_024)(parse_stamp)


def check(change: ChangeMessage, tables: Mapping[str, Table], writer: Writer, place: Place) -> None:
    """Raise Refused where `refusal_of` would return a code."""
    _check_form(change)
    table = tables.get(change.table)
    if table is None:
        raise Refused("unknown-table")
    if (table.name in USER_TABLES) != (place.type == "user"):
        raise Refused("module-refused")
    if not holds(place.type, table.app_id):
        raise Refused("module-refused")
    _check_role(change, table, writer, place)
    reseal = change.op == RESEAL
    if reseal:
        _check_reseal(change, table, writer)
    else:
        _check_actor(change, table, writer)
    if change.visibility == "private" and (change.author_id != writer.account or not table.flips):
        raise Refused("fixed-field")
    if change.op == FLIP:
        _check_flip(change, table, writer)
    classes, stamped, guarded = _classes(table, change.visibility), "", bool(change.guards)
    for path, write in change.fields.items():
        if write.at != stamped:
            stamped = write.at
            # A re-seal keeps the stamps of those who wrote, whatever their clocks and devices.
            _check_stamp(stamped, None if reseal else writer, place)
        declared = _field_at(table, path)
        if declared.sealed:
            _check_sealed(write.value, classes, place.key_version)
        else:
            _check_plain(table, path, write.value)
            guarded = guarded or declared.guarded
    if guarded:
        _check_guards(change, table)
    _check_signature(change, table, writer, place)


def _check_form(change: ChangeMessage) -> None:
    if len(change.fields) > CHANGE_FIELDS_MAX or _is_large(change):
        raise Refused("change-too-large")
    try:
        require_uuid(change.change_id, "change id")
        require_record_id(change.id)
        if change.group is not None:
            require_uuid(change.group, "group id")
    except Invalid:
        raise Refused("bad-value") from None
    if change.seen is not None and not 0 <= change.seen <= SEQ_MAX:
        raise Refused("bad-value")
    if change.op not in OPS or change.visibility not in VISIBILITIES or not change.fields:
        raise Refused("bad-value")


def _is_large(change: ChangeMessage) -> bool:
    """Say whether the change has too many bytes, without making them where they are few."""
    if change.guards or len(change.actor) > _ACTOR_MEMBERS:
        return len(encode(change)) > CHANGE_BYTES_MAX
    length = sum(map(len, change.actor)) + sum(map(len, change.actor.values()))
    for path, write in change.fields.items():
        if type(write.value) is str:
            length += len(write.value)
        elif write.value is not None:
            return len(encode(change)) > CHANGE_BYTES_MAX
        length += len(path) + _ENTRY_LENGTH
    # A character is six bytes at most, as an escape.
    return length * 6 > CHANGE_BYTES_MAX - _SHORT_BYTES and len(encode(change)) > CHANGE_BYTES_MAX


def _check_role(change: ChangeMessage, table: Table, writer: Writer, place: Place) -> None:
    if not can_write(place.role):
        raise Refused("role")
    if table.written_by == "managers" and not can_manage(place.role):
        raise Refused("role")
    if table.written_by == "self" and change.id != writer.account:
        raise Refused("role")


def _check_reseal(change: ChangeMessage, table: Table, writer: Writer) -> None:
    """Refuse what is more than standing sealed values under a newer key.

    That they stand, with these stamps, this actor and this origin, `apply.py` checks.
    """
    if writer.kind is WriterKind.RUNNER or change.origin != origin_of(actor_of(change)):
        raise Refused("forged-actor")
    if change.group is not None or change.guards:
        raise Refused("bad-value")
    for path, write in change.fields.items():
        if not _field_at(table, path).sealed or write.value is None:
            raise Refused("bad-value")


def _check_flip(change: ChangeMessage, table: Table, writer: Writer) -> None:
    """Refuse a change of visibility by anybody but the author in person."""
    if not table.flips or change.author_id != writer.account or actor_of(change).kind != "user":
        raise Refused("fixed-field")


def _check_actor(change: ChangeMessage, table: Table, writer: Writer) -> None:
    actor = actor_of(change)
    if change.origin != origin_of(actor):
        raise Refused("forged-actor")
    if writer.kind is WriterKind.RUNNER:
        if actor.kind != "ai" or table.name not in RUNNER_TABLES:
            raise Refused("forged-actor")
    elif actor.kind == "user":
        if actor.principal_id != writer.account:
            raise Refused("forged-actor")
    elif actor.kind == "system" and actor.principal_id not in SYSTEM_PRINCIPALS:
        raise Refused("forged-actor")
    if actor.kind == "ai" and (
        table.name in PEOPLE_TABLES
        or not change.fields.keys().isdisjoint(PEOPLE_PATHS.get(table.name, frozenset()))
    ):
        raise Refused("forged-actor")


def _check_stamp(at: str, writer: Writer | None, place: Place) -> None:
    """Refuse a stamp without form, and one that is not `writer`'s to give at this time."""
    try:
        stamp = _stamp(at)
    except Invalid:
        raise Refused("bad-value") from None
    if writer is None:
        return
    if stamp.device != writer.device_id:
        raise Refused("forged-device")
    if is_ahead(stamp, hub_ms=place.now_ms):
        raise Refused("clock-ahead")


def _field_at(table: Table, path: str) -> Field:
    try:
        return table.field_at(path)
    except Invalid:
        raise Refused("unknown-path") from None


def _check_sealed(value: Json, classes: tuple[KeyClass, ...], key_version: int) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value.startswith("enc:"):
        raise Refused("plaintext-refused")
    try:
        envelope = parse_envelope(value)
    except Malformed:
        raise Refused("bad-envelope") from None
    if envelope.cls not in classes:
        raise Refused("bad-envelope")
    # Private keys have versions of their own, which only their author counts.
    if envelope.cls != "p" and envelope.version != key_version:
        raise Refused("stale-key" if envelope.version < key_version else "bad-envelope")


def _classes(table: Table, visibility: str) -> tuple[KeyClass, ...]:
    if table.sealing is Sealing.MISSION:
        return ("m",)
    if visibility == "private":
        return ("p",)
    return ("s", "m") if table.sealing is Sealing.TARGET else ("s",)


def _check_plain(table: Table, path: str, value: Json) -> None:
    if isinstance(value, str) and value.startswith("enc:"):
        raise Refused("bad-envelope")
    try:
        check_value(value)
        table.check(path, value)
    except Invalid:
        raise Refused("bad-value") from None
    if table.name == MISSIONS.name and value is not None:
        _check_schedule(path, value)


def _check_schedule(path: str, value: Json) -> None:
    """Refuse what the hub could not compute a due moment from."""
    if path == "cadence":
        try:
            cadence_from_wire(value)
        except Invalid:
            raise Refused("cadence-refused") from None
    elif path == "timeZone":
        try:
            zone(str(value))
        except Invalid:
            raise Refused("bad-value") from None
    elif path == "runsOn" and value != RUNS_ON_HUB:
        try:
            require_uuid(str(value).removeprefix(_RUNS_ON_DEVICE), "device id")
        except Invalid:
            raise Refused("bad-value") from None
        if not str(value).startswith(_RUNS_ON_DEVICE):
            raise Refused("bad-value")


def _check_guards(change: ChangeMessage, table: Table) -> None:
    for path in change.fields:
        if table.field_at(path).guarded and path not in change.guards:
            raise Refused("guard-missing")
    for path, value in change.guards.items():
        if path not in change.fields or not table.field_at(path).guarded:
            raise Refused("bad-value")
        try:
            check_value(value)
        except Invalid:
            raise Refused("bad-value") from None


def _check_signature(change: ChangeMessage, table: Table, writer: Writer, place: Place) -> None:
    signature = change.signature
    if signature is None:
        if table.authority or change.op == FLIP:
            raise Refused("signature-missing")
        return
    try:
        value = unb64(signature.value)
        if len(value) != SIGNATURE_BYTES:
            raise Refused("signature-rejected")
        if writer.kind is WriterKind.RUNNER:
            if signature.signer != f"runner:{writer.key_id}":
                raise Refused("signature-rejected")
        elif signature.signer != writer.device_id or place.device_key is None:
            raise Refused("signature-rejected")
        else:
            verify = verify_reseal if change.op == RESEAL else verify_change
            verify(place.device_key, facts_of(place.space_id, change), value)
    except (CryptoFailed, Invalid):
        raise Refused("signature-rejected") from None
