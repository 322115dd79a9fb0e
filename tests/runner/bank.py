"""Two people, agents and missions with caps, and what the ledger says of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from mana.domain.ids import AccountId, AgentId, MissionId, OccurrenceId, SpaceId
from mana.domain.money import FREE, Price
from mana.hub.db import Role, Tenancy, Transaction
from mana.hub.money.store import (
    Granted,
    Refusal,
    ReserveFor,
    Run,
    Settlement,
    caps_of,
    reserve,
    settle,
)
from mana.hub.tenants import Tenant
from mana.planning.budget import Cap
from mana.planning.ports import CapScope, CapUnit, ModelCall, Purpose, Usage
from mana.testing.postgres import Database, connected, opened_tenancy
from tests.hub.client import Person, served_hub

SUMS = """
with rows as (
  select u.*, date_trunc('hour', u.ts, 'UTC') as hour from mana_ai.token_usage u),
wanted as (
  select k.scope, k.space_id, k.id, r.account_id, r.hour, sum(r.spent)::bigint as tokens,
         sum(r.cost)::bigint as cost, sum(r.calls)::bigint as calls,
         sum(r.confirmed_tokens)::bigint as confirmed_tokens,
         sum(r.confirmed_cost)::bigint as confirmed_cost
    from rows r cross join lateral (values
      ('account', '', r.account_id), ('agent', r.space_id, r.agent_id),
      ('mission', r.space_id, r.mission_id)) as k (scope, space_id, id)
   group by 1, 2, 3, 4, 5)
select count(*) from wanted w full join mana_ai.spend s
    using (scope, space_id, id, account_id, hour)
 where (w.tokens, w.cost, w.calls, w.confirmed_tokens, w.confirmed_cost)
       is distinct from (s.tokens, s.cost, s.calls, s.confirmed_tokens, s.confirmed_cost)
"""
HUBS_SUMS = """
select count(*) from
  (select date_trunc('hour', ts, 'UTC') as hour, sum(spent) as tokens, sum(cost) as cost,
          sum(calls) as calls from mana_ai.token_usage where for_hub group by 1) w
  full join
  (select hour, sum(tokens) as tokens, sum(cost) as cost, sum(calls) as calls
     from mana_ai.hub_spend group by 1) s using (hour)
 where (w.tokens, w.cost, w.calls) is distinct from (s.tokens, s.cost, s.calls)
