"""Answers to "may these be opened?": rows of the audit, committed before anything is.

The answers of a batch come from one transaction, which holds the grants, so that none of them ends
before the rows stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from mana.domain.errors import Invalid
from mana.domain.ids import AccountId, OccurrenceId, SpaceId, iteration_id, require_record_id
from mana.hub.runner import audit, endings, gates
from mana.hub.runner.admission import Admitted
from mana.hub.runner.audit import AuditSetBack, Reading
from mana.hub.runner.batches import Batch, Held, by_space
from mana.hub.runner.dialogue import AuditAsk, AuditDone, AuditEntry, Refused
from mana.hub.runner.endings import STOPPED
from mana.hub.runner.ledger import RegisteredGrant
from mana.hub.runner.metrics import Metrics
from mana.hub.runner.shared import Setting, log
from mana.hub.runner.store import RunnerStore
from mana.hub.runner.warm import UNKNOWN_TABLE, plain_tables

ENTRIES_MAX: Final = 1_000
"""More than a run announces at once: its inputs, and what three earlier runs wrote."""


@dataclass(frozen=True, slots=True)
class AskedReading:
    """What a run asks to open."""

    admitted: Admitted
    ask: AuditAsk


def is_reading(admitted: Admitted, ask: AuditAsk) -> bool:
    """Say whether these are words that the audit knows, of no more than a run opens.

    A worker has read text that may be an attacker's; none of it may stand in a plain row.
    """
    return (
        len(ask.entries) <= ENTRIES_MAX
        and len(ask.endpoints) == len(set(ask.endpoints))
        and set(ask.endpoints) <= set(admitted.header.endpoints)
        and all(_is_row(one) for one in ask.entries)
    )


def _is_row(entry: AuditEntry) -> bool:
    try:
        require_record_id(entry.record_id)
    except Invalid:
        return False
    return (
        (entry.table_name == UNKNOWN_TABLE or entry.table_name in plain_tables())
        and entry.status in audit.STATUSES
        and (entry.reason is None or endings.is_skip(entry.reason))
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    """A reading with its rows as they will stand, and why it is refused, if it is."""

    asked: AskedReading
    reading: Reading
    refusal: str | None


class Auditing:
    """Commits the readings of batches of runs of one account."""

    def __init__(self, store: RunnerStore, setting: Setting, metrics: Metrics) -> None:
        self._store = store
        self._setting = setting
        self._metrics = metrics

    async def note(self, asked: Sequence[AskedReading]) -> list[AuditDone | Refused | None]:
        """Return an answer for each reading; None: its lease is another's by now."""
        found: dict[OccurrenceId, AuditDone | Refused] = {}
        by_lease = {one.admitted.lease.occurrence_id: one for one in asked}
        for space, leases in by_space(one.admitted.lease for one in asked).items():
            some = [by_lease[lease.occurrence_id] for lease in leases]
            found.update(await self._note(leases[0].account_id, space, some))
        return [found.get(one.admitted.lease.occurrence_id) for one in asked]

    async def _note(
        self, account: AccountId, space: SpaceId, asked: Sequence[AskedReading]
    ) -> dict[OccurrenceId, AuditDone | Refused]:
        try:
            judged, heads = await self._store.again(partial(self._commit, account, space, asked))
        except AuditSetBack:
            log.error("audit_set_back", account=account)
            return {
                one.admitted.lease.occurrence_id: Refused(one.ask.run, "set-back") for one in asked
            }
        # A worker hears of it when the runner could not be talked out of it any more.
        if heads:
            # A worker asks once it has verified the grant, with the hub's signature. What only the
            # database says is not remembered: it could refuse for long what the person signed.
            runs = [one.asked.admitted for one in judged]
            named = {(str(space), str(run.lease.mission_id)): run.named_at for run in runs}
            memory = self._setting.memory
            for word in {run.word for run in runs if run.word is not None}:
                await memory.saw_word(account, *word)
            await memory.saw_all(account, named=named, head=heads[-1])
        self._count(judged)
        return {
            one.asked.admitted.lease.occurrence_id: (
                AuditDone(one.asked.ask.run, *head)
                if one.refusal is None
                else Refused(one.asked.ask.run, one.refusal)
            )
            for one, head in zip(judged, heads, strict=True)
        }

    async def _commit(
        self, account: AccountId, space: SpaceId, asked: Sequence[AskedReading]
    ) -> tuple[list[_Judged], list[tuple[int, str]]]:
        """Return what was noted, and the audit's head after each of it."""
        async with self._store.work(account, space=space) as ledger:
            batch = Batch(ledger.tx, space)
            checked = [one.admitted.lease.mission_id for one in asked if one.ask.checked]
            grants = await batch.grants_locked(checked) if checked else {}
            held = await batch.held([one.admitted.lease for one in asked], account)
            judged = [
                self._judged(one, grants.get(one.admitted.lease.mission_id), held)
                for one in asked
                if one.admitted.lease.occurrence_id in held.ids
            ]
            heads = await audit.append(
                batch,
                account,
                [one.reading for one in judged],
                now_ms=held.now_ms,
                known=self._setting.memory.head(account),
            )
        return judged, heads

    def _judged(self, asked: AskedReading, grant: RegisteredGrant | None, held: Held) -> _Judged:
        admitted, ask = asked.admitted, asked.ask
        refusal = self._refusal(admitted, grant, held.role) if ask.checked else None
        if refusal is None and ask.checked and admitted.lease.occurrence_id in held.stopped:
            refusal = STOPPED
        entries = ask.entries
        if refusal is not None:
            status = "revoked" if refusal == "revoked" else "failed"
            entries = [
                AuditEntry(one.table_name, one.record_id, status, refusal) for one in entries
            ]
        lease, header = admitted.lease, admitted.header
        reading = Reading(
            entries,
            mission_id=lease.mission_id,
            iteration_id=iteration_id(lease.mission_id, admitted.job.scheduled_for),
            grant_id=header.grant_id,
            endpoint=" ".join(ask.endpoints) or None,
            runner_key_id=header.runner_key_id,
        )
        return _Judged(asked, reading, refusal)

    def _refusal(
        self, admitted: Admitted, grant: RegisteredGrant | None, role: str | None
    ) -> str | None:
        """Return why nothing is opened under a grant any more, None if it may be."""
        header = admitted.header
        if grant is None or grant.grant_id != header.grant_id:
            return "revoked"
        if grant.header != admitted.job.grant.header:
            return "scope-mismatch"
        refusal = self._setting.grant_refusal(grant) or gates.register_refusal(grant, header)
        if refusal is None and role in (None, "viewer"):
            return "not-a-member"
        return refusal

    def _count(self, judged: Sequence[_Judged]) -> None:
        for one in judged:
            for entry in one.reading.entries:
                if entry.status == "scope-violation":
                    self._metrics.scope_violations.labels(entry.table_name).inc()
