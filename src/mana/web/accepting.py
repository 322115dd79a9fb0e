"""How an agent's proposals fared: a small picture by week, and the same in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from mana.device.views import AcceptRate, AcceptWeek
from mana.web.words import counted, t

WIDTH: Final = 144
HEIGHT: Final = 32
GAP: Final = 3


@dataclass(frozen=True, slots=True)
class WeekBar:
    """One week in the picture: rejections stand on approvals. Measures in units of the picture."""

    x: float
    width: float
    approved_y: float
    approved: float
    rejected_y: float
    rejected: float


def week_bars(weeks: Sequence[AcceptWeek]) -> list[WeekBar]:
    """Return the bars of the weeks, the tallest as high as the picture; none if nothing was decided."""
    top = max((one.approved + one.rejected for one in weeks), default=0)
    if not top:
        return []
    each = WIDTH / len(weeks)
    found = []
    for number, one in enumerate(weeks):
        approved, rejected = (HEIGHT * part / top for part in (one.approved, one.rejected))
        y = HEIGHT - approved
        bar = (number * each, each - GAP, y, approved, y - rejected, rejected)
        found.append(WeekBar(*(round(part, 2) for part in bar)))
    return found


def rate_words(rate: AcceptRate) -> Markup:
    """Return a rate in words: how many of all, how many as changed, how many nobody decided on."""
    decided = rate.approved + rate.rejected
    if not decided and not rate.expired:
        return t("Nothing was decided yet.")
    said = [t("{n} of {all} approved", n=rate.approved, all=decided)] if decided else []
    if rate.edited:
        said.append(counted(rate.edited, "1 of them with a change", "{n} of them with a change"))
    if rate.expired:
        said.append(counted(rate.expired, "1 expired", "{n} expired"))
    return Markup(", ").join(said)


def trend_words(rate: AcceptRate) -> Markup:
    """Return how the last 30 days compare with the 30 before; empty where there is no knowing."""
    if rate.trend is None:
        return Markup("")
    if not rate.trend:
        return t("as in the 30 days before")
    more, less = "{n} points more than in the 30 days before", "{n} points less than before"
    return t(more if rate.trend > 0 else less, n=abs(rate.trend))
