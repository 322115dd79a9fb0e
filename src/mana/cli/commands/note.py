"""`mana note`: notes, as the page has them."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from mana.cli.opening import Surroundings, on_account, read_standard_input
from mana.cli.output import Answer, Rows
from mana.cli.records import (
    PrivateOption,
    Visible,
    VisibleArgument,
    brought_back,
    find,
    listed,
    made_visible,
    removed,
    seen_by,
    short_ids,
    shown,
    with_seen_by,
    written,
    wrote,
)
from mana.cli.text import one_line
from mana.device.desk import Device
from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.records import View

TABLE: Final = "notes"
STDIN: Final = "-"

note = typer.Typer(help="Notes: titled texts.", no_args_is_help=True, add_completion=False)

NoteArgument = Annotated[str, typer.Argument(metavar="NOTE", help="Title, id or start of an id.")]
ContentOption = Annotated[
    str | None, typer.Option("--content", "-c", help="The text, Markdown; - reads standard input.")
]


@note.command()
@on_account(fresh=False)
async def add(
    device: Device,
    title: Annotated[str, typer.Argument(help="The title.")],
    content: ContentOption = None,
    private: PrivateOption = False,
) -> Answer:
    """Write a new note."""
    if not title.strip():
        raise Invalid("a note needs a title")
    values: dict[str, Json] = {"title": title.strip(), "content": _given(content) or ""}
    visibility = Visible.PRIVATE if private else Visible.SPACE
    record_id = await device.create(TABLE, values, visibility=visibility.value)
    return await wrote(device, "note", TABLE, record_id, f"Added note “{one_line(title, 80)}”.")


@note.command("list")
@on_account()
async def list_notes(
    device: Device,
    around: Surroundings,
    query: Annotated[str, typer.Argument(help="Only notes with these words.")] = "",
    deleted: Annotated[bool, typer.Option("--deleted", help="Only deleted ones.")] = False,
) -> Answer:
    """List notes, the newest written first."""
    words = query.casefold().split()
    views = [
        view
        for view in await device.list(TABLE, include_deleted=deleted)
        if view.deleted is deleted
        and all(word in f"{title_of(view)}\n{view.text('content')}".casefold() for word in words)
    ]
    ids = await short_ids(device, TABLE)
    now_ms = around.now_ms()
    rows = [(ids[view.id], title_of(view), written(view, now_ms=now_ms)) for view in views]
    nothing = (
        "No note has these words."
        if words
        else "No note was deleted."
        if deleted
        else "No notes yet. Write one: mana note add TITLE"
    )
    shown_rows = with_seen_by(Rows(("ID", "TITLE", "WRITTEN"), rows, flexible=1), views)
    return listed("notes", views, shown_rows, nothing=nothing)


@note.command()
@on_account()
async def show(device: Device, around: Surroundings, named: NoteArgument) -> Answer:
    """Show a note with its text."""
    view = await find(device, TABLE, named, what="note", title=title_of)
    facts = [
        ("Id", view.id),
        ("Written", written(view, now_ms=around.now_ms())),
        ("Seen by", await seen_by(device, view)),
    ]
    return shown("note", view, title_of(view), facts, view.text("content"))


@note.command()
@on_account()
async def edit(
    device: Device,
    named: NoteArgument,
    title: Annotated[str | None, typer.Option("--title", help="A new title.")] = None,
    content: ContentOption = None,
) -> Answer:
    """Replace the title or the text of a note."""
    view = await find(device, TABLE, named, what="note", title=title_of)
    values: dict[str, Json] = {}
    if title is not None:
        values["title"] = title.strip()
    if content is not None:
        values["content"] = _given(content)
    if not values:
        raise Invalid("nothing to change was given: --title or --content")
    await device.edit(TABLE, view.id, values)
    words = f"Changed note “{one_line(title or title_of(view), 80)}”."
    return await wrote(device, "note", TABLE, view.id, words)


@note.command()
@on_account()
async def append(
    device: Device,
    named: NoteArgument,
    text: Annotated[str, typer.Argument(help="The text to add; - reads standard input.")],
) -> Answer:
    """Add a paragraph at the end of a note."""
    view = await find(device, TABLE, named, what="note", title=title_of)
    given = _given(text) or ""
    await device.use_tool("append_to_note", {"noteId": view.id, "content": given})
    return await wrote(
        device, "note", TABLE, view.id, f"Added to note “{one_line(title_of(view), 80)}”."
    )


@note.command()
@on_account()
async def delete(device: Device, named: NoteArgument) -> Answer:
    """Delete a note; it can be restored."""
    view = await find(device, TABLE, named, what="note", title=title_of)
    return await removed(device, view, name="note", shown_title=one_line(title_of(view), 80))


@note.command()
@on_account()
async def restore(device: Device, named: NoteArgument) -> Answer:
    """Bring a deleted note back."""
    view = await find(device, TABLE, named, what="deleted note", title=title_of, deleted=True)
    return await brought_back(device, view, name="note", shown_title=one_line(title_of(view), 80))


@note.command()
@on_account()
async def visibility(device: Device, named: NoteArgument, to: VisibleArgument) -> Answer:
    """Say who sees a note of yours in a shared space. Needs the hub."""
    view = await find(device, TABLE, named, what="note", title=title_of)
    title = one_line(title_of(view), 80)
    return await made_visible(device, view, to, name="note", shown_title=title)


def title_of(view: View) -> str:
    """Return the title, or the start of the text where there is none."""
    title = view.text("title").strip()
    return title or one_line(view.text("content"), 80) or "untitled"


def _given(content: str | None) -> str | None:
    return read_standard_input().rstrip("\n") if content == STDIN else content
