"""Missions: a sentence that an agent follows, its grant, its runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from litestar import get, post
from litestar.datastructures import FormMultiDict
from litestar.types import ControllerRouterHandler

from mana.domain.cadences import MANUAL, Cadence
from mana.domain.errors import Invalid, ManaError
from mana.domain.missions import RUNS_ON_HUB, InputRef
from mana.web.problems import Problem, problem_of
from mana.web.visits import Named, Page, Visit, Visiting, now_ms, record_id, text_of
from mana.web.words import t

if TYPE_CHECKING:
    from mana.device.views import MissionView

DAYS_SHOWN: Final = (1, 7, 30)
DAYS_PRESET: Final = 7
RUNS_HERE: Final = "device"


@get("/missions")
async def missions(visit: Visiting) -> Page:
    """List the missions."""
    device = visit.device
    return await visit.page(
        "missions.html", missions=await device.missions(), agents=await device.agents()
    )


async def _form_page(visit: Visit, mission: MissionView | None) -> Page:
    await visit.require_writer()
    device = visit.device
    agents = [one for one in await device.agents() if one.state != "archived"]
    return await visit.page(
        "mission_form.html",
        mission=mission,
        agents=agents,
        inputs=await device.inputs(),
        picked={ref.key for ref in mission.inputs} if mission is not None else set(),
    )


@get("/missions/new")
async def new_mission(visit: Visiting) -> Page:
    """Show the sentence of a new mission."""
    return await _form_page(visit, None)


@get("/missions/{mission_id:str}")
async def mission(visit: Visiting, mission_id: Named) -> Page:
    """Show a mission: its last result and next run first."""
    device = visit.device
    found = await device.mission(record_id(mission_id))
    status = await device.status()
    buckets = await device.timeline(limit=1, mission_id=found.mission_id)
    waiting = [one for one in await device.inbox() if one.mission_id == found.mission_id]
    # A run that is queued for later is the next run, which is shown as such.
    runs = [run for run in found.runs if run.state != "queued" or run.scheduled_ms <= now_ms()]
    return await visit.page(
        "mission.html",
        mission=found,
        runs=runs,
        last=buckets[0] if buckets else None,
        waiting=waiting,
        device_model=status.device_model,
        running=any(run.state in ("queued", "leased") for run in runs) or bool(found.phase),
    )


@get("/missions/{mission_id:str}/edit")
async def edit_mission(visit: Visiting, mission_id: Named) -> Page:
    """Show the sentence of a mission."""
    return await _form_page(visit, await visit.device.mission(record_id(mission_id)))


@post("/missions")
async def create_mission(visit: Visiting) -> Page:
    """Create a mission; on the hub, ask for the grant next."""
    form = await visit.form()
    place = _place(form)
    new_id = await visit.device.create_mission(
        _text(form, "title", "a title"),
        _text(form, "objective", "an objective"),
        agent_id=_text(form, "agent_id", "an agent"),
        inputs=await _inputs(visit, form),
        cadence=_cadence(form),
        zone=text_of(form, "zone").strip() or None,
        concept=text_of(form, "concept"),
        runs_on=place,
    )
    if place == RUNS_ON_HUB:
        return visit.go(visit.to(f"/missions/{new_id}/grant"))
    return visit.go(visit.to(f"/missions/{new_id}"), t("The mission is there."))


@post("/missions/{mission_id:str}")
async def save_mission(visit: Visiting, mission_id: Named) -> Page:
    """Write a mission's sentence anew."""
    form = await visit.form()
    device = visit.device
    found = await device.mission(record_id(mission_id))
    await device.edit_mission(
        found.mission_id,
        title=_text(form, "title", "a title"),
        objective=_text(form, "objective", "an objective"),
        agent_id=_text(form, "agent_id", "an agent"),
        concept=text_of(form, "concept"),
    )
    inputs, cadence = await _inputs(visit, form), _cadence(form)
    if inputs != tuple(found.inputs):
        await device.edit_mission(found.mission_id, inputs=inputs)
    zone = text_of(form, "zone").strip() or found.zone
    if cadence != found.cadence or zone != found.zone:
        await device.edit_mission(found.mission_id, cadence=cadence, zone=zone)
    place = _place(form)
    if (place == RUNS_ON_HUB) != (found.runs_on == RUNS_ON_HUB):
        await device.edit_mission(found.mission_id, runs_on=place)
    return visit.go(visit.to(f"/missions/{mission_id}"), t("Saved."))


@post("/missions/{mission_id:str}/state")
async def set_state(visit: Visiting, mission_id: Named) -> Page:
    """Pause a mission, or let it go on."""
    form = await visit.form()
    wanted = text_of(form, "state")
    if wanted == "active":
        await visit.device.edit_mission(record_id(mission_id), state="active")
    elif wanted == "paused":
        await visit.device.edit_mission(record_id(mission_id), state="paused")
    else:
        raise Invalid("a mission is active or paused")
    said = t("It goes on.") if wanted == "active" else t("Paused. Nothing runs until you go on.")
    return visit.go(visit.to(f"/missions/{mission_id}"), said)