"""
COLUMNS = {"tokens": "max_tokens_per_day", "cost": "max_cost_per_day"}


@dataclass
class Bank:
    """One shared space of Ada and Bob, in which both let missions run."""

    database: Database
    ada: Person
    bob: Person
    tenancies: Sequence[Tenancy]
    """Of the runner's role: one for each runner."""

    @property
    def space(self) -> SpaceId:
        return self.ada.space

    def run(self, mission: int = 1, agent: int = 1) -> Run:
        return Run(self.space, MissionId(f"mission-{mission}"), AgentId(f"agent-{agent}"))

    def ask(
        self,
        prompt: int,
        reply: int,
        *,
        run: Run | None = None,
        price: Price | None = FREE,
        purpose: Purpose = "plan",
    ) -> ReserveFor:
        call = ModelCall("https://model.test", "some", price, purpose)
        return ReserveFor(run or self.run(), OccurrenceId("occurrence-1"), prompt, reply, call)

    @contextlib.asynccontextmanager
    async def work(
        self, person: Person | None = None, runner: int = 0
    ) -> AsyncIterator[Transaction]:
        account = AccountId((person or self.ada).account.account_id)
        async with self.tenancies[runner].transaction(Tenant(account)) as tx:
            yield tx

    async def reserve(
        self, *asks: ReserveFor, person: Person | None = None, runner: int = 0
    ) -> list[Granted | Refusal]:
        async with self.work(person, runner) as tx:
            return await reserve(tx, asks)

    async def granted(self, prompt: int, reply: int, **options: Any) -> Granted:
        (found,) = await self.reserve(self.ask(prompt, reply, **options))
        assert isinstance(found, Granted), found
        return found

    async def caps(self, tx: Transaction) -> tuple[Cap, ...]:
        (found,) = await caps_of(tx, [self.run()])
        return found

    async def settle(
        self, *settled: tuple[Granted, Usage | None], person: Person | None = None, runner: int = 0
    ) -> int:
        async with self.work(person, runner) as tx:
            return await settle(tx, [Settlement(one, usage) for one, usage in settled])

    async def release(self, granted: Granted) -> None:
        async with self.work() as tx:
            assert await settle(tx, [Settlement(granted, None, released=True)]) == 0

    async def owner(self, *statements: str) -> None:
        async with connected(self.database.owner_url) as connection:
            for statement in statements:
                await connection.execute(statement)

    async def value(self, query: str) -> Any:
        async with connected(self.database.owner_url) as connection:
            return await connection.fetchval(query)

    async def cap(self, scope: CapScope, unit: CapUnit, cap: int | None) -> None:
        """Set the cap of every mission, of every agent, of Ada, or of the hub."""
        number = "null" if cap is None else str(cap)
        if scope == "hub":
            column = {"tokens": "tokens_per_day_max", "cost": "cost_per_day_max"}[unit]
            await self.owner(f"update mana_ai.hub_limits set {column} = {number}")
        elif scope == "account":
            column = {"tokens": "tokens_per_day_max", "cost": "cost_per_day_max"}[unit]
            await self.owner(
                f"insert into mana_ai.account_work (account_id, {column})"
                f" values ('{self.ada.account.account_id}', {number})"
                f" on conflict (account_id) do update set {column} = {number}"
            )
        else:
            await self.owner(f"update mana_ai.{scope}_snapshots set {COLUMNS[unit]} = {number}")

    async def used(self, scope: str = "account", unit: str = "tokens") -> int:
        if scope == "hub":
            return int(await self.value(f"select sum({unit}) from mana_ai.hub_spend"))
        return int(
            await self.value(f"select sum({unit}) from mana_ai.spend where scope = '{scope}'")
        )

    async def shift(self, hours: int) -> None:
        """Let everything so far have happened so many hours earlier."""
        await self.owner(
            f"update mana_ai.token_usage set ts = ts - interval '{hours} hours'",
            f"update mana_ai.spend set hour = hour - interval '{hours} hours'",
            f"update mana_ai.hub_spend set hour = hour - interval '{hours} hours'",
        )

    async def check(self) -> None:
        """Every sum is that of its rows."""
        assert await self.value(SUMS) == 0
        assert await self.value(HUBS_SUMS) == 0


@contextlib.asynccontextmanager
async def bank(
    database: Database, *, missions: int = 3, agents: int = 2, runners: int = 1, size: int = 4
) -> AsyncIterator[Bank]:
    """Lend a bank with missions and agents by number, none of them capped."""
    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(served_hub(database))
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        tenancies = [
            await stack.enter_async_context(opened_tenancy(database, role=Role.RUNNER, size=size))
            for _ in range(runners)
        ]
        made = Bank(database, ada, bob, tenancies)
        account, other, space = ada.account.account_id, bob.account.account_id, made.space
        await made.owner(
            f"update mana.spaces set members = array['{account}', '{other}']"
            f" where space_id = '{space}'",
            f"insert into mana.memberships values ('{space}', '{other}', 'member')",
            "insert into mana_ai.mission_snapshots (space_id, mission_id, account_id, state,"
            " time_zone, agent_id, runs_on, deleted)"
            f" select '{space}', 'mission-' || n, '{account}', 'active', 'UTC', 'agent-1', 'hub',"
            f" false from generate_series(1, {missions}) n",
            "insert into mana_ai.agent_snapshots (space_id, agent_id, account_id, state,"
            " max_concurrent_missions, deleted)"
            f" select '{space}', 'agent-' || n, '{account}', 'active', 1, false"
            f" from generate_series(1, {agents}) n",
        )
        yield made
