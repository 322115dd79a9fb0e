"""Money against people who want others to have none: what one account says costs another nothing."""

from __future__ import annotations

import pytest

from mana.domain.ids import OccurrenceId
from mana.domain.money import COST_PER_DAY_MAX, Price
from mana.hub.money.store import Granted, Refusal, ReserveFor
from mana.planning.ports import ModelCall, Usage
from mana.testing.postgres import Database
from tests.runner.bank import Bank, bank

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

PRICE = Price(1_000_000, 3_000_000)


def own_call(made: Bank, prompt: int, reply: int, price: Price | None) -> ReserveFor:
    """Return a call of a model of the person's own, at the price that they say."""
    call = ModelCall("https://own.example.org", "", price, "plan")
    return ReserveFor(made.run(), OccurrenceId("occurrence-1"), prompt, reply, call)


async def test_what_a_person_says_of_their_own_model_takes_nothing_of_the_hub(
    database: Database,
) -> None:
    """A model of Bob's own, dear and long by his word alone, leaves the hub's day to Ada."""
    async with bank(database) as made:
        await made.cap("hub", "tokens", 1_000)
        await made.cap("hub", "cost", 1_000)
        dear = Price(COST_PER_DAY_MAX, COST_PER_DAY_MAX)
        own, shared, again = await made.reserve(
            own_call(made, 100_000, 4_096, dear),
            made.ask(100, 200, price=PRICE),
            own_call(made, 100_000, 4_096, None),
            person=made.bob,
        )
        assert isinstance(own, Granted)
        assert isinstance(shared, Granted)
        assert isinstance(again, Granted)
        await made.settle((own, Usage(300_000, 16_384)), person=made.bob)
        assert (await made.used("hub"), await made.used("hub", "cost")) == (300, 700)
        await made.check()
        (granted,) = await made.reserve(made.ask(100, 50, price=PRICE))
        assert isinstance(granted, Granted)
        assert await made.reserve(made.ask(100, 400, price=PRICE)) == [
            Refusal("budget:hub:cost:50/1000")
        ]


async def test_a_person_s_own_model_counts_for_their_own_caps(database: Database) -> None:
    """Who has a model of their own is held by mission, agent and account, as with any other."""
    async with bank(database) as made:
        for scope in ("mission", "agent", "account"):
            await made.cap(scope, "cost", 699)
            assert await made.reserve(own_call(made, 100, 200, PRICE)) == [
                Refusal(f"budget:{scope}:cost:699/699")
            ]
            assert await made.reserve(own_call(made, 100, 200, None)) == [Refusal("no-price")]
            await made.cap(scope, "cost", None)