@post("/missions/{mission_id:str}/delete")
async def delete_mission(visit: Visiting, mission_id: Named) -> Page:
    """Delete a mission and revoke its grant."""
    found = await visit.device.mission(record_id(mission_id))
    await visit.device.delete_mission(found.mission_id)
    said = t("“{title}” is deleted, and its grant revoked.", title=found.title)
    return visit.go(visit.to("/missions"), said)


@post("/missions/{mission_id:str}/run")
async def run_now(visit: Visiting, mission_id: Named) -> Page:
    """Run a mission now; a run of this device goes on while the page shows its phase."""
    form = await visit.form()
    wanted = record_id(mission_id)
    done = await visit.in_background(visit.device.run_now(wanted))
    said = t("The run is asked for.") if done else t("It is under way.")
    return visit.go(visit.back(form, f"/missions/{mission_id}"), said)


@post("/missions/{mission_id:str}/stop")
async def stop_run(visit: Visiting, mission_id: Named) -> Page:
    """Stop a run of this device."""
    await visit.device.stop_mission(record_id(mission_id))
    return visit.go(
        visit.to(f"/missions/{mission_id}"), t("Stopped. What it had not done is not done.")
    )


@get("/missions/{mission_id:str}/grant")
async def consent(visit: Visiting, mission_id: Named) -> Page:
    """Ask whether the mission may work while the person is away."""
    await visit.require_writer()
    device = visit.device
    found = await device.mission(record_id(mission_id))
    asked = visit.request.query_params.get("days", "")
    days = int(asked) if asked in {str(number) for number in DAYS_SHOWN} else DAYS_PRESET
    shown, problem = None, None
    try:
        shown = await device.consent(found.mission_id, days=days)
    except ManaError as error:
        if error.code == "LOCKED":
            raise
        problem = problem_of(error)
    return await _consent_page(visit, found, days, shown, problem)


async def _consent_page(
    visit: Visit, found: MissionView, days: int, shown: object, problem: Problem | None
) -> Page:
    return await visit.page(
        "consent.html",
        mission=found,
        consent=shown,
        days=days,
        days_shown=DAYS_SHOWN,
        problem=problem,
    )


@post("/missions/{mission_id:str}/grant")
async def grant(visit: Visiting, mission_id: Named) -> Page:
    """Grant what the consent showed, or let the mission work here only."""
    form = await visit.form()
    device, wanted = visit.device, record_id(mission_id)
    if text_of(form, "where") == RUNS_HERE:
        await device.edit_mission(wanted, runs_on=RUNS_HERE)
        return visit.go(
            visit.to(f"/missions/{mission_id}"), t("It works only while this device is on.")
        )
    typed = text_of(form, "days")
    if typed not in {str(number) for number in DAYS_SHOWN}:
        raise Invalid("a grant lasts 1, 7 or 30 days")
    await device.grant(wanted, days=int(typed))
    return visit.go(
        visit.to(f"/missions/{mission_id}"), t("Granted. You can end it here at any moment.")
    )


async def _inputs(visit: Visit, form: FormMultiDict) -> tuple[InputRef, ...]:
    """Return the ticked inputs, in the order in which they are offered."""
    ticked = {str(one) for one in form.getall("input", [])}
    return tuple(ref for ref, _ in await visit.device.inputs() if ref.key in ticked)


def _place(form: FormMultiDict) -> str:
    return RUNS_HERE if text_of(form, "runs_on") == RUNS_HERE else RUNS_ON_HUB


def _text(form: FormMultiDict, name: str, what: str) -> str:
    typed = text_of(form, name).strip()
    if not typed:
        raise Invalid(f"a mission needs {what}")
    return typed


def _cadence(form: FormMultiDict) -> Cadence:
    kind = text_of(form, "cadence")
    if kind == "interval":
        return Cadence("interval", every_minutes=_number(form, "every_minutes", 1, 527_040))
    if kind not in ("daily", "weekly"):
        return MANUAL
    hour, minute = _time(text_of(form, "at"))
    if kind == "daily":
        return Cadence("daily", at_hour=hour, at_minute=minute)
    day = _number(form, "day_of_week", 0, 6)
    return Cadence("weekly", day_of_week=day, at_hour=hour, at_minute=minute)


def _number(form: FormMultiDict, name: str, low: int, high: int) -> int:
    typed = text_of(form, name).strip()
    if not typed.isascii() or not typed.isdigit() or not low <= int(typed) <= high:
        raise Invalid(f"a number from {low} to {high} is needed there")
    return int(typed)


def _time(typed: str) -> tuple[int, int]:
    parts: Sequence[str] = typed.split(":")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() for part in parts[:2]):
        raise Invalid("a time is hours and minutes, such as 10:00")
    return int(parts[0]), int(parts[1])


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    missions,
    new_mission,
    mission,
    edit_mission,
    create_mission,
    save_mission,
    set_state,
    delete_mission,
    run_now,
    stop_run,
    consent,
    grant,
)
