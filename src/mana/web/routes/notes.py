"""Notes: list, write, pin, delete, bring back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.records import View
from mana.web.routes.sharing import author_name, set_visibility
from mana.web.showing import title
from mana.web.visits import Named, Page, Visiting, record_id, text_of, visibility_of
from mana.web.words import t

TABLE: Final = "notes"


def sorted_notes(views: Sequence[View]) -> list[View]:
    """Return notes that are not archived, pinned ones first."""
    shown = [view for view in views if view.values.get("isArchived") is not True]
    return sorted(shown, key=lambda view: view.values.get("isPinned") is not True)


@get("/notes")
async def notes(visit: Visiting) -> Page:
    """List the notes, or those in which all words of `q` stand."""
    words = visit.request.query_params.get("q", "").strip()
    found = sorted_notes(await visit.device.list(TABLE))
    for word in words.casefold().split():
        found = [
            view
            for view in found
            if word in f"{view.text('title')}\n{view.text('content')}".casefold()
        ]
    return await visit.page("notes.html", notes=found, q=words)


@get("/notes/new")
async def new_note(visit: Visiting) -> Page:
    """Show an empty note."""
    await visit.require_writer()
    return await visit.page("note.html", note=None, by="")


@get("/notes/{note_id:str}")
async def note(visit: Visiting, note_id: Named) -> Page:
    """Show one note, ready to be changed."""
    found = await visit.device.get(TABLE, record_id(note_id))
    return await visit.page("note.html", note=found, by=await author_name(visit, found))


@post("/notes")
async def create_note(visit: Visiting) -> Page:
    """Write a new note."""
    form = await visit.form()
    values = _values(text_of(form, "title"), text_of(form, "content"))
    new_id = await visit.device.create(TABLE, values, visibility=visibility_of(form))
    return visit.go(visit.back(form, f"/notes/{new_id}"), t("The note is saved."))


@post("/notes/{note_id:str}")
async def save_note(visit: Visiting, note_id: Named) -> Page:
    """Write a note's changes; one that came meanwhile to another field stays."""
    form = await visit.form()
    found = await visit.device.get(TABLE, record_id(note_id))
    typed = _values(text_of(form, "title"), text_of(form, "content"))
    changed = {name: value for name, value in typed.items() if found.text(name) != value}
    if changed:
        await visit.device.edit(TABLE, found.id, changed)
    return visit.go(visit.back(form, f"/notes/{note_id}"), t("Saved."))


@post("/notes/{note_id:str}/pin")
async def pin_note(visit: Visiting, note_id: Named) -> Page:
    """Pin a note, or let it go."""
    form = await visit.form()
    found = await visit.device.get(TABLE, record_id(note_id))
    pinned = found.values.get("isPinned") is True
    await visit.device.edit(TABLE, found.id, {"isPinned": not pinned})
    return visit.go(visit.back(form, f"/notes/{note_id}"))


@post("/notes/{note_id:str}/delete")
async def delete_note(visit: Visiting, note_id: Named) -> Page:
    """Delete a note; it can be brought back."""
    found = await visit.device.get(TABLE, record_id(note_id))
    await visit.device.delete(TABLE, found.id)
    said = t("“{title}” is deleted.", title=title(found))
    return visit.go(visit.to("/notes"), said, undo=visit.to(f"/notes/{note_id}/restore"))


@post("/notes/{note_id:str}/restore")
async def restore_note(visit: Visiting, note_id: Named) -> Page:
    """Bring a deleted note back."""
    await visit.device.restore(TABLE, record_id(note_id))
    return visit.go(visit.to(f"/notes/{note_id}"), t("The note is back."))


@post("/notes/{note_id:str}/visibility")
async def set_note_visibility(visit: Visiting, note_id: Named) -> Page:
    """Make a note private, or share it with its space."""
    form = await visit.form()
    return await set_visibility(visit, form, TABLE, note_id)


def _values(title_typed: str, content: str) -> dict[str, Json]:
    if not title_typed.strip() and not content.strip():
        raise Invalid("a note needs a title or a text")
    return {"title": title_typed.strip(), "content": content}


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    notes,
    new_note,
    note,
    create_note,
    save_note,
    pin_note,
    delete_note,
    restore_note,
    set_note_visibility,
)
