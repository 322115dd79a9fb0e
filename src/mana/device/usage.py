"""What was used, by day: the hub's ledger, and what this device has not reported yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from mana.device.budgets import Budgets, Held
from mana.device.hub_news import HubNews
from mana.device.opened import Opened
from mana.device.views import UsageDay, UsageView
from mana.device.words import CURRENCY
from mana.domain.agents import AGENTS
from mana.domain.cadences import zone
from mana.domain.clock import parse_iso_ms
from mana.domain.errors import Invalid
from mana.domain.missions import MISSIONS
from mana.protocol.messages import UsageLine

DAYS_MAX: Final = 92
_TABLES: Final = {"agent": AGENTS.name, "mission": MISSIONS.name}
_NAMED: Final = {"agent": "name", "mission": "title"}


@dataclass(frozen=True, slots=True)
class _Sum:
    tokens: int = 0
    cost: int = 0
    model_calls: int = 0
    unconfirmed_tokens: int = 0
    unconfirmed_cost: int = 0

    def __add__(self, other: _Sum) -> _Sum:
        return _Sum(
            self.tokens + other.tokens,
            self.cost + other.cost,
            self.model_calls + other.model_calls,
            self.unconfirmed_tokens + other.unconfirmed_tokens,
            self.unconfirmed_cost + other.unconfirmed_cost,
        )


@dataclass(slots=True)
class _Days:
    """Sums by day, scope and id, of the days that are shown."""

    where: ZoneInfo
    first: str
    sums: dict[tuple[str, str, str], _Sum] = field(default_factory=dict)

    def add(self, at_ms: int, scope: str, name: str, used: _Sum) -> None:
        day = datetime.fromtimestamp(at_ms / 1_000, tz=UTC).astimezone(self.where).date()
        if day.isoformat() >= self.first:
            key = (day.isoformat(), scope, name)
            self.sums[key] = self.sums.get(key, _Sum()) + used

    def add_line(self, line: UsageLine) -> None:
        used = _Sum(
            line.tokens,
            line.cost,
            line.model_calls,
            line.unconfirmed_tokens,
            line.unconfirmed_cost,
        )
        self.add(parse_iso_ms(line.hour), line.scope, line.id, used)

    def add_held(self, held: Held, account_id: str) -> None:
        scopes = {"account": account_id, "agent": held.agent_id, "mission": held.mission_id}
        used = _Sum(
            held.counted,
            held.cost_counted,
            held.made + len(held.calls),
            held.unconfirmed.total,
            held.cost_unconfirmed,
        )
        for scope, name in scopes.items():
            self.add(held.at_ms, scope, name, used)


class UsageHistory:
    """Tokens and costs of the account by day, for the chart."""

    def __init__(self, opened: Opened, news: HubNews, budgets: Budgets) -> None:
        self._opened = opened
        self._news = news
        self._budgets = budgets

    async def days(self, days: int = 30) -> UsageView:
        """Return the use of the last days, today among them; raise Invalid beyond 92."""
        if not 1 <= days <= DAYS_MAX:
            raise Invalid(f"use is shown for 1 to {DAYS_MAX} days")
        where = await self._zone()
        today = datetime.fromtimestamp(self._opened.now_ms() / 1_000, tz=UTC).astimezone(where)
        found = _Days(where, (today.date() - timedelta(days=days - 1)).isoformat())
        # A day more: the person's days begin at another hour than the hub's.
        said = await self._news.usage(min(days + 1, DAYS_MAX))
        for line in said.lines if said is not None else ():
            found.add_line(line)
        for held in await self._budgets.unreported():
            found.add_held(held, self._opened.account_id)
        names = await self._names({(scope, name) for _, scope, name in found.sums})
        return UsageView(
            currency=said.currency if said is not None else CURRENCY,
            days=tuple(
                UsageDay(
                    day,
                    scope,
                    name,
                    names.get((scope, name), ""),
                    one.tokens,
                    one.cost,
                    one.model_calls,
                    one.unconfirmed_tokens,
                    one.unconfirmed_cost,
                )
                for (day, scope, name), one in sorted(found.sums.items())
            ),
            hub_answered=said is not None,
        )

    async def _zone(self) -> ZoneInfo:
        try:
            return zone(await self._opened.zone())
        except Invalid:
            return zone("UTC")

    async def _names(self, wanted: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        """Return what the person calls agents and missions, in any of their spaces."""
        found: dict[tuple[str, str], str] = {}
        spaces = [space for space in self._opened.book.spaces() if space.type != "user"]
        for scope, name in wanted:
            for space in spaces if scope in _TABLES else ():
                book = self._opened.book.in_space(space.space_id)
                view = await book.view(_TABLES[scope], name)
                if view is not None:
                    found[scope, name] = view.text(_NAMED[scope])
        return found
