"""What a day may cost, as a person types it and reads it: tokens, amounts of money, or `none`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from mana.cli.text import counted, when
from mana.device.words import spent_words
from mana.domain.errors import Invalid
from mana.domain.money import TOKENS_PER_DAY_MAX, amount_words, cost_of

if TYPE_CHECKING:
    from mana.device.desk import Device
    from mana.device.views import CapWait

NONE: Final = "none"


TokensOption = Annotated[
    str | None,
    typer.Option(
        "--tokens-a-day",
        "--tokens-per-day",
        metavar="TOKENS",
        help="The most tokens in 24 hours; none: no limit.",
    ),
]
CostOption = Annotated[
    str | None,
    typer.Option(
        "--cost-a-day",
        metavar="AMOUNT",
        help="The most that it may cost in 24 hours, such as 1.50; none: no limit.",
    ),
]


def optional_tokens(text: str) -> int | None:
    """Return a number of tokens, None for `none`; raise Invalid."""
    return optional_whole(text, what="a limit on tokens", most=TOKENS_PER_DAY_MAX)


def optional_cost(text: str) -> int | None:
    """Return an amount in millionths, None for `none`; raise Invalid."""
    return None if text.strip().casefold() == NONE else cost_of(text)


def optional_whole(text: str, *, what: str, most: int) -> int | None:
    """Return a whole number up to `most`, None for `none`; raise Invalid."""
    typed = text.strip()
    if typed.casefold() == NONE:
        return None
    # A minus, a point or another sign is none: what was meant would be a guess.
    if not typed.isascii() or not typed.isdigit() or len(typed) > len(str(most)):
        raise Invalid(f"{what} is a whole number such as 20000, or none")
    if int(typed) > most:
        raise Invalid(f"{what} is at most {most:,}")
    return int(typed)


def cap_wait_words(wait: CapWait, *, now_ms: int) -> str:
    """Return which used-up cap a mission waits for, and when some of it is free again."""
    if wait.room_ms is None:
        return wait.words
    return f"{wait.words} Some of it is free again {when(wait.room_ms, now_ms=now_ms)}."


def used_words(
    tokens: int,
    cost: int,
    currency: str,
    *,
    unconfirmed_tokens: int = 0,
    unconfirmed_cost: int = 0,
) -> str:
    """Return what was used in words; money where there was any, and what is a worst case of it."""
    if unconfirmed_tokens:
        return spent_words(tokens, unconfirmed_tokens, cost, unconfirmed_cost, currency)
    words = counted(tokens, "token") if tokens == 1 else f"{tokens:,} tokens"
    return f"{words}, {amount_words(cost, currency)}" if cost else words


async def currency_of(device: Device) -> str:
    """Return the currency in which the hub counts, as far as this device knows."""
    return (await device.work_state()).currency
