"""Money on the hub: no cap is passed, whoever reserves at the same time, and sums are the rows'."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import timedelta

import pytest

from mana.domain.encoding import canonical_json
from mana.domain.errors import Invalid
from mana.domain.money import FREE, Price
from mana.hub.db import AccessRefused, Role, migrate, read_migrations
from mana.hub.db.urls import url_as
from mana.hub.money.store import (
    Granted,
    Refusal,
    Run,
    Settlement,
    account_today,
    agent_today,
    agents_today,
    caps_of,
)
from mana.hub.money.store import reserve as reserve_in
from mana.hub.money.store import settle as settle_in
from mana.hub.tenants import Tenant
from mana.planning.budget import Cap, budget_reason, fitting_all
from mana.planning.ports import (
    CAP_SCOPES,
    BudgetExceeded,
    CapScope,
    CapUnit,
    PriceUnknown,
    Usage,
)
from mana.testing.postgres import Database, connected, opened_tenancy
from tests.runner.bank import HUBS_SUMS, SUMS, Bank, bank
from tests.upgrade.before import FOLDERS, read, restore

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

PRICE = Price(1_000_000, 3_000_000)
THIS_HOUR = "select date_trunc('hour', clock_timestamp(), 'UTC')"
UNITS: tuple[CapUnit, ...] = ("tokens", "cost")


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("scope", CAP_SCOPES)
async def test_exactly_at_the_cap_and_one_above(
    database: Database, scope: CapScope, unit: CapUnit
) -> None:
    """A call that fills a cap is granted; one token or millionth more is refused, and says why."""
    async with bank(database) as made:
        call = made.ask(100, 200, price=PRICE)
        needs = 300 if unit == "tokens" else 700
        await made.cap(scope, unit, needs - 1)
        assert await made.reserve(call) == [
            Refusal(budget_reason(needs - 1, needs - 1, scope, unit))
        ]
        await made.cap(scope, unit, needs)
        (granted,) = await made.reserve(call)
        assert isinstance(granted, Granted)
        assert granted.completion_tokens_max == 200
        assert await made.used(scope, unit) == needs
        assert await made.reserve(call) == [Refusal(budget_reason(0, needs, scope, unit))]
        await made.cap(scope, unit, 0)
        free = made.ask(0, 1, price=FREE)
        assert await made.reserve(free) == [Refusal(budget_reason(0, 0, scope, unit))]
        await made.cap(scope, unit, None)
        assert isinstance((await made.reserve(call))[0], Granted)
        await made.check()


async def test_a_shorter_reply_down_to_the_floor(database: Database) -> None:
    """Where less is left the reply is shorter, by tokens and by costs, but never below the floor."""
    async with bank(database) as made:
        await made.cap("agent", "tokens", 2_000)
        assert (await made.granted(1_000, 4_096)).completion_tokens_max == 1_000
        await made.cap("agent", "tokens", 3_256)
        assert (await made.granted(1_000, 4_096)).completion_tokens_max == 256
        await made.cap("agent", "tokens", 4_511)
        assert await made.reserve(made.ask(1_000, 4_096)) == [
            Refusal("budget:agent:tokens:1255/4511")
        ]
        await made.cap("agent", "tokens", None)
        await made.cap("mission", "cost", 1_000)
        # 100 for the prompt; 3 for each token of the reply.
        granted = await made.granted(100, 4_096, price=PRICE)
        assert granted.completion_tokens_max == 300
        assert await made.used("mission", "cost") == 1_000


async def test_the_smaller_cap_of_an_account_counts(database: Database) -> None:
    """Of what the person and the operator allow an account, the smaller counts."""
    async with bank(database) as made:
        await made.cap("account", "tokens", 5_000)
        await made.owner("update mana_ai.hub_limits set account_tokens_per_day_max = 4_000")
        assert (await made.granted(1_000, 4_096)).completion_tokens_max == 3_000
        await made.owner("update mana_ai.hub_limits set account_tokens_per_day_max = 9_000")
        assert (await made.granted(100, 4_096)).completion_tokens_max == 900
        # Bob set nothing, and the operator's cap is his alone.
        await made.owner("update mana_ai.hub_limits set account_tokens_per_day_max = 1_000")
        (granted,) = await made.reserve(made.ask(100, 4_096), person=made.bob)
        assert isinstance(granted, Granted)
        assert granted.completion_tokens_max == 900


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("scope", CAP_SCOPES)
async def test_calls_are_taken_in_their_order(
    database: Database, scope: CapScope, unit: CapUnit
) -> None:
    """Of several calls at once each counts for those behind it, and a refused one for nobody."""
    async with bank(database) as made:
        needs = 300 if unit == "tokens" else 700
        await made.cap(scope, unit, 2 * needs + 1)
        # They have nothing in common but what the cap is of.
        other = made.run(1 if scope == "mission" else 2, 1 if scope == "agent" else 2)
        found = await made.reserve(
            made.ask(100, 200, price=PRICE),
            made.ask(2_000, 200, price=PRICE, run=other),
            made.ask(100, 200, price=PRICE, run=other),
            made.ask(100, 200, price=PRICE),
        )
        granted = [isinstance(one, Granted) for one in found]
        assert granted == [True, False, True, False]
        assert found[1] == Refusal(budget_reason(needs + 1, 2 * needs + 1, scope, unit))
        assert found[3] == Refusal(budget_reason(1, 2 * needs + 1, scope, unit))
        await made.check()


async def test_what_is_not_there_is_refused(database: Database) -> None:
    """A mission or an agent that the hub does not know, or that is deleted, spends nothing."""
    async with bank(database) as made:
        nobody, nowhere = made.run(agent=9), made.run(mission=9)
        elsewhere = Run(made.bob.space, made.run().mission_id, made.run().agent_id)
        found = await made.reserve(
            *(made.ask(1, 1, run=one) for one in (nobody, nowhere, elsewhere))
        )
        assert found == [
            Refusal("agent-missing"),
            Refusal("mission-not-active"),
            Refusal("mission-not-active"),
        ]
        await made.owner("update mana_ai.agent_snapshots set deleted = true")
        assert await made.reserve(made.ask(1, 1)) == [Refusal("agent-missing")]
        assert await made.value("select count(*) from mana_ai.token_usage") == 0


async def test_a_refused_first_call_hides_no_sum(database: Database) -> None:
    """A cap counts what was used also where the first call under it is refused for its agent."""
    async with bank(database) as made:
        await made.granted(900, 100)
        await made.cap("mission", "tokens", 1_000)
        found = await made.reserve(
            made.ask(1, 1, run=made.run(agent=9)), made.ask(1, 1, run=made.run())
        )
        assert found == [Refusal("agent-missing"), Refusal("budget:mission:tokens:0/1000")]


async def test_costs_need_a_price(database: Database) -> None:
    """Under a cap of costs a model without a price is refused; without one its costs are unknown."""
    async with bank(database) as made:
        await made.granted(10, 300, price=None)
        await made.cap("account", "cost", 10_000)
        assert await made.reserve(made.ask(10, 300, price=None)) == [Refusal("no-price")]
        await made.granted(10, 300, price=FREE)
        assert await made.used("account", "cost") == 0


@pytest.mark.parametrize(
    ("prompt", "reply", "price"),
    [(-1, 1, FREE), (1, -1, FREE), (10**9, 1, FREE), (1, 1, Price(-1, 0)), (1, 1, Price(0, 2**50))],
)
async def test_no_nonsense_is_reserved(
    database: Database, prompt: int, reply: int, price: Price
) -> None:
    """What cannot be a number of tokens or a price is an error before anything is written."""
    async with bank(database) as made:
        with pytest.raises(Invalid):
            await made.reserve(made.ask(1, 1), made.ask(prompt, reply, price=price))
        assert await made.value("select count(*) from mana_ai.token_usage") == 0


async def test_a_cap_lowered_in_the_middle_holds_at_the_next_call(database: Database) -> None:
    """Whoever lowers a cap stops what runs at its next call, and loses no count of what was used."""
    async with bank(database) as made:
        await made.cap("agent", "tokens", 10_000)
        first = await made.granted(1_000, 1_000)
        await made.cap("agent", "tokens", 1_500)
        assert await made.reserve(made.ask(1, 1)) == [Refusal("budget:agent:tokens:0/1500")]
        await made.settle((first, Usage(1_000, 200)))
        assert (await made.granted(100, 200)).completion_tokens_max == 200


async def test_what_was_used_replaces_the_reservation_once(database: Database) -> None:
    """A settlement counts in every sum, the first one stands, and nobody settles another's."""
    async with bank(database) as made:
        granted = await made.granted(1_000, 4_096, price=PRICE)
        assert await made.settle((granted, Usage(1_200, 100)), person=made.bob) == 0
        assert await made.used("mission") == 5_096
        assert await made.settle((granted, Usage(1_200, 100)), (granted, Usage(1, 1))) == 1_300
        assert await made.settle((granted, Usage(2_000, 2_000))) == 0
        for scope in ("mission", "agent", "account", "hub"):
            assert (await made.used(scope), await made.used(scope, "cost")) == (1_300, 1_500)
        assert await made.used("mission", "calls") == 1
        await made.check()


