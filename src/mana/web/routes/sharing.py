"""Who sees a record of a shared space: its author alone, or everybody there."""

from __future__ import annotations

from litestar.datastructures import FormMultiDict

from mana.domain.errors import Invalid
from mana.domain.records import View
from mana.web.visits import Page, Visit, record_id, text_of, visibility_of
from mana.web.words import t


async def author_name(visit: Visit, view: View) -> str:
    """Return what who made a record is called, in a shared space; empty if it is not known."""
    device = visit.device
    if view.author_id == device.account_id or not (await visit.place()).shared:
        return ""
    named = {one.account_id: one.name for one in await device.members()}
    return named.get(view.author_id, "")


async def set_visibility(visit: Visit, form: FormMultiDict, table: str, wanted: str) -> Page:
    """Make a record private or share it, and say what that does and what it cannot do."""
    if not text_of(form, "visibility"):
        raise Invalid("who shall see it is not said")
    chosen, found = visibility_of(form), record_id(wanted)
    await visit.device.set_visibility(table, found, chosen)
    if chosen == "private":
        said = t("Only you see it from now on. What others have read cannot be unread.")
    else:
        said = t("Everybody in {space} can read it now.", space=(await visit.place()).name)
    return visit.go(visit.back(form, f"/{table}/{found}"), said)
