"""The inbox: what waits for a decision, and what was decided a moment ago."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from litestar import get, post
from litestar.datastructures import FormMultiDict
from litestar.types import ControllerRouterHandler

from mana.device.views import Proposal
from mana.domain.errors import Invalid, ManaError
from mana.web.deciding import (
    REASONS,
    arguments_of,
    faults_by_name,
    is_still_shown,
    shown,
    typed_in,
    typed_of,
)
from mana.web.problems import Problem, problem_of
from mana.web.sessions import Said
from mana.web.visits import Named, Page, Visit, Visiting, now_ms, record_id, text_of, trouble
from mana.web.words import counted, t

if TYPE_CHECKING:
    from mana.domain.ids import RecordId

TICKED_MAX: Final = 100
SHOWN_MAX: Final = 60
OLDER_MAX: Final = 20


async def _shown(visit: Visit) -> list[Proposal]:
    """Return what waits, and at its place what this browser has decided since it sat down."""
    waiting = await visit.device.inbox()
    known = {one.step_id for one in waiting}
    decided = [
        one
        for one in await visit.device.inbox(decided=True)
        if one.step_id in visit.session.decided and one.step_id not in known
    ]
    return sorted([*waiting, *decided], key=lambda one: (-one.planned_ms, one.step_id))


@get("/inbox")
async def inbox(visit: Visiting) -> Page:
    """Show what is to be decided."""
    found = await _shown(visit)
    known = {one.step_id for one in found}
    older = [one for one in await visit.device.inbox(decided=True) if one.step_id not in known]
    return await visit.page(
        "inbox.html",
        proposals=found[:SHOWN_MAX],
        more=max(0, len(found) - SHOWN_MAX),
        older=older[:OLDER_MAX],
        reasons=REASONS,
    )


@get("/inbox/together")
async def together(visit: Visiting) -> Page:
    """Show what several steps of one run would do together, with one button for all of them."""
    await visit.require_writer()
    step_ids = _step_ids(visit.request.query_params.getall("step", []))
    return await _together(visit, await visit.device.preview_all(step_ids))


@get("/inbox/{step_id:str}")
async def proposal(visit: Visiting, step_id: Named) -> Page:
    """Show one proposal in any state."""
    found = await visit.device.proposal(record_id(step_id))
    return await visit.page("proposal.html", proposal=found, reasons=REASONS)


@get("/inbox/{step_id:str}/edit")
async def edit(visit: Visiting, step_id: Named) -> Page:
    """Show the form in which a person changes what was proposed."""
    await visit.require_writer()
    return await _edit(visit, record_id(step_id), None)


@post("/inbox/{step_id:str}/edit")
async def look_at_edit(visit: Visiting, step_id: Named) -> Page:
    """Show what would happen with what was typed; nothing is written."""
    return await _edit(visit, record_id(step_id), await visit.form())


@post("/inbox/{step_id:str}/approve")
async def approve(visit: Visiting, step_id: Named) -> Page:
    """Approve a proposal: what this page showed happens, once."""
    form = await visit.form()
    wanted = record_id(step_id)
    now = await visit.device.proposal(wanted)
    if now.state == "staged" and not is_still_shown(form, now):
        visit.session.say(trouble(_moved()))
        return visit.go(visit.to(f"/inbox/{wanted}"))
    await visit.device.approve(wanted, feedback=text_of(form, "feedback").strip())
    return _done(visit, form, wanted)


@post("/inbox/{step_id:str}/approve-edited")
async def approve_edited(visit: Visiting, step_id: Named) -> Page:
    """Approve a proposal as the person changed it, if this page showed what would happen."""
    form = await visit.form()
    wanted = record_id(step_id)
    asked = await visit.device.edit_form(wanted)
    arguments = arguments_of(typed_in(form, asked), asked)
    preview = await visit.device.edit_preview(wanted, arguments)
    if preview.faults or preview.trouble:
        return await _edit(visit, wanted, form)
    if text_of(form, "shown") != shown(preview):
        return await _edit(visit, wanted, form, problem=_typed_since())
    try:
        await visit.device.approve(wanted, arguments=arguments)
    except ManaError as error:
        return await _edit(visit, wanted, form, problem=problem_of(error))
    return _done(visit, form, wanted)


@post("/inbox/{step_id:str}/reject")
async def reject(visit: Visiting, step_id: Named) -> Page:
    """Reject a proposal; the reason goes to the agent."""
    form = await visit.form()
    code, said = _reason(form)
    await visit.device.reject(record_id(step_id), reason_code=code, reason=said)
    visit.session.decide(step_id, now_ms())
    return visit.go(visit.back(form, "/inbox"), t("Rejected. Nothing was changed."))


@post("/inbox/approve")
async def approve_ticked(visit: Visiting) -> Page:
    """Approve all that are ticked of one run as a whole: all of it happens, or none.

    What they would do together may be another thing than each alone; then it is shown first.
    """
    form = await visit.form()
    ticked = _ticked(form)
    if not ticked:
        return visit.go(visit.to("/inbox"), t("Nothing is ticked yet."))
    step_ids = list(ticked)
    try:
        previews = await visit.device.preview_all(step_ids)
    except ManaError as error:
        return await _at_fault(visit, error)
    if any(ticked[one.step_id] not in ("", shown(one)) for one in previews):
        return await _together(visit, previews, looked=text_of(form, "together") == "1")
    try:
        await visit.device.approve_all(step_ids)
    except ManaError as error:
        fault = str(error.detail.get("stepId", ""))
        again = await visit.device.preview_all(step_ids) if _waits(error) else ()
        if not again:
            return await _at_fault(visit, error)
        return await _together(visit, again, fault=fault, problem=problem_of(error))
    for step_id in step_ids:
        visit.session.decide(step_id, now_ms())
    said = counted(len(step_ids), "1 proposal is done.", "{n} proposals are done, as one whole.")
    return visit.go(visit.to("/inbox"), said)


@post("/inbox/reject")
async def reject_run(visit: Visiting) -> Page:
    """Reject several steps of one run, all or none."""
    form = await visit.form()
    code, said = _reason(form)
    step_ids = list(_ticked(form))
    if not step_ids:
        return visit.go(visit.to("/inbox"), t("Nothing is ticked yet."))
    try:
        await visit.device.reject_all(step_ids, reason_code=code, reason=said)
    except ManaError as error:
        return await _at_fault(visit, error)
    for step_id in step_ids:
        visit.session.decide(step_id, now_ms())
    told = counted(len(step_ids), "1 is rejected.", "{n} are rejected.")
    return visit.go(visit.to("/inbox"), t("{told} Nothing was changed.", told=told))


# Within


@dataclass(frozen=True, slots=True)
class _Edit:
    """The form of an edit with what was typed, and what is wrong with it."""

    typed: Mapping[str, str]
    faults: Mapping[str, object]
    preview: Proposal | None


async def _edit(
    visit: Visit, step_id: RecordId, form: FormMultiDict | None, *, problem: Problem | None = None
) -> Page:
    """Show the form of an edit, with the preview of what was typed."""
    device = visit.device
    original = await device.proposal(step_id)
    if original.state != "staged":
        return visit.go(visit.to(f"/inbox/{step_id}"), t("This was decided meanwhile."))
    asked = await device.edit_form(step_id)
    if form is None:
        edited = _Edit(typed_of(asked), {}, None)
    else:
        typed = typed_in(form, asked)
        preview = await device.edit_preview(step_id, arguments_of(typed, asked))
        edited = _Edit(typed, faults_by_name(asked, preview.faults), preview)
    page = await visit.page(
        "edit.html",
        status=200 if problem is None else problem.status,
        proposal=original,
        asked=asked,
        edit=edited,
        problem=problem,
    )
    if problem is not None:
        # In place of the card; what is asked for anew there is this form, not what was posted.
        page.headers["HX-Push-Url"] = visit.to(f"/inbox/{step_id}/edit")
    return page


async def _together(
    visit: Visit,
    previews: Sequence[Proposal],
    *,
    looked: bool = False,
    fault: str = "",
    problem: Problem | None = None,
) -> Page:
    """Show steps of one run as one whole. `looked`: this was shown before, and moved since."""
    page = await visit.page(
        "together.html",
        status=200 if problem is None else problem.status,
        proposals=previews,
        looked=looked,
        fault=fault,
        problem=problem,
        possible=not any(one.trouble or not one.verified for one in previews),
    )
    named = urlencode([("step", one.step_id) for one in previews])
    page.headers["HX-Push-Url"] = visit.to(f"/inbox/together?{named}")
    return page


async def _at_fault(visit: Visit, error: ManaError) -> Page:
    """Lead back to the inbox, and say which step stood in the way and why."""
    problem = problem_of(error)
    step_id = str(error.detail.get("stepId", ""))
    if not step_id:
        raise error
    found = await visit.device.proposal(step_id)
    why = trouble(problem).text
    said = t("Nothing was done. “{step}”: {why}", step=found.sentence, why=why)
    visit.session.say(Said(said, trouble=True))
    return visit.go(visit.to("/inbox"))


def _waits(error: ManaError) -> bool:
    """Say whether all steps of a refused group still wait, so that it can be shown again."""
    return error.code not in ("PROPOSAL_DECIDED", "PROPOSAL_EXPIRED", "PROPOSAL_FOR_OTHERS")


def _done(visit: Visit, form: FormMultiDict, step_id: RecordId) -> Page:
    visit.session.decide(step_id, now_ms())
    return visit.go(
        visit.back(form, "/inbox"),
        t("Done."),
        undo=visit.to("/timeline/revert"),
        target=f"step:{step_id}",
    )


def _ticked(form: FormMultiDict) -> dict[str, str]:
    """Return the steps that a form names, each with the mark of what was shown of it."""
    named = [str(one).partition(" ") for one in form.getall("step", [])]
    if len(named) > TICKED_MAX:
        raise Invalid(f"at most {TICKED_MAX} proposals are decided on at once")
    return {str(record_id(step_id)): mark for step_id, _, mark in named}


def _step_ids(named: Sequence[str]) -> list[RecordId]:
    if not 0 < len(named) <= TICKED_MAX:
        raise Invalid(f"between 1 and {TICKED_MAX} proposals are shown together")
    return [record_id(one) for one in named]


def _reason(form: FormMultiDict) -> tuple[str, str]:
    return text_of(form, "chip"), text_of(form, "reason").strip()


def _moved() -> Problem:
    return Problem(
        409,
        t("It has moved"),
        t("What it would do has changed since this page showed it. Nothing was done."),
        "",
        t("Look at it as it is now, then decide."),
        "PROPOSAL_MOVED",
    )


def _typed_since() -> Problem:
    return Problem(
        409,
        t("Look once more"),
        t("This is not the change that was shown: something was typed, or moved, since."),
        t("Nothing was done; what you typed is still here."),
        t("Below is what would happen now. Approve it if it is right."),
        "EDIT_UNSEEN",
    )


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    inbox,
    together,
    proposal,
    edit,
    look_at_edit,
    approve_ticked,
    reject_run,
    approve,
    approve_edited,
    reject,
)
