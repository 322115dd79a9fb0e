"""Money over HTTP: what devices reserve and settle, who may, and what a person sees of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from mana.domain.errors import Invalid
from mana.hub.money.store import Granted
from mana.hub.settings import HubSettings
from mana.planning.budget import Cap
from mana.planning.ports import Usage
from mana.protocol.messages import MissionsAnswer, ReservedTokens, UsageAnswer, WorkState
from mana.testing.postgres import Database
from tests.hub.client import Person, Tokens
from tests.runner.bank import Bank, bank

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@dataclass
class Devices:
    """A bank whose people reserve from their devices."""

    bank: Bank

    def path(self, mission: str = "mission-1") -> str:
        return f"/api/v1/spaces/{self.bank.space}/missions/{mission}/reservations"

    async def ask(
        self,
        tokens: int,
        least: int = 1,
        *,
        person: Person | None = None,
        mission: str = "mission-1",
        agent: str = "agent-1",
        prices: tuple[int, int] | None = (0, 0),
    ) -> httpx.Response:
        body: dict[str, Any] = {"agentId": agent, "tokens": tokens, "tokensMin": least}
        if prices is not None:
            body |= {"promptPrice": prices[0], "completionPrice": prices[1]}
        return await (person or self.bank.ada).call("POST", self.path(mission), body)

    async def reserve(self, tokens: int, least: int = 1, **options: Any) -> ReservedTokens:
        answer = await self.ask(tokens, least, **options)
        assert answer.status_code == 201, answer.text
        return msgspec.json.decode(answer.content, type=ReservedTokens)

    async def tell(
        self,
        reservation: str,
        prompt: int,
        completion: int,
        calls: int = 1,
        *,
        person: Person | None = None,
        mission: str = "mission-1",
        unsaid: tuple[int, int] = (0, 0),
    ) -> httpx.Response:
        body = {
            "promptTokens": prompt,
            "completionTokens": completion,
            "modelCalls": calls,
            "unconfirmedPromptTokens": unsaid[0],
            "unconfirmedCompletionTokens": unsaid[1],
        }
        path = f"{self.path(mission)}/{reservation}/settle"
        return await (person or self.bank.ada).call("POST", path, body)

    async def settle(self, reservation: str, *numbers: int, **options: Any) -> None:
        answer = await self.tell(reservation, *numbers, **options)
        assert answer.status_code == 204, answer.text

    async def usage(self, query: str = "", person: Person | None = None) -> UsageAnswer:
        answer = await (person or self.bank.ada).call("GET", f"/api/v1/me/ai-usage{query}")
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=UsageAnswer)

    async def second_device(self) -> Person:
        """Return Ada on another session."""
        answer = await self.bank.ada.log_in()
        tokens = msgspec.json.decode(answer.content, type=Tokens)
        return Person(self.bank.ada.served, self.bank.ada.account, tokens)


@contextlib.asynccontextmanager
async def devices(database: Database, **options: Any) -> AsyncIterator[Devices]:
    async with bank(database, **options) as made:
        yield Devices(made)


def code(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.json()['code']}"


async def test_a_slice_counts_until_it_is_settled(database: Database) -> None:
    """What a device holds counts in full, what it used replaces it, and a repeat changes nothing."""
    async with devices(database) as made:
        held = await made.reserve(5_000, prices=(1_000_000, 2_000_000))
        assert held.tokens == 5_000
        assert await made.bank.used("agent") == 5_000
        # Nobody knows yet how it is split, so the dearer price counts.
        assert await made.bank.used("agent", "cost") == 10_000
        await made.settle(held.reservation_id, 1_000, 500, 3)
        await made.settle(held.reservation_id, 1, 1, 1)
        assert await made.bank.used("agent") == 1_500
        assert await made.bank.used("agent", "cost") == 2_000
        assert await made.bank.used("agent", "calls") == 3
        await made.bank.check()


@pytest.mark.parametrize(
    ("unsaid", "told"), [((400, 100), (500, 600)), ((10**6, 10**6), (1_500, 2_000))]
)
async def test_what_no_model_said_is_told_apart(
    database: Database, unsaid: tuple[int, int], told: tuple[int, int]
) -> None:
    """The ledger says how much of what a device spent is a worst case, and never more than all."""
    async with devices(database) as made:
        held = await made.reserve(5_000, prices=(1_000_000, 2_000_000))
        for counted, unconfirmed in (((5_000, 10_000), (5_000, 10_000)), ((1_500, 2_000), told)):
            for line in (await made.usage()).lines:
                assert (line.tokens, line.cost) == counted
                assert (line.unconfirmed_tokens, line.unconfirmed_cost) == unconfirmed
            await made.tell(held.reservation_id, 1_000, 500, 3, unsaid=unsaid)
        await made.bank.check()


async def test_devices_and_runner_share_a_cap(database: Database) -> None:
    """Two devices of two people and a runner on one agent: together they never pass its cap."""
    async with devices(database, runners=2) as made:
        await made.bank.cap("agent", "tokens", 20_000)
        other = await made.second_device()

        async def on_device(person: Person, mission: str) -> int:
            kept = 0
            for turn in range(10):
                answer = await made.ask(700, 300, person=person, mission=mission)
                if answer.status_code == 409:
                    assert answer.json()["code"] == "BUDGET_EXCEEDED"
                    return kept
                held = msgspec.json.decode(answer.content, type=ReservedTokens)
                used = held.tokens - 100 * (turn % 3)
                await made.settle(held.reservation_id, used, 0, 2, person=person, mission=mission)
                kept += used
            return kept

        async def on_hub(runner: int) -> int:
            kept = 0
            for _ in range(10):
                (found,) = await made.bank.reserve(made.bank.ask(400, 600), runner=runner)
                if not isinstance(found, Granted):
                    return kept
                kept += await made.bank.settle((found, Usage(400, 300)), runner=runner)
            return kept

        kept = await asyncio.gather(
            on_device(made.bank.ada, "mission-1"),
            on_device(other, "mission-2"),
            on_device(made.bank.bob, "mission-1"),
            on_hub(0),
            on_hub(1),
        )
        used = await made.bank.used("agent")
        assert used == sum(kept) <= 20_000
        assert min(kept) > 0
        await made.bank.check()


async def test_less_is_granted_but_not_too_little(database: Database) -> None:
    """A slice is as large as the cap leaves, and refused below what would be of use."""
    async with devices(database) as made:
        await made.bank.cap("mission", "tokens", 1_000)
        assert (await made.reserve(600)).tokens == 600
        answer = await made.ask(600, 401)
        assert code(answer) == "409 BUDGET_EXCEEDED"
        detail = {"left": 400, "cap": 1_000, "scope": "mission", "unit": "tokens"}
        assert answer.json()["detail"] == detail
        assert (await made.reserve(600, 400)).tokens == 400
        assert code(await made.ask(1, 1)) == "409 BUDGET_EXCEEDED"


async def test_what_was_used_before_is_reported(database: Database) -> None:
    """A device that spent off line reports it also where nothing is left: it counts all the same."""
    async with devices(database) as made:
        await made.bank.cap("agent", "tokens", 1_000)
        await made.bank.cap("agent", "cost", 1_000)
        held = await made.reserve(3_000, 0, prices=None)
        assert held.tokens == 0
        await made.settle(held.reservation_id, 2_500, 500, 4)
        assert await made.bank.used("agent") == 3_000
        again = await made.reserve(3_000, 0, prices=(10**6, 10**6))
        assert again.tokens == 0
        await made.settle(again.reservation_id, 2_000, 500)
        assert (await made.bank.used("agent"), await made.bank.used("agent", "cost")) == (
            5_500,
            2_500,
        )


async def test_costs_of_a_slice_need_prices(database: Database) -> None:
    """Under a cap of costs a device must say what its model costs, both prices of it."""
    async with devices(database) as made:
        await made.bank.cap("account", "cost", 1_000)
        assert code(await made.ask(100, prices=None)) == "409 PRICE_UNKNOWN"
        body = {"agentId": "agent-1", "tokens": 10, "tokensMin": 1, "promptPrice": 5}
        answer = await made.bank.ada.call("POST", made.path(), body)
        assert code(answer) == "409 PRICE_UNKNOWN"
        # At most 2 millionths a token, of a thousand.
        assert (await made.reserve(5_000, prices=(2_000_000, 1))).tokens == 500


async def test_what_devices_spend_is_not_the_hubs(database: Database) -> None:
    """Nobody can use up the hub's day for all others by what their own devices reserve."""
    async with devices(database) as made:
        await made.bank.cap("hub", "tokens", 1_000)
        assert (await made.reserve(900_000)).tokens == 900_000
        assert (await made.bank.granted(500, 500)).completion_tokens_max == 500
        await made.bank.check()


