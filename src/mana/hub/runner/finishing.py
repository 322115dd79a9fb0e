"""Ends of runs: iteration, steps, ledger and next moment, all or nothing.

What finished in the meantime goes into one transaction. It asks again for all that could have
changed since the run was admitted, because a run may take minutes and a stop must stop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from mana.domain.ids import (
    AccountId,
    OccurrenceId,
    SpaceId,
    derived_id,
    iteration_id,
    step_id,
)
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.policy import DECISIONS
from mana.hub.runner import endings, gates, spending
from mana.hub.runner.admission import Admitted
from mana.hub.runner.batches import Batch, Facts, by_space
from mana.hub.runner.dialogue import Counts, Finished, Stopped
from mana.hub.runner.endings import STOPPED, Outcome
from mana.hub.runner.metrics import Metrics
from mana.hub.runner.prices import RULES
from mana.hub.runner.progress import NUMBER_MAX
from mana.hub.runner.queue import End
from mana.hub.runner.scheduling import Locked
from mana.hub.runner.shared import Append, Setting
from mana.hub.runner.spending import Settle
from mana.hub.runner.store import Ledger, RunnerStore
from mana.hub.runner.warm import plain_tables, plain_tools
from mana.planning.reminders import PRODUCERS, SEVERITIES

FOLDED_MAX: Final = 64
"""More than a run and its sub-agents fold."""
_LOST: Final = Outcome("leased", took=False)
_REFUSED: Final[Mapping[str, Outcome]] = {
    "stale-key": Outcome("skipped", "key-rotated"),
    "role": Outcome("skipped", "not-a-member"),
    # The database's clock was set back while it ran. It is leased anew, with stamps of now.
    "clock-ahead": _LOST,
}
"""What a refusal of the log means for a run; any other is a defect."""


@dataclass(frozen=True, slots=True)
class Ending:
    """A run and what it came to. `provider`: a word for the model that it called last.

    `settled`: calls that ended and are not settled yet.
    """

    admitted: Admitted
    said: Finished | Stopped
    provider: str = RULES
    settled: Sequence[Settle] = ()


class Finishing:
    """Ends batches of runs of one account. `reach` is told each named place."""

    def __init__(
        self,
        store: RunnerStore,
        append: Append,
        setting: Setting,
        metrics: Metrics,
        reach: Callable[[str], None],
    ) -> None:
        self._store = store
        self._append = append
        self._setting = setting
        self._metrics = metrics
        self._reach = reach

    async def finish(self, ends: Sequence[Ending]) -> list[Outcome]:
        """Return what became of each run, when that is committed."""
        outcomes: dict[OccurrenceId, Outcome] = {}
        by_lease = {one.admitted.lease.occurrence_id: one for one in ends}
        for space, leases in by_space(one.admitted.lease for one in ends).items():
            some = [by_lease[lease.occurrence_id] for lease in leases]
            account = leases[0].account_id
            found, tokens = await self._store.again(partial(self._commit, account, space, some))
            self._reach("after_commit")
            spending.count(self._metrics, _settled(some, found), tokens)
            outcomes.update(found)
        for one in ends:
            self._count(one, outcomes[one.admitted.lease.occurrence_id])
        return [outcomes[one.admitted.lease.occurrence_id] for one in ends]

    async def _commit(
        self, account: AccountId, space: SpaceId, ends: Sequence[Ending]
    ) -> tuple[dict[OccurrenceId, Outcome], int]:
        """Write what the runs of one space came to, in one transaction.

        Returns what became of each, and the tokens of the calls that were settled with them: those
        of runs whose lease is another's by now are not.
        """
        tokens = 0
        writes = any(isinstance(one.said, Finished) for one in ends)
        # The log's head is locked before the missions, as a push does, so that neither waits for
        # the other.
        async with self._store.work(account, space=space, locked=writes) as ledger:
            leases = [one.admitted.lease for one in ends]
            locked = await ledger.missions_locked([(space, lease.mission_id) for lease in leases])
            facts = await Batch(ledger.tx, space).facts(leases, account)
            outcomes: dict[OccurrenceId, Outcome] = {}
            finished: list[tuple[Ending, Finished]] = []
            for one in ends:
                lease = one.admitted.lease
                against = self._against(one, facts, locked)
                if against is not None:
                    outcomes[lease.occurrence_id] = against
                elif isinstance(one.said, Finished):
                    finished.append((one, one.said))
            outcomes.update(await self._write(ledger, account, space, finished, facts.held.now_ms))
            ending = [one for one in ends if outcomes[one.admitted.lease.occurrence_id].took]
            ended = await endings.end_all(
                ledger,
                [_end(one, outcomes[one.admitted.lease.occurrence_id]) for one in ending],
                locked=locked,
            )
            for one, outcome in zip(ending, ended, strict=True):
                outcomes[one.admitted.lease.occurrence_id] = outcome
            settles = _settled(ends, outcomes)
            if settles:
                # Money comes last: what it locks is held until the end. The rows are ours by then.
                tokens = await spending.settle(ledger.tx, settles)
                await ledger.sum_up(one.admitted.lease.occurrence_id for one in settles)
            if writes:
                self._reach("before_commit")
        return outcomes, tokens

    def _against(self, one: Ending, facts: Facts, locked: Locked) -> Outcome | None:
        """Return how a run ends that does not end as done; None: it does, if the log takes it."""
        lease = one.admitted.lease
        if lease.occurrence_id not in facts.held.ids:
            return _LOST
        is_stopped = isinstance(one.said, Stopped) and one.said.reason == STOPPED
        if is_stopped or lease.occurrence_id in facts.held.stopped:
            # What a run was stopped for, where it is more than a word to stop, is the better reason.
            refusal = self._refusal(one.admitted, facts, locked)
            return Outcome("skipped", refusal) if refusal else Outcome("failed", STOPPED)
        if isinstance(one.said, Stopped):
            if one.said.outcome == "skipped" and endings.is_skip(one.said.reason):
                return Outcome("skipped", one.said.reason)
            return Outcome("failed", endings.failure_of(one.said.reason))
        refusal = self._refusal(one.admitted, facts, locked)
        return None if refusal is None else Outcome("skipped", refusal)

    def _refusal(self, admitted: Admitted, facts: Facts, locked: Locked) -> str | None:
        """Return why what was allowed when the run began is not allowed any more."""
        if facts.held.role in (None, "viewer"):
            return "not-a-member"
        lease = admitted.lease
        mission = locked[1].get((lease.space_id, lease.mission_id))
        refusal = gates.mission_refusal(mission)
        if refusal is not None or mission is None:
            return refusal
        if mission.agent_id != admitted.agent.agent_id:
            return "scope-mismatch"
        refusal = gates.agent_refusal(facts.agents.get(admitted.agent.agent_id))
        if refusal is not None:
            return refusal
        grant = facts.grants.get(lease.mission_id)
        if grant is not None and grant.grant_id != admitted.header.grant_id:
            return "revoked"
        return self._setting.grant_refusal(grant)

    async def _write(
        self,
        ledger: Ledger,
        account: AccountId,
        space: SpaceId,
        finished: Sequence[tuple[Ending, Finished]],
        now_ms: int,
    ) -> dict[OccurrenceId, Outcome]:
        """Append what runs wrote; what the log refuses of one leaves the others as they are."""
        by_key: dict[str, list[tuple[Ending, Finished]]] = {}
        for pair in finished:
            by_key.setdefault(pair[0].admitted.header.runner_key_id, []).append(pair)
        outcomes: dict[OccurrenceId, Outcome] = {}
        for key_id, pairs in by_key.items():
            changes = [change for _, said in pairs for change in said.changes]
            codes = iter(
                await self._append(ledger.tx, account, space, changes, key_id=key_id, now_ms=now_ms)
            )
            for one, said in pairs:
                mine = [next(codes) for _ in said.changes]
                outcomes[one.admitted.lease.occurrence_id] = _taken(mine)
        return outcomes

    def _count(self, one: Ending, outcome: Outcome) -> None:
        endings.count(self._metrics, outcome, provider=one.provider)
        if isinstance(one.said, Finished):
            self._metrics.plans_produced.inc()
            if outcome.took and outcome.state == "done":
                self._metrics.plans_written_back.inc()
                self._count_plan(one.said.counts)

    def _count_plan(self, counts: Counts) -> None:
        metrics = self._metrics
        metrics.rounds.observe(counts.rounds)
        for table, number in counts.opened.items():
            metrics.decrypts.labels(table).inc(number)
        for call, number in counts.tool_calls.items():
            tool, _, policy = call.partition(":")
            metrics.tool_calls.labels(tool, policy, "deferred").inc(number)
        for rule, number in counts.reminders.items():
            producer, _, severity = rule.partition(":")
            metrics.reminders.labels(producer, severity).inc(number)
        for messages in counts.folded:
            metrics.compactions.inc()
            metrics.compacted_turns.observe(messages)


def is_own(admitted: Admitted, said: Finished) -> bool:
    """Say whether a worker wrote its own iteration and steps, and nothing else.

    A worker has read text that may be an attacker's; what it hands back is not believed.
    """
    lease = admitted.lease
    iteration = iteration_id(lease.mission_id, admitted.job.scheduled_for)
    first, *steps = [(change.table, change.id) for change in said.changes] or [("", "")]
    return (
        said.iteration_id == iteration
        and first == (ITERATIONS.name, iteration)
        and steps == [(STEPS.name, step_id(iteration, place)) for place in range(len(steps))]
        and all(
            # Their ids are their own too: what another run writes must not be taken for these.
            change.change_id == derived_id("change", change.id, str(lease.fence), "run")
            and change.group == derived_id("group", iteration, str(lease.fence))
            and change.author_id == lease.account_id
            and change.actor.get("missionId") == lease.mission_id
            and change.actor.get("iterationId") == iteration
            and change.actor.get("principalId") == admitted.agent.agent_id
            for change in said.changes
        )
    )


def are_figures(counts: Counts) -> bool:
    """Say whether these can be the figures of a run, by names of this installation alone."""
    calls = [call.partition(":") for call in counts.tool_calls]
    rules = [rule.partition(":") for rule in counts.reminders]
    numbers = (
        counts.rounds,
        counts.prompt_tokens,
        counts.completion_tokens,
        *counts.tool_calls.values(),
        *counts.opened.values(),
        *counts.reminders.values(),
        *counts.folded,
    )
    return (
        all(table in plain_tables() for table in counts.opened)
        and all(tool in plain_tools() and word in DECISIONS for tool, _, word in calls)
        and all(producer in PRODUCERS and word in SEVERITIES for producer, _, word in rules)
        and len(counts.folded) <= FOLDED_MAX
        and all(0 <= number <= NUMBER_MAX for number in numbers)
    )


def _settled(ends: Sequence[Ending], outcomes: Mapping[OccurrenceId, Outcome]) -> list[Settle]:
    """Return the calls of those runs that ended here."""
    took = [one for one in ends if outcomes[one.admitted.lease.occurrence_id].took]
    return [settled for one in took for settled in one.settled]


def _end(one: Ending, outcome: Outcome) -> End:
    """Return the line of the ledger for a run that ended so."""
    iteration, wait_ms = None, 0
    if isinstance(one.said, Stopped):
        wait_ms = one.said.retry_after_ms or 0
    elif outcome.state == "done":
        iteration = one.said.iteration_id
    return End(one.admitted.lease, outcome.state, outcome.reason, iteration, wait_ms)


def _taken(codes: Sequence[str | None]) -> Outcome:
    """Return how a run ends by what the log said to its changes."""
    refused = [code for code in codes if code is not None]
    if not refused:
        return Outcome("done")
    code = next((one for one in refused if one != "group-refused"), refused[0])
    if code == "immutable":
        # A device ran this very occurrence before: the first iteration counts.
        return Outcome("done")
    return _REFUSED.get(code, Outcome("failed", "internal"))
