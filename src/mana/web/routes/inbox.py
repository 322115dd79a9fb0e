"""The inbox: what waits for a decision, and what was decided a moment ago."""

from __future__ import annotations

from typing import Final

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.device.views import Proposal
from mana.domain.errors import ManaError
from mana.web.problems import problem_of
from mana.web.visits import Named, Page, Visit, Visiting, now_ms, record_id, text_of, trouble
from mana.web.words import counted, t

REASONS: Final = ("Not now", "Wrong", "Already done", "Too much", "I do this myself")
TICKED_MAX: Final = 100


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
    shown = await _shown(visit)
    older = [one for one in await visit.device.inbox(decided=True) if one not in shown][:20]
    return await visit.page("inbox.html", proposals=shown, older=older, reasons=REASONS)


@get("/inbox/{step_id:str}")
async def proposal(visit: Visiting, step_id: Named) -> Page:
    """Show one proposal in any state."""
    found = await visit.device.proposal(record_id(step_id))
    return await visit.page("proposal.html", proposal=found, reasons=REASONS)


@post("/inbox/{step_id:str}/approve")
async def approve(visit: Visiting, step_id: Named) -> Page:
    """Approve a proposal: what was shown happens, once."""
    form = await visit.form()
    await visit.device.approve(record_id(step_id), feedback=text_of(form, "feedback").strip())
    visit.session.decide(step_id, now_ms())
    return visit.go(
        visit.back(form, "/inbox"),
        t("Done."),
        undo=visit.to("/timeline/revert"),
        target=f"step:{step_id}",
    )


@post("/inbox/{step_id:str}/reject")
async def reject(visit: Visiting, step_id: Named) -> Page:
    """Reject a proposal; the reason goes to the agent."""
    form = await visit.form()
    chip, written = text_of(form, "chip"), text_of(form, "reason").strip()
    reason = written if not chip else f"{chip}: {written}" if written else chip
    await visit.device.reject(record_id(step_id), reason=reason)
    visit.session.decide(step_id, now_ms())
    return visit.go(visit.back(form, "/inbox"), t("Rejected. Nothing was changed."))


@post("/inbox/approve")
async def approve_ticked(visit: Visiting) -> Page:
    """Approve all that are ticked, one after the other; one that fails stops none of the rest."""
    form = await visit.form()
    done = 0
    for step_id in [str(one) for one in form.getall("step", [])][:TICKED_MAX]:
        try:
            await visit.device.approve(record_id(step_id))
        except ManaError as error:
            visit.session.say(trouble(problem_of(error)))
        else:
            visit.session.decide(step_id, now_ms())
            done += 1
    if not done:
        return visit.go(visit.to("/inbox"), t("Nothing was ticked that could be approved."))
    return visit.go(
        visit.to("/inbox"), counted(done, "1 proposal is done.", "{n} proposals are done.")
    )


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    inbox,
    proposal,
    approve_ticked,
    approve,
    reject,
)