@pytest.mark.parametrize(
    ("numbers", "counts"),
    [((4_064, 0, 1), 4_064), ((4_065, 0, 1), 1_000), ((4_066, 0, 2), 4_066), ((0, 0, 0), 0)],
)
async def test_a_report_is_believed_within_reason(
    database: Database, numbers: tuple[int, int, int], counts: int
) -> None:
    """A slice that was not used is given back; what cannot be true counts all that was asked for."""
    async with devices(database) as made:
        held = await made.reserve(1_000)
        await made.settle(held.reservation_id, *numbers)
        assert await made.bank.used() == counts
        await made.bank.check()


async def test_a_device_holds_eight_for_a_mission(database: Database) -> None:
    """The ninth is refused and leaves nothing, until one is settled or a day has passed."""
    async with devices(database) as made:
        held = [await made.reserve(10) for _ in range(8)]
        assert code(await made.ask(10)) == "409 RESERVATIONS_FULL"
        assert await made.bank.used() == 80
        assert (await made.reserve(10, mission="mission-2")).tokens == 10
        assert (await made.reserve(10, person=await made.second_device())).tokens == 10
        await made.settle(held[0].reservation_id, 1, 1)
        assert (await made.reserve(10)).tokens == 10
        assert code(await made.ask(10)) == "409 RESERVATIONS_FULL"
        await made.bank.shift(26)
        assert (await made.reserve(10)).tokens == 10
        await made.bank.check()


