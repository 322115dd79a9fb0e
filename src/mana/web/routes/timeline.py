"""The timeline: what AI did, and the way back from any of it."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlencode

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.domain.errors import Invalid
from mana.web.visits import Page, Visiting, record_id, text_of
from mana.web.words import counted, t

SHOWN: Final = 50
SHOWN_MAX: Final = 300
STEPS_SHOWN: Final = tuple(str(number) for number in range(SHOWN, SHOWN_MAX + 1, SHOWN))
_TARGET: Final = re.compile(r"(step|iteration|mission|revert):[\w.-]{1,128}")


def _target(text: str) -> str:
    if not _TARGET.fullmatch(text):
        raise Invalid("what is to be reverted is not named")
    return text


@get("/timeline")
async def timeline(visit: Visiting) -> Page:
    """Show what AI did, day by day."""
    mission_id = visit.request.query_params.get("mission") or None
    asked = visit.request.query_params.get("shown", "")
    limit = int(asked) if asked in STEPS_SHOWN else SHOWN
    buckets = await visit.device.timeline(limit=limit + 1, mission_id=mission_id)
    cut = len(buckets) > limit
    named = {"mission": mission_id} if mission_id else {}
    wider = min(limit + SHOWN, SHOWN_MAX)
    return await visit.page(
        "timeline.html",
        buckets=buckets[:limit],
        mission_id=mission_id,
        cut=cut,
        more=urlencode({**named, "shown": wider}) if cut and wider > limit else "",
        here_again=visit.to("/timeline") + (f"?{urlencode(named)}" if named else ""),
    )


@post("/timeline/comment")
async def comment(visit: Visiting) -> Page:
    """Keep what the person says of a whole run; the agent reads it before the next."""
    form = await visit.form()
    said = text_of(form, "text").strip()
    await visit.device.comment(record_id(text_of(form, "iteration")), said)
    told = t("Kept. The agent reads it before its next run.") if said else t("Taken back.")
    return visit.go(visit.back(form, "/timeline"), told)


@get("/timeline/revert")
async def preview(visit: Visiting) -> Page:
    """Show what a revert would restore and what it would leave."""
    await visit.require_writer()
    target = _target(visit.request.query_params.get("target", ""))
    found = await visit.device.revert_preview(target)
    return await visit.page("revert.html", preview=found, redo=target.startswith("revert:"))


@post("/timeline/revert")
async def revert(visit: Visiting) -> Page:
    """Revert, or take a revert back."""
    form = await visit.form()
    target = _target(text_of(form, "target"))
    done = await visit.device.revert(target)
    restored, left = len(done.restored), len(done.conflicts)
    if target.startswith("revert:"):
        said = counted(restored, "1 change is there again.", "{n} changes are there again.")
    else:
        said = counted(restored, "1 change is taken back.", "{n} changes are taken back.")
    if left:
        said += " " + counted(
            left, "1 field was left as you changed it.", "{n} fields were left as you changed them."
        )
    if not restored:
        said = t("Nothing was changed: what it wrote has been changed since.")
    return visit.go(visit.back(form, "/timeline"), said)


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    timeline,
    preview,
    revert,
    comment,
)
