"""Use by day as a picture: where each bar stands, and what the lists beside it say. Pure.

A picture is 100 high and one wide for each day; the page stretches it to its own size, so all
words stand outside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from mana.device.views import UsageDay

HEIGHT: Final = 100
GAP: Final = 0.15
"""Of a day's width, on each side of its bar."""
CAP_TIMES_MAX: Final = 3
"""A cap further above the highest bar than this is told in words, not drawn."""
OTHERS: Final = ""
"""The id under which stands what no agent that is known used."""
Unit = Literal["tokens", "cost"]


@dataclass(frozen=True, slots=True)
class Bar:
    """One agent's share of one day: a box in the picture, and the numbers for whoever asks."""

    agent_id: str
    name: str
    day: date
    amount: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture `days` wide. `top` is what its height stands for; `cap_y` is the cap's line."""

    unit: Unit
    first: date
    last: date
    days: int
    top: int
    bars: tuple[Bar, ...]
    cap: int | None
    cap_y: float | None


@dataclass(frozen=True, slots=True)
class Used:
    """What one agent or mission used in all the days."""

    id: str
    name: str
    tokens: int
    cost: int
    model_calls: int
    unconfirmed_tokens: int = 0
    unconfirmed_cost: int = 0


def chart(
    lines: Sequence[UsageDay], unit: Unit, *, today: date, days: int, cap: int | None
) -> Chart:
    """Return the picture of the last `days` days, today among them, stacked by agent."""
    first = today - timedelta(days=days - 1)
    by_day: dict[date, list[tuple[str, str, int]]] = {}
    for day, shares in _shares(lines, unit).items():
        if first <= day <= today:
            by_day[day] = shares
    highest = max((sum(amount for *_, amount in one) for one in by_day.values()), default=0)
    is_drawn = cap is not None and 0 < cap <= CAP_TIMES_MAX * highest
    top = max(highest, cap if cap is not None and is_drawn else 0)
    bars: list[Bar] = []
    for day, shares in sorted(by_day.items()):
        x, y = (day - first).days + GAP, float(HEIGHT)
        for agent_id, name, amount in shares:
            height = HEIGHT * amount / top
            y -= height
            bars.append(Bar(agent_id, name, day, amount, x, y, 1 - 2 * GAP, height))
    cap_y = HEIGHT * (1 - cap / top) if cap is not None and is_drawn else None
    return Chart(unit, first, today, days, top, tuple(bars), cap, cap_y)


def sums(lines: Iterable[UsageDay], scope: str) -> list[Used]:
    """Return what each agent or mission used, the dearest first."""
    found: dict[str, Used] = {}
    for line in lines:
        if line.scope == scope:
            old = found.get(line.id, Used(line.id, line.name, 0, 0, 0))
            found[line.id] = Used(
                line.id,
                line.name or old.name,
                old.tokens + line.tokens,
                old.cost + line.cost,
                old.model_calls + line.model_calls,
                old.unconfirmed_tokens + line.unconfirmed_tokens,
                old.unconfirmed_cost + line.unconfirmed_cost,
            )
    return sorted(found.values(), key=lambda one: (-one.cost, -one.tokens, one.name, one.id))


def _shares(lines: Sequence[UsageDay], unit: Unit) -> dict[date, list[tuple[str, str, int]]]:
    """Return by day each agent's share, in one order for all days, and what is nobody's."""
    order = {one.id: at for at, one in enumerate(sums(lines, "agent"))}
    total: dict[date, int] = {}
    shares: dict[date, list[tuple[str, str, int]]] = {}
    for line in lines:
        day, amount = date.fromisoformat(line.day), getattr(line, unit)
        if line.scope == "account":
            total[day] = total.get(day, 0) + amount
        elif line.scope == "agent" and amount:
            shares.setdefault(day, []).append((line.id, line.name, amount))
    for day, amount in total.items():
        rest = amount - sum(share for *_, share in shares.get(day, ()))
        if rest > 0:
            shares.setdefault(day, []).append((OTHERS, "", rest))
    for one in shares.values():
        one.sort(key=lambda share: order.get(share[0], len(order)))
    return shares