async def test_who_may_reserve(database: Database) -> None:
    """Members do; viewers, strangers and for what is not in the space nobody does."""
    async with devices(database) as made:
        assert (await made.reserve(10, person=made.bank.bob)).tokens == 10
        await made.bank.owner(
            "update mana.memberships set role = 'viewer'"
            f" where account_id = '{made.bank.bob.account.account_id}'"
            f" and space_id = '{made.bank.space}'"
        )
        assert code(await made.ask(10, person=made.bank.bob)) == "403 FORBIDDEN"
        eve = await made.bank.ada.served.sign_up("eve")
        assert code(await made.ask(10, person=eve)) == "404 NOT_FOUND"
        assert code(await made.ask(10, mission="mission-9")) == "404 NOT_FOUND"
        assert code(await made.ask(10, agent="agent-9")) == "404 NOT_FOUND"
        assert code(await made.ask(10, 11)) == "400 BAD_REQUEST"
        assert code(await made.ask(10, mission="a b")) == "400 BAD_REQUEST"
        assert await made.bank.used() == 10


async def test_who_may_settle(database: Database) -> None:
    """Only the account that reserved, under the mission it was for, and no call of the runner's."""
    async with devices(database) as made:
        held = await made.reserve(100)
        one = held.reservation_id
        assert code(await made.tell(one, 1, 1, person=made.bank.bob)) == "404 NOT_FOUND"
        assert code(await made.tell(one, 1, 1, mission="mission-2")) == "404 NOT_FOUND"
        assert code(await made.tell("x", 1, 1)) == "400 BAD_REQUEST"
        of_runner = await made.bank.granted(500, 500)
        assert code(await made.tell(of_runner.reservation, 1, 1)) == "404 NOT_FOUND"
        assert await made.bank.settle((Granted(one, 0, 100), Usage(1, 1))) == 0
        assert await made.bank.used() == 1_100
        # Another device of the same account may: the one that reserved may be lost.
        await made.settle(one, 10, 10, person=await made.second_device())
        assert await made.bank.used() == 1_020


async def test_where_a_device_sends_its_calls_is_not_kept(database: Database) -> None:
    """The hub keeps no address and no name of a model that a person chose for their device."""
    async with devices(database) as made:
        body = {
            "agentId": "agent-1",
            "tokens": 10,
            "tokensMin": 1,
            "endpoint": "https://secret.test",
            "model": "secret",
        }
        assert (await made.bank.ada.call("POST", made.path(), body)).status_code == 201
        found = await made.bank.value("select string_agg(t::text, '') from mana_ai.token_usage t")
        assert "secret" not in found