@pytest.mark.parametrize(
    "usage",
    [
        None,
        Usage(74, 100),
        Usage(3_065, 100),
        Usage(1_000, 16_385),
        Usage(10**9, 100),
        Usage(-5, 100),
    ],
)
async def test_an_absurd_report_counts_the_reservation(
    database: Database, usage: Usage | None
) -> None:
    """Neither a report of nearly nothing nor one of a day's worth is believed."""
    async with bank(database) as made:
        granted = await made.granted(1_000, 4_096)
        assert await made.settle((granted, usage)) == 5_096
        assert await made.used("agent") == 5_096
        await made.check()


async def test_a_call_that_no_model_worked_on_counts_nothing(database: Database) -> None:
    """What is given back is there for the next call; it was a call all the same, and is no other's."""
    async with bank(database) as made:
        await made.cap("agent", "tokens", 5_096)
        granted = await made.granted(1_000, 4_096, price=PRICE)
        await made.release(granted)
        assert await made.settle((granted, None)) == 0
        for scope in ("mission", "agent", "account", "hub"):
            assert (await made.used(scope), await made.used(scope, "cost")) == (0, 0)
        assert await made.used("mission", "calls") == 1
        assert (await made.granted(1_000, 4_096)).completion_tokens_max == 4_096
        await made.check()


