"""Reservations of tokens and their settlement, committed before and after each call of a model.

What a call came to goes along with the next reservation of its run, or with the run's end; until
then the reservation counts in full. What a run broke off with, or whose lease is another's by now,
is settled by itself, and in the occurrence's sum whoever ended it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mana.domain.ids import OccurrenceId
from mana.hub.money import store as money
from mana.hub.runner.admission import Admitted
from mana.hub.runner.batches import Batch, by_space
from mana.hub.runner.dialogue import Granted, Refused, ReserveAsk, SettleAsk
from mana.hub.runner.endings import STOPPED
from mana.hub.runner.metrics import Metrics
from mana.hub.runner.store import RunnerStore, Transaction
from mana.planning.budget import is_sane
from mana.planning.ports import ModelCall, Usage


@dataclass(frozen=True, slots=True)
class Settle:
    """A call of a run that ended, and the reservation that it was made from.

    `released`: it is believed that no model worked on it.
    """

    admitted: Admitted
    ask: SettleAsk
    granted: money.Granted
    released: bool = False


@dataclass(frozen=True, slots=True)
class Reserve:
    """A call that a run is about to make, at a price that the runner knows.

    `settled`: calls of the run that ended before it.
    """

    admitted: Admitted
    ask: ReserveAsk
    call: ModelCall
    settled: Sequence[Settle] = ()


@dataclass(frozen=True, slots=True)
class Reserved:
    """What a run was granted: what it hears, and what it settles later."""

    answer: Granted
    granted: money.Granted


class Spending:
    """Commits reservations and settlements of batches of runs of one account."""

    def __init__(self, store: RunnerStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    async def spend(
        self, asked: Sequence[Reserve | Settle]
    ) -> list[Reserved | Granted | Refused | None]:
        """Return an answer for each; None: its lease is another's by now, and nothing is settled."""
        reserves = [one for one in asked if isinstance(one, Reserve)]
        alone = [one for one in asked if isinstance(one, Settle)]
        settled, tokens, by_run = await self._store.again(partial(self._commit, alone, reserves))
        count(self._metrics, settled, tokens)
        return [
            Granted(one.ask.run, one.ask.reservation)
            if isinstance(one, Settle)
            else _heard(one.ask.run, by_run)
            for one in asked
        ]

    async def _commit(
        self, alone: Sequence[Settle], reserves: Sequence[Reserve]
    ) -> tuple[Sequence[Settle], int, dict[int, money.Granted | money.Refusal]]:
        """Return what was settled, its tokens, and the answers to the reservations, by run."""
        account = (alone or reserves)[0].admitted.lease.account_id
        tokens = 0
        async with self._store.work(account) as ledger:
            ended = [one.admitted.lease.occurrence_id for one in alone]
            if ended:
                await ledger.lock(ended)
            held: set[OccurrenceId] = set()
            stopped: set[OccurrenceId] = set()
            for space, leases in by_space(one.admitted.lease for one in reserves).items():
                found = await Batch(ledger.tx, space).held(leases, account)
                held |= found.ids
                stopped |= found.stopped
            mine = [one for one in reserves if one.admitted.lease.occurrence_id in held]
            settles = [*alone, *(settled for one in mine for settled in one.settled)]
            # Money comes last: what it locks is held until the end.
            if settles:
                tokens = await settle(ledger.tx, settles)
            if ended:
                await ledger.sum_up(ended)
            current = [one for one in mine if one.admitted.lease.occurrence_id not in stopped]
            answers: Sequence[money.Granted | money.Refusal] = []
            if current:
                answers = await money.reserve(ledger.tx, [_for(one) for one in current])
        told = {one.ask.run: answer for one, answer in zip(current, answers, strict=True)}
        for one in mine:
            if one.admitted.lease.occurrence_id in stopped:
                # After a stop nothing is begun any more that costs something.
                told[one.ask.run] = money.Refusal(STOPPED)
        return settles, tokens, told


async def settle(tx: Transaction, settles: Sequence[Settle]) -> int:
    """Replace reservations by what was used; return the tokens that count. See `money.settle`."""
    return await money.settle(
        tx, [money.Settlement(one.granted, _usage(one.ask), one.released) for one in settles]
    )


def count(metrics: Metrics, settles: Sequence[Settle], tokens: int) -> None:
    """Count calls that are settled, and what they came to together."""
    metrics.tokens.inc(tokens)
    for one in settles:
        metrics.call_seconds.observe(max(one.ask.seconds, 0.0))


def _heard(
    run: int, answers: Mapping[int, money.Granted | money.Refusal]
) -> Reserved | Refused | None:
    answer = answers.get(run)
    if answer is None:
        return None
    if isinstance(answer, money.Refusal):
        return Refused(run, answer.reason)
    heard = Granted(run, answer.reservation, answer.completion_tokens_max)
    return Reserved(heard, answer)


def _for(one: Reserve) -> money.ReserveFor:
    lease = one.admitted.lease
    return money.ReserveFor(
        money.Run(lease.space_id, lease.mission_id, one.admitted.agent.agent_id),
        lease.occurrence_id,
        one.ask.prompt_tokens,
        one.ask.completion_tokens_max,
        one.call,
    )


def _usage(ask: SettleAsk) -> Usage | None:
    """Return what a worker says that a call used, None where that cannot be numbers of tokens."""
    prompt, completion = ask.prompt_tokens, ask.completion_tokens
    if prompt is None or completion is None or not is_sane(prompt, completion):
        return None
    return Usage(prompt, completion)