async def test_usage_by_hours_and_days(database: Database) -> None:
    """A person sees their own use, by scope and hour, oldest first, and days add up the hours."""
    async with devices(database) as made:
        held = await made.reserve(300)
        await made.settle(held.reservation_id, 100, 100, 2)
        await made.bank.shift(2)
        await made.bank.granted(400, 100, run=made.bank.run(2, 2))
        await made.reserve(50, person=made.bank.bob)
        answer = await made.usage()
        assert answer.currency == "USD"
        assert [(line.scope, line.id, line.tokens, line.model_calls) for line in answer.lines] == [
            ("account", made.bank.ada.account.account_id, 200, 2),
            ("agent", "agent-1", 200, 2),
            ("mission", "mission-1", 200, 2),
            ("account", made.bank.ada.account.account_id, 500, 1),
            ("agent", "agent-2", 500, 1),
            ("mission", "mission-2", 500, 1),
        ]
        assert {line.space_id for line in answer.lines if line.scope != "account"} == {
            made.bank.space
        }
        hours = [line.hour for line in answer.lines]
        assert hours == sorted(hours)
        assert len(set(hours)) == 2
        of_bob = (await made.usage(person=made.bank.bob)).lines
        assert [line.tokens for line in of_bob] == [50, 50, 50]
        by_day = await made.usage("?days=92")
        assert sum(line.tokens for line in by_day.lines if line.scope == "account") == 700
        assert all(line.hour.endswith("T00:00:00.000Z") for line in by_day.lines)
        assert by_day == await made.usage("?days=92&by=day")
        # A day and an hour ago: of the last 24 whole hours nothing is left. What was used two hours
        # later is of them, also where another hour has begun meanwhile.
        await made.bank.shift(23)
        assert {line.tokens for line in (await made.usage("?days=1")).lines} == {500}


@pytest.mark.parametrize("query", ["?days=0", "?days=93", "?days=32&by=hour", "?by=week"])
async def test_usage_is_bounded(database: Database, query: str) -> None:
    """Nobody asks for more hours than a page can hold, or for other spans."""
    async with devices(database, missions=1, agents=1) as made:
        answer = await made.bank.ada.call("GET", f"/api/v1/me/ai-usage{query}")
        assert code(answer) == "400 BAD_REQUEST"


async def test_a_cap_that_a_device_used_is_seen_by_the_runner(database: Database) -> None:
    """What a device holds stands in the caps that the runner asks before a run."""
    async with devices(database) as made:
        await made.bank.cap("agent", "tokens", 1_000)
        await made.reserve(400)
        async with made.bank.work() as tx:
            from_hub = await made.bank.caps(tx)
        assert from_hub == (Cap("agent", "tokens", 1_000, 400),)


async def test_today_is_told_with_the_caps(database: Database) -> None:
    """Beside the caps stand the day's tokens and costs, of the account and of each agent."""
    async with devices(database) as made:
        await made.reserve(300, prices=(2_000_000, 1))
        await made.bank.granted(100, 50, run=made.bank.run(2, 2))
        await made.reserve(40, person=made.bank.bob)
        caps = {"tokensPerDayMax": 5_000, "costPerDayMax": -1}
        answer = await made.bank.ada.call("PUT", "/api/v1/me/ai-work", caps)
        work = msgspec.json.decode(answer.content, type=WorkState)
        assert (work.tokens_today, work.cost_today, work.currency) == (450, 600, "USD")
        assert (work.tokens_per_day_max, work.cost_per_day_max) == (5_000, None)
        answer = await made.bank.ada.call("GET", "/api/v1/me/missions")
        missions = msgspec.json.decode(answer.content, type=MissionsAnswer)
        assert missions.work == work
        # An agent's day is everybody's who lets it work.
        assert missions.tokens_today == {"agent-1": 340, "agent-2": 150}
        assert missions.cost_today == {"agent-1": 600, "agent-2": 0}
        assert code(await made.ask(4_551, 4_551)) == "409 BUDGET_EXCEEDED"


@pytest.mark.parametrize("currency", ["EU", "EURO", "12A", "€€€"])
def test_a_currency_has_three_letters(currency: str, tmp_path: Path) -> None:
    """A currency that is no code is refused by the name of its variable, and USD is the default."""
    given = {"MANA_CURRENCY": currency}
    with pytest.raises(Invalid, match="MANA_CURRENCY"):
        HubSettings.from_env(given, database_url="postgresql://x", home=tmp_path)
    for text, found in (("", "USD"), ("eur", "EUR")):
        made = HubSettings.from_env(
            {"MANA_CURRENCY": text}, database_url="postgresql://x", home=tmp_path
        )
        assert made.currency == found