async def test_what_nobody_confirmed_is_known(database: Database) -> None:
    """A sum tells what providers said apart from what was only reserved."""
    async with bank(database) as made:
        said, unsaid = [await made.granted(1_000, 4_096, price=PRICE) for _ in range(2)]
        await made.granted(10, 20, price=PRICE)
        await made.settle((said, Usage(1_200, 100)), (unsaid, None))
        for scope in ("mission", "agent", "account"):
            assert await made.used(scope) == 1_300 + 5_096 + 30
            assert await made.used(scope, "confirmed_tokens") == 1_300
            assert await made.used(scope, "confirmed_cost") == 1_500
        await made.check()


async def test_settled_in_the_hour_of_the_reservation(database: Database) -> None:
    """What a call of an earlier hour comes to changes that hour, and not the one that runs."""
    async with bank(database) as made:
        granted = await made.granted(1_000, 1_000)
        await made.shift(3)
        await made.settle((granted, Usage(600, 100)))
        assert await made.value("select count(distinct hour) from mana_ai.spend") == 1
        assert await made.used() == 700
        await made.check()


@pytest.mark.parametrize("hours", [24, 25, -5])
@pytest.mark.parametrize("scope", CAP_SCOPES)
async def test_a_day_is_never_too_short(database: Database, scope: CapScope, hours: int) -> None:
    """The 24 hours before this one count, and hours ahead of a clock that was set back."""
    async with bank(database) as made:
        await made.granted(500, 500)
        await made.shift(hours)
        await made.cap(scope, "tokens", 1_000)
        hours_of_now = [await made.value(THIS_HOUR)]
        (found,) = await made.reserve(made.ask(1, 1))
        hours_of_now.append(await made.value(THIS_HOUR))
        used_at = await made.value("select min(hour) from mana_ai.spend")
        # Another hour may begin meanwhile; then either is right.
        day = timedelta(hours=24)
        assert isinstance(found, Refusal) in {now - used_at <= day for now in hours_of_now}


async def test_before_a_run_its_caps_are_seen(database: Database) -> None:
    """What admission is told of caps is what a reservation would count, for many runs at once."""
    async with bank(database) as made:
        await made.granted(400, 600, price=PRICE)
        await made.cap("agent", "tokens", 5_000)
        await made.cap("mission", "cost", 7_000)
        await made.cap("hub", "tokens", 10**12)
        async with made.work() as tx:
            one, two, gone = await caps_of(tx, [made.run(), made.run(2), made.run(9, 9)])
            assert await agent_today(tx, made.space, made.run().agent_id)
        hub = Cap("hub", "tokens", 10**12, 1_000)
        agent = Cap("agent", "tokens", 5_000, 1_000)
        assert one == (Cap("mission", "cost", 7_000, 2_200), agent, hub)
        assert two == (Cap("mission", "cost", 7_000, 0), agent, hub)
        assert gone == (hub,)


