"""Missions: a sentence that an agent follows, its grant, its runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.domain.errors import Invalid, ManaError, NotFound
from mana.domain.ids import RecordId
from mana.domain.missions import RUNS_ON_HUB, InputRef
from mana.web import sentence as sentences
from mana.web.forms import NOT_ACCEPTED
from mana.web.problems import Problem, problem_of
from mana.web.running import at_work, failed_by_model, raises, saved_words, shown, waiting
from mana.web.sentence import RUNS_HERE, Sentence
from mana.web.visits import Named, Page, Visit, Visiting, now_ms, record_id, text_of
from mana.web.words import DAYS, is_clock_here, t

if TYPE_CHECKING:
    from mana.device.views import MissionView, Status

DAYS_SHOWN: Final = (1, 7, 30)
DAYS_PRESET: Final = 7


@get("/missions")
async def missions(visit: Visiting) -> Page:
    """List the missions."""
    device, home = visit.device, await visit.place()
    found = await device.missions()
    return await visit.page(
        "missions.html",
        missions=found,
        agents=await device.agents(),
        waiting=[(home, one) for one in found if one.cap_wait is not None],
    )


async def _form_page(
    visit: Visit,
    sentence: Sentence,
    mission: MissionView | None,
    *,
    status: int = 200,
    problem: Problem | None = None,
    times: Sequence[int] | None = None,
) -> Page:
    device = visit.device
    agents = [one for one in await device.agents() if one.state != "archived"]
    page = await visit.page(
        "mission_form.html",
        status=status,
        mission=mission,
        agents=agents,
        inputs=await device.inputs(),
        sentence=sentence,
        typed=sentence.typed,
        times=times,
        elsewhere=any(not is_clock_here(sentence.zone(), one) for one in times or ()),
        problem=problem,
        days_of_week=(DAYS[-1], *DAYS[:-1]),
    )
    if sentence.again:
        page.headers["HX-Push-Url"] = "false"
    return page


@get("/missions/new")
async def new_mission(visit: Visiting) -> Page:
    """Show the sentence of a new mission."""
    await visit.require_writer()
    zone = await visit.device.zone()
    sentence = sentences.blank(zone, visit.request.query_params.get("agent", ""))
    return await _form_page(visit, sentence, None, times=sentence.next_times(zone, now_ms()))


@post("/missions/new")
async def next_times(visit: Visiting) -> Page:
    """Show the form as it was typed, with the next times at which the mission would run."""
    await visit.require_writer()
    form = await visit.form()
    known = text_of(form, "mission_id")
    found = await visit.device.mission(record_id(known)) if known else None
    sentence = sentences.of_form(form)
    times = sentence.next_times(await visit.device.zone(), now_ms())
    return await _form_page(visit, sentence, found, times=times)


@get("/missions/{mission_id:str}")
async def mission(visit: Visiting, mission_id: Named) -> Page:
    """Show a mission: its last result and next run first."""
    device = visit.device
    found = await device.mission(record_id(mission_id))
    status = await device.status()
    buckets = await device.timeline(limit=1, mission_id=found.mission_id)
    proposals = [one for one in await device.inbox() if one.mission_id == found.mission_id]
    run = at_work(found.runs)
    return await visit.page(
        "mission.html",
        mission=found,
        runs=shown(found.runs),
        last=buckets[0] if buckets else None,
        waiting=proposals,
        device_model=status.device_model,
        run=run,
        retry=None if run else waiting(found.runs),
        phase=found.phase or (run.phase if run else "") or "queued",
        asks=await _asks(visit, found, status) if failed_by_model(found) else "",
    )


async def _asks(visit: Visit, mission: MissionView, status: Status) -> str:
    """Return the model that a mission's agent is given; empty where the agent is gone."""
    try:
        agent = await visit.device.agent(RecordId(mission.agent_id))
    except NotFound:
        return ""
    if agent.model:
        return agent.model_words or agent.model
    on_hub = mission.runs_on == RUNS_ON_HUB and status.runner is not None and status.runner.models
    first = on_hub[0] if on_hub else status.device_model
    return first.model or first.endpoint


@get("/missions/{mission_id:str}/edit")
async def edit_mission(visit: Visiting, mission_id: Named) -> Page:
    """Show the sentence of a mission."""
    await visit.require_writer()
    found = await visit.device.mission(record_id(mission_id))
    sentence = sentences.of_mission(found)
    times = sentence.next_times(found.zone, now_ms())
    return await _form_page(visit, sentence, found, times=times)


