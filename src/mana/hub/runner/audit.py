"""The audit of readings: hash-chained per account, committed before plaintext is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from mana.crypto.signatures import AUDIT_START, audit_hash
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Invalid
from mana.domain.ids import AccountId
from mana.hub.http.endpoints import Call, Query, TextQuery, WholeQuery
from mana.hub.runner.dialogue import AuditEntry
from mana.hub.runner.ledger import AuditFilter
from mana.hub.runner.store import Ledger
from mana.protocol.messages import AuditAnswer, AuditRow

LIMIT_DEFAULT = 200
LIMIT_MAX = 1_000
STATUSES: Final = ("ok", "failed", "scope-violation", "revoked")
AUDIT_QUERY: Final[tuple[Query, ...]] = (
    TextQuery("missionId", "only rows of this mission", 128),
    TextQuery("table", "only rows of this table", 64),
    TextQuery("status", "only rows of this status", 32),
    TextQuery("since", "only rows of this moment or later, ISO", 32),
    TextQuery("until", "only rows before this moment, ISO", 32),
    WholeQuery("before", "only rows with a smaller number; 0: from the newest on"),
    WholeQuery("limit", "rows at most", LIMIT_DEFAULT, 1, LIMIT_MAX, clamps=True),
)


class AuditSetBack(Conflict):
    """The audit is not a continuation of what the runner wrote: an older copy was put back."""

    code = "AUDIT_SET_BACK"
    advice = "Put the newest copy of the database back, or let the runner start with new keys."


def row_hash(row: AuditRow) -> str:
    """Return the hash that a row must have, by its members and the hash before it."""
    members: dict[str, Json] = msgspec.to_builtins(row)
    return audit_hash(
        row.previous,
        {name: value for name, value in members.items() if name not in ("previous", "hash")},
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """What a run reads at one moment, and under what."""

    entries: Sequence[AuditEntry]
    mission_id: str
    iteration_id: str
    grant_id: str
    endpoint: str | None
    runner_key_id: str


class AuditRows(Protocol):
    """The statements that an audit is written with."""

    async def audit_head(self, account: AccountId, start: str) -> tuple[int, str]:
        """Return the head of the account's audit, made with `start` if new, and lock it."""

    async def audit_hash(self, account: AccountId, seq: int) -> str | None:
        """Return the hash of one row."""

    async def append_audit(
        self, account: AccountId, rows: Sequence[AuditRow], *, after: tuple[int, str]
    ) -> bool:
        """Append rows and move the head to the last of them; False: it is not `after` any more."""


async def append(
    rows: AuditRows,
    account: AccountId,
    readings: Sequence[Reading],
    *,
    now_ms: int,
    known: tuple[int, str] | None = None,
) -> list[tuple[int, str]]:
    """Append the rows of readings, in the caller's transaction; return the head after each.

    `known`: the head that was written last by what this runner knows. Mostly that is the head
    still; else what follows it is read. Raises AuditSetBack where the chain lacks it.
    """
    if not any(reading.entries for reading in readings):
        return [known or await rows.audit_head(account, AUDIT_START) for _ in readings]
    ts = iso_ms(now_ms)
    if known is not None:
        made, heads = _chained(readings, known, ts)
        if await rows.append_audit(account, made, after=known):
            return heads
    head = await rows.audit_head(account, AUDIT_START)
    if known is not None and await rows.audit_hash(account, known[0]) != known[1]:
        raise AuditSetBack("the audit lacks a row that was written")
    made, heads = _chained(readings, head, ts)
    if not await rows.append_audit(account, made, after=head):
        raise AuditSetBack("the audit's head is not where its last row is")
    return heads


def _chained(
    readings: Sequence[Reading], head: tuple[int, str], ts: str
) -> tuple[list[AuditRow], list[tuple[int, str]]]:
    """Return the rows of readings after a head, and the head after each of the readings."""
    seq, previous = head
    made: list[AuditRow] = []
    heads: list[tuple[int, str]] = []
    for reading in readings:
        for entry in reading.entries:
            seq += 1
            draft = AuditRow(
                seq=seq,
                mission_id=reading.mission_id,
                iteration_id=reading.iteration_id,
                grant_id=reading.grant_id,
                table_name=entry.table_name,
                record_id=entry.record_id,
                status=entry.status,
                reason=entry.reason,
                endpoint=reading.endpoint,
                runner_key_id=reading.runner_key_id,
                ts=ts,
                previous=previous,
                hash="",
            )
            row = msgspec.structs.replace(draft, hash=row_hash(draft))
            made.append(row)
            previous = row.hash
        heads.append((seq, previous))
    return made, heads


def asked(call: Call) -> AuditFilter:
    """Return which rows a call asks for; raise Invalid for a status or a time that is none."""
    status = call.text("status")
    if status is not None and status not in STATUSES:
        raise Invalid("the status of a reading is one of: " + ", ".join(STATUSES))
    since, until = call.text("since"), call.text("until")
    for moment in (since, until):
        if moment is not None:
            parse_iso_ms(moment)
    return AuditFilter(call.text("missionId"), call.text("table"), status, since, until)


async def answer(ledger: Ledger, account: AccountId, call: Call) -> AuditAnswer:
    """Return the page of the account's audit that is asked for, with the head of its chain."""
    limit = call.whole("limit")
    wanted, before = asked(call), call.whole("before") or None
    found = await ledger.audit_rows(wanted, before=before, limit=limit + 1)
    head_seq, head_hash = await ledger.audit_head(account) or (0, AUDIT_START)
    return AuditAnswer(
        rows=found[:limit], head_seq=head_seq, head_hash=head_hash, more=len(found) > limit
    )