def expected(
    caps: dict[tuple[str, str, str], int], used: dict[tuple[str, str, str], int], ask: tuple
) -> Granted | Refusal:
    """Return what the pure rule answers, and count it."""
    mission, agent, prompt, wanted, price = ask
    names = {"mission": mission, "agent": agent, "account": "", "hub": ""}
    given = [
        Cap(scope, unit, caps[scope, names[scope], unit], used.get((scope, names[scope], unit), 0))
        for scope in CAP_SCOPES
        for unit in UNITS
        if (scope, names[scope], unit) in caps
    ]
    try:
        room = fitting_all(prompt, wanted, given, price)
    except BudgetExceeded as error:
        return Refusal(budget_reason(error.left, error.cap, error.scope, error.unit))
    except PriceUnknown:
        return Refusal("no-price")
    cost = 0 if price is None else price.cost(prompt, room)
    for scope, name in names.items():
        for unit, more in (("tokens", prompt + room), ("cost", cost)):
            key = (scope, name, unit)
            used[key] = used.get(key, 0) + more
    return Granted("", prompt, room)


@pytest.mark.parametrize("seed", range(6))
async def test_the_database_keeps_the_pure_rule(database: Database, seed: int) -> None:
    """For any caps, prices and calls the database grants what the pure rule grants; sums add up."""
    dice = random.Random(seed)
    async with bank(database) as made:
        caps: dict[tuple[str, str, str], int] = {}
        for scope, unit in itertools.product(CAP_SCOPES, UNITS):
            if dice.random() < 0.5:
                cap = dice.choice([0, 900, 5_000, 20_000, 60_000])
                await made.cap(scope, unit, cap)
                names = {
                    "mission": [f"mission-{n}" for n in (1, 2, 3)],
                    "agent": [f"agent-{n}" for n in (1, 2)],
                }.get(scope, [""])
                caps |= {(scope, name, unit): cap for name in names}
        if dice.random() < 0.7:  # rarely does a cap of nothing leave anything to see
            for key in [key for key, cap in caps.items() if not cap]:
                del caps[key]
                await made.cap(key[0], key[2], None)  # type: ignore[arg-type]
        used: dict[tuple[str, str, str], int] = {}
        for _ in range(12):
            asks, wanted = [], []
            for _ in range(dice.randint(1, 5)):
                run = made.run(dice.randint(1, 3), dice.randint(1, 2))
                prompt, reply = dice.randint(0, 1_500), dice.randint(0, 2_500)
                price = dice.choice([FREE, PRICE, Price(0, 700_000), Price(333, 0), None])
                asks.append(made.ask(prompt, reply, run=run, price=price))
                wanted.append(
                    expected(caps, used, (run.mission_id, run.agent_id, prompt, reply, price))
                )
            found = await made.reserve(*asks)
            assert [
                Granted("", one.prompt_tokens, one.completion_tokens_max)
                if isinstance(one, Granted)
                else one
                for one in found
            ] == wanted
            for ask, one in zip(asks, found, strict=True):
                if not isinstance(one, Granted) or dice.random() < 0.5:
                    continue
                usage = Usage(one.prompt_tokens // 2 + 1, one.completion_tokens_max // 2)
                await made.settle((one, usage))
                reserved = one.prompt_tokens + one.completion_tokens_max
                price = ask.call.price
                more = usage.total - reserved
                dearer = 0
                if price is not None:
                    before = price.cost(one.prompt_tokens, one.completion_tokens_max)
                    dearer = price.cost(usage.prompt_tokens, usage.completion_tokens) - before
                for scope, name in (
                    ("mission", ask.run.mission_id),
                    ("agent", ask.run.agent_id),
                    ("account", ""),
                    ("hub", ""),
                ):
                    used[scope, str(name), "tokens"] += more
                    used[scope, str(name), "cost"] += dearer
        await made.check()


async def spending(
    made: Bank, dice: random.Random, runner: int, rounds: int, beyond: int
) -> tuple[int, int]:
    """Reserve and settle for both people, by one runner.

    `beyond`: by how much more than was reserved some calls are reported. Returns the tokens that
    count, and by how much all reports together went beyond.
    """
    kept = excess = 0
    waiting: dict[bool, list[Settlement]] = {True: [], False: []}
    for _ in range(rounds):
        is_ada = dice.random() < 0.5
        asks = [
            made.ask(
                dice.randint(10, 60),
                dice.randint(10, 60),
                run=made.run(dice.randint(1, 3), dice.randint(1, 2)),
                price=PRICE,
            )
            for _ in range(dice.randint(1, 4))
        ]
        # As a runner does it: what ended is settled in the transaction that reserves what follows.
        async with made.work(made.ada if is_ada else made.bob, runner) as tx:
            await settle_in(tx, waiting[is_ada])
            found = await reserve_in(tx, asks)
        waiting[is_ada] = []
        for one in found:
            if not isinstance(one, Granted):
                continue
            usage = Usage(one.prompt_tokens, one.completion_tokens_max)
            if dice.random() < 0.5:
                more = dice.randint(0, beyond)
                reply = one.completion_tokens_max if more else 1
                usage = Usage(one.prompt_tokens + more, reply)
                waiting[is_ada].append(Settlement(one, usage))
                excess += more
            kept += usage.total
    for is_ada, settled in waiting.items():
        async with made.work(made.ada if is_ada else made.bob, runner) as tx:
            await settle_in(tx, settled)
    return kept, excess


@pytest.mark.parametrize("beyond", [0, 60])
@pytest.mark.parametrize(("scope", "cap"), [("hub", 9_000), ("agent", 4_000), ("mission", 3_000)])
async def test_many_at_once_never_pass_a_cap(
    database: Database, scope: CapScope, cap: int, beyond: int
) -> None:
    """Many connections pass no cap but by what reports go beyond, and never wait for each other."""
    async with bank(database, runners=3) as made:
        await made.cap(scope, "tokens", cap)
        await made.cap("account", "cost", 10**9)
        done = await asyncio.gather(
            *(spending(made, random.Random(n), n % 3, 25, beyond) for n in range(12))
        )
        assert sum(kept for kept, _ in done) == await made.used("account")
        sums = await made.value(
            "select array_agg(t) from (select sum(tokens)::bigint as t from mana_ai.spend"
            f" where scope = '{scope}' group by space_id, id) s"
            if scope != "hub"
            else "select array[sum(tokens)::bigint] from mana_ai.hub_spend"
        )
        # What is settled goes down again, so a little of a cap may be left.
        assert max(sums) > cap - 200
        assert sum(max(one - cap, 0) for one in sums) <= sum(excess for _, excess in done)
        await made.check()
        deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
        assert await made.value(deadlocks) == 0


@pytest.mark.parametrize("scope", CAP_SCOPES)
async def test_a_sum_is_read_under_its_lock(database: Database, scope: CapScope) -> None:
    """Of two that reserve at the same moment what only one may have, one is refused."""
    async with bank(database, runners=2) as made:
        await made.cap(scope, "tokens", 1_000)
        # They have nothing in common but what the cap is of.
        person = made.ada if scope == "account" else made.bob
        other_run = made.run(1 if scope == "mission" else 2, 1 if scope == "agent" else 2)
        async with made.work() as tx:
            (first,) = await reserve_in(tx, [made.ask(500, 300)])
            other = asyncio.create_task(
                made.reserve(made.ask(500, 300, run=other_run), person=person, runner=1)
            )
            done, _ = await asyncio.wait([other], timeout=0.3)
            assert not done
        assert isinstance(first, Granted)
        assert await other == [Refusal(f"budget:{scope}:tokens:200/1000")]


async def test_nobody_waits_for_an_hub_without_a_cap(database: Database) -> None:
    """Two accounts with nothing in common reserve and settle beside each other, not one by one."""
    async with bank(database) as made:
        await made.granted(1, 1)
        async with made.work() as tx:
            (first,) = await reserve_in(tx, [made.ask(1, 1)])
            (second,) = await made.reserve(made.ask(1, 1, run=made.run(2, 2)), person=made.bob)
            assert isinstance(second, Granted)
            await made.settle((second, Usage(1, 1)), person=made.bob)
        assert isinstance(first, Granted)
        assert await made.value("select count(*) from mana_ai.hub_spend") == 2
        await made.check()


async def test_what_is_old_goes_and_what_is_not_stays(database: Database) -> None:
    """Rows and sums of more than 400 days go when the account reserves again, and no younger ones."""
    async with bank(database) as made:
        await made.granted(1, 1)
        await made.shift(24 * 400 + 1)
        await made.reserve(made.ask(2, 2), person=made.bob)
        await made.shift(24 * 400 - 2)
        assert await made.value("select count(*) from mana_ai.token_usage") == 2
        await made.granted(3, 3)
        found = await made.value("select array_agg(spent order by spent) from mana_ai.token_usage")
        assert found == [4, 6]
        await made.check()


LONG_AGO = """
insert into mana_ai.spend (scope, space_id, id, account_id, hour, tokens)
select k.scope, k.space_id, k.id, '{account}',
       date_trunc('hour', now(), 'UTC') - n * interval '1 hour', 1
  from generate_series(1, 5000) n
 cross join (values ('account', '', '{account}'), ('agent', '{space}', 'agent-1'),
                    ('mission', '{space}', 'mission-1')) as k (scope, space_id, id);
insert into mana_ai.hub_spend (hour, tokens)
select date_trunc('hour', now(), 'UTC') - n * interval '1 hour', 1 from generate_series(1, 5000) n;
insert into mana_ai.token_usage
  (account_id, space_id, agent_id, mission_id, occurrence_id, reserved, spent, ts, settled_at, holder)
select '{account}', '{space}', 'agent-1', 'mission-1', 'occurrence-' || n, 1, 1,
       now() - n * interval '1 hour', case when n % 2 = 0 then now() end,
       case when n % 3 = 0 then 'device' end
  from generate_series(1, 5000) n;
"""
READ = """
select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))
  from pg_stat_xact_user_tables where relname in ('spend', 'hub_spend', 'token_usage')
"""


async def test_a_call_costs_the_same_after_a_year(database: Database) -> None:
    """However long the ledger is, to reserve, to settle and to look at caps reads a day of sums."""
    async with bank(database) as made:
        account = made.ada.account.account_id
        await made.owner(LONG_AGO.format(account=account, space=made.space))
        for scope, unit in itertools.product(CAP_SCOPES, UNITS):
            await made.cap(scope, unit, 10**9)
        for _ in range(2):  # the first in an hour also looks for what is to be forgotten
            async with made.work() as tx:
                before = await tx.value(READ) or 0
                (granted,) = await reserve_in(tx, [made.ask(100, 300, price=PRICE)])
                assert isinstance(granted, Granted)
                assert await settle_in(tx, [Settlement(granted, Usage(100, 10))]) == 110
                await caps_of(tx, [made.run()])
                await agent_today(tx, made.space, made.run().agent_id)
                await agents_today(tx)
                await account_today(tx)
                # Sums of 25 hours: four in the reservation and in the look at caps, and three more.
                assert await tx.value(READ) - before < 25 * 11 + 50


@pytest.mark.parametrize("role", [Role.APP, Role.RUNNER])
@pytest.mark.parametrize(
    "statement",
    [
        "delete from mana_ai.token_usage",
        "delete from mana_ai.spend",
        "update mana_ai.spend set tokens = 0 where account_id <> mana.current_account()",
        (
            "update mana_ai.token_usage set spent = 0, settled_at = null"
            " where account_id <> mana.current_account()"
        ),
        (
            "insert into mana_ai.spend (scope, id, account_id, hour)"
            " select 'account', account_id, account_id, hour from mana_ai.spend"
            " where account_id <> mana.current_account()"
        ),
        "update mana_ai.token_usage set reserved = 0",
    ],
)
async def test_nobody_writes_down_what_was_spent(
    database: Database, role: Role, statement: str
) -> None:
    """Neither role removes what is young or touches what another account spent."""
    async with bank(database) as made:
        await made.granted(10, 10)
        await made.reserve(made.ask(10, 10), person=made.bob)
        tenant = Tenant(made.ada.account.account_id)
        async with opened_tenancy(made.database, role=role) as tenancy:
            try:
                async with tenancy.transaction(tenant) as tx:
                    assert await tx.execute(statement) == 0
            except AccessRefused:
                pass
        assert await made.used() == 40
        await made.check()


async def test_the_smaller_of_a_cap_and_its_grants_counts(database: Database) -> None:
    """What a grant says of its mission and agent holds whatever they say now, on the hub alone; and
    an agent's day is counted also where the first run of a batch has a grant without caps."""
    async with bank(database) as made:
        await granted(made, 2, missionTokens=500, missionCost=None, agentTokens=300, agentCost=None)
        await made.granted(200, 50, run=made.run(1))
        async with made.work() as tx:
            found = await caps_of(tx, [made.run(1), made.run(2)])
        assert found == [(), (Cap("mission", "tokens", 500, 0), Cap("agent", "tokens", 300, 250))]
        await made.cap("mission", "tokens", 400)
        await made.cap("agent", "tokens", 9_000)
        async with made.work() as tx:
            found = await caps_of(tx, [made.run(1), made.run(2)])
        assert found[1] == (Cap("mission", "tokens", 400, 0), Cap("agent", "tokens", 300, 250))
        asks = [made.ask(10, 10, run=made.run(1)), made.ask(60, 10, run=made.run(2))]
        kept, refused = await made.reserve(*asks)
        assert isinstance(kept, Granted)
        assert refused == Refusal("budget:agent:tokens:30/300")
        async with made.work() as tx:
            by_device = await tx.all(
                "select * from mana_ai.caps_of($1, $2, $3, false)",
                [made.space],
                ["mission-2"],
                ["agent-1"],
            )
        assert (by_device[0]["mission_token_cap"], by_device[0]["agent_token_cap"]) == (400, 9_000)


async def granted(made: Bank, mission: int, **caps: int | None) -> None:
    """Let a mission have an active grant with these caps in its header."""
    header = {"accountId": made.ada.account.account_id, "agentId": "agent-1", "caps": caps}
    await made.owner(
        "insert into mana_ai.grants (grant_id, account_id, space_id, mission_id, agent_id, header,"
        " suite, runner_key_id, expires_at, state, wrapped_key, sealed_keys)"
        f" values ('grant-{mission}', '{made.ada.account.account_id}', '{made.space}',"
        f" 'mission-{mission}', 'agent-1', '{canonical_json(header).decode()}', 's', 'k',"
        " now() + interval '1 day', 'active', 'w', 's')"
    )


OWNED = """
do $$
declare
  name text;
begin
  if not exists (select from pg_roles where rolname = 'other_owner') then
    create role other_owner login;
  end if;
  execute format('grant connect, create on database %I to other_owner', current_database());
  for name in select format('%I.%I', schemaname, tablename) from pg_tables
               where schemaname in ('mana', 'mana_ai')
  loop
    execute format('alter table %s owner to other_owner', name);
  end loop;
  alter schema mana owner to other_owner;
  alter schema mana_ai owner to other_owner;
end
$$
"""
USED = """
insert into mana_ai.token_usage
  (account_id, space_id, agent_id, mission_id, occurrence_id, reserved, spent, ts, prompt_tokens)
select a.account_id, (select min(space_id) from mana.spaces), 'agent-' || n % 2, 'mission-' || n % 3,
       'occurrence', 100, 10 * n, now() - n * interval '5 hours', nullif(n % 3, 0)
  from mana.accounts a cross join generate_series(1, 20) n
"""


@pytest.mark.parametrize("is_superuser", [True, False])
async def test_sums_are_made_of_what_was_used_before(
    empty_database: Database, is_superuser: bool
) -> None:
    """A hub of a version without sums has them after the upgrade, whoever owns the database."""
    before, url = read(FOLDERS[0]), empty_database.owner_url
    await restore(url, before)
    migrations = read_migrations()
    await migrate(url, [one for one in migrations if one.number < 11])
    async with connected(url) as owner:
        await owner.execute(USED)
        if not is_superuser:
            await owner.execute(OWNED)
    await migrate(
        url if is_superuser else url_as(url, "other_owner"),
        [one for one in migrations if one.number <= 13],
    )
    async with connected(url) as owner:
        assert await owner.fetchval("select sum(tokens) from mana_ai.hub_spend") > 0
        confirmed = "select sum(confirmed_tokens) between 1 and sum(tokens) - 1 from mana_ai.spend"
        assert await owner.fetchval(confirmed)
        assert await owner.fetchval(SUMS) == 0
        assert await owner.fetchval(HUBS_SUMS) == 0