@post("/missions")
async def create_mission(visit: Visiting) -> Page:
    """Create a mission; on the hub, ask for the grant next."""
    sentence = sentences.of_form(await visit.form())
    fields = sentence.read()
    if sentence.typed.faults:
        return await _form_page(visit, sentence, None, status=NOT_ACCEPTED)
    try:
        new_id = await visit.device.create_mission(
            fields["title"],
            fields["objective"],
            agent_id=fields["agent_id"],
            inputs=await _inputs(visit, sentence),
            cadence=fields["cadence"],
            zone=fields.get("zone"),
            concept=fields["concept"],
            runs_on=sentence.place,
            if_missed=fields["if_missed"],
            tokens_per_day_max=fields["tokens_per_day_max"],
            cost_per_day_max=fields["cost_per_day_max"],
        )
    except ManaError as error:
        return await _refused(visit, sentence, None, error)
    if sentence.place == RUNS_ON_HUB:
        return visit.go(visit.to(f"/missions/{new_id}/grant"))
    return visit.go(visit.to(f"/missions/{new_id}"), t("The mission is there."))


@post("/missions/{mission_id:str}")
async def save_mission(visit: Visiting, mission_id: Named) -> Page:
    """Write a mission's sentence anew."""
    sentence = sentences.of_form(await visit.form())
    device = visit.device
    found = await device.mission(record_id(mission_id))
    fields = sentence.read()
    if sentence.typed.faults:
        return await _form_page(visit, sentence, found, status=NOT_ACCEPTED)
    inputs = await _inputs(visit, sentence)
    if inputs != tuple(found.inputs):
        fields["inputs"] = inputs
    # A mission of another device stays there, unless it is moved to the hub.
    if (sentence.place == RUNS_ON_HUB) != (found.runs_on == RUNS_ON_HUB):
        fields["runs_on"] = sentence.place
    try:
        await device.edit_mission(found.mission_id, **fields)
    except ManaError as error:
        return await _refused(visit, sentence, found, error)
    now = (fields.get("tokens_per_day_max"), fields.get("cost_per_day_max"))
    is_raised = raises(now, (found.tokens_per_day_max, found.cost_per_day_max))
    said = saved_words([found] if is_raised else [])
    return visit.go(visit.to(f"/missions/{mission_id}"), said)


async def _refused(
    visit: Visit, sentence: Sentence, mission: MissionView | None, error: ManaError
) -> Page:
    """Show the form as it was typed, with what the device or the hub says against it."""
    if error.code == "LOCKED":
        raise error
    problem = problem_of(error)
    return await _form_page(visit, sentence, mission, status=problem.status, problem=problem)


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
    """Stop what runs of a mission, or waits to be tried again; here and on the hub."""
    form = await visit.form()
    await visit.device.stop_mission(record_id(mission_id))
    return visit.go(
        visit.back(form, f"/missions/{mission_id}"),
        t("Stopped. What it had not done is not done."),
    )


@post("/missions/{mission_id:str}/resume")
async def resume(visit: Visiting, mission_id: Named) -> Page:
    """Let a mission run again that failed too often in a row."""
    form = await visit.form()
    await visit.device.resume_mission(record_id(mission_id))
    return visit.go(visit.back(form, f"/missions/{mission_id}"), t("It goes on, as planned."))


@post("/missions/{mission_id:str}/agree")
async def agree(visit: Visiting, mission_id: Named) -> Page:
    """Agree to limits that another member raised, for what runs on this device."""
    form = await visit.form()
    await visit.device.agree_to_caps(record_id(mission_id))
    return visit.go(visit.back(form, f"/missions/{mission_id}"), t("Its limits hold here now."))


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


async def _inputs(visit: Visit, sentence: Sentence) -> tuple[InputRef, ...]:
    """Return the ticked inputs, in the order in which they are offered."""
    return tuple(ref for ref, _ in await visit.device.inputs() if ref.key in sentence.picked)


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    missions,
    new_mission,
    next_times,
    mission,
    edit_mission,
    create_mission,
    save_mission,
    set_state,
    delete_mission,
    run_now,
    stop_run,
    resume,
    agree,
    consent,
    grant,
)
