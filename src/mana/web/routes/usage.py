"""What all work uses, by day, and the caps of the account."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.domain.cadences import zone
from mana.domain.errors import Invalid, ManaError
from mana.domain.money import TOKENS_PER_DAY_MAX
from mana.web.amounts import amount_field
from mana.web.charts import Unit, chart, sums
from mana.web.forms import NOT_ACCEPTED, Typed
from mana.web.problems import Problem, problem_of
from mana.web.visits import Page, Visit, Visiting, now_ms
from mana.web.words import t

if TYPE_CHECKING:
    from mana.device.views import MissionView, WorkView
    from mana.web.places import Place

DAYS: Final = (7, 30, 90)
DAYS_PRESET: Final = 30
FIELDS: Final = ("tokens", "cost")


@get("/usage")
async def usage(visit: Visiting) -> Page:
    """Show tokens or costs of the last days, by agent and mission, and the caps."""
    return await _page(visit, None, None)


@post("/usage")
async def set_caps(visit: Visiting) -> Page:
    """Set the account's caps of a day; what is left empty is no cap."""
    typed = Typed.of(await visit.form(), FIELDS)
    tokens = typed.whole("tokens", 0, TOKENS_PER_DAY_MAX, needed=False)
    cost = typed.amount("cost")
    if typed.faults:
        return await _page(visit, typed, None)
    try:
        await visit.device.set_caps(tokens_per_day_max=tokens, cost_per_day_max=cost)
    except ManaError as error:
        if error.code == "LOCKED":
            raise
        return await _page(visit, typed, problem_of(error))
    return visit.go(visit.to("/usage"), t("Saved."))


async def _page(visit: Visit, typed: Typed | None, problem: Problem | None) -> Page:
    device, asked = visit.device, visit.request.query_params
    days = int(asked["days"]) if asked.get("days") in {str(one) for one in DAYS} else DAYS_PRESET
    unit: Unit = "cost" if asked.get("show") == "cost" else "tokens"
    found, work = await device.usage(days), await device.work_state()
    caps = _caps(work)
    today = datetime.fromtimestamp(now_ms() / 1_000, tz=UTC).astimezone(await _zone(visit)).date()
    again = typed is not None
    page = await visit.page(
        "usage.html",
        status=(problem.status if problem else NOT_ACCEPTED) if again else 200,
        usage=found,
        chart=chart(found.days, unit, today=today, days=days, cap=caps[unit]),
        units=("tokens", "cost"),
        days_shown=DAYS,
        agents=sums(found.days, "agent"),
        missions=sums(found.days, "mission"),
        waiting=await _waiting(visit),
        account=sums(found.days, "account"),
        caps=caps,
        typed=typed or _of_work(work),
        again=again,
        problem=problem,
    )
    if again:
        page.headers["HX-Push-Url"] = "false"
    return page


async def _waiting(visit: Visit) -> list[tuple[Place, MissionView]]:
    """Return the missions of all spaces that wait for room under a cap."""
    return [
        (home, one)
        for home in await visit.places()
        for one in await visit.account.in_space(home.space_id).missions()
        if one.cap_wait is not None
    ]


async def _zone(visit: Visit) -> ZoneInfo:
    try:
        return zone(await visit.device.zone())
    except Invalid:
        return zone("UTC")


def _caps(work: WorkView) -> dict[Unit, int | None]:
    """Return the caps that hold: the smaller of the person's own and the hub's for them."""
    tokens = (work.tokens_per_day_max, work.hub_tokens_per_day_max)
    costs = (work.cost_per_day_max, work.hub_cost_per_day_max)
    return {
        "tokens": min((one for one in tokens if one is not None), default=None),
        "cost": min((one for one in costs if one is not None), default=None),
    }


def _of_work(work: WorkView) -> Typed:
    tokens = work.tokens_per_day_max
    return Typed(
        {
            "tokens": "" if tokens is None else str(tokens),
            "cost": amount_field(work.cost_per_day_max),
        }
    )


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (usage, set_caps)
