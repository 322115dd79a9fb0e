"""What an agent or a person can ask of notes. Nothing here writes: changes are returned."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta

from mana.domain.changes import Change
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Invalid, TooLarge
from mana.domain.records import Records, View
from mana.domain.tools import Call, Outcome, Tool
from mana.modules.notes.tables import CONTENT_MAX, NOTES, TITLE_MAX

TEXT_MAX: Final = 20_000
LIST_MAX: Final = 100
LIST_DEFAULT: Final = 30
_EXCERPT_MAX: Final = 500
_TAG: Final = re.compile(r"[\w-]+")

NoteId = Annotated[str, Meta(min_length=1, max_length=128, description="Id of the note.")]
Title = Annotated[str, Meta(min_length=1, max_length=TITLE_MAX, description="Title of the note.")]
Content = Annotated[str, Meta(min_length=1, max_length=TEXT_MAX, description="Text, Markdown.")]


class NoteUnreadable(Conflict):
    """The note's text cannot be opened here, so it must not be built upon."""

    code = "NOTE_UNREADABLE"
    advice = "Open the note on a device that holds its key."


class TagPresent(Conflict):
    """The note already bears this tag."""

    code = "TAG_PRESENT"
    advice = "Nothing is to be done."


class CreateNote(Call, frozen=True):
    """Parameters of `create_note`."""

    content: Content
    title: Title | None = None


class UpdateNote(Call, frozen=True):
    """Parameters of `update_note`."""

    note_id: NoteId
    title: Title | None = None
    content: Content | None = None


class AppendToNote(Call, frozen=True):
    """Parameters of `append_to_note`."""

    note_id: NoteId
    content: Content


class AddTagToNote(Call, frozen=True):
    """Parameters of `add_tag_to_note`."""

    note_id: NoteId
    tag: Annotated[str, Meta(min_length=1, max_length=50, description="Tag, with or without #.")]


class ListNotes(Call, frozen=True):
    """Parameters of `list_notes`."""

    limit: Annotated[int, Meta(ge=1, le=LIST_MAX, description="How many at most.")] = LIST_DEFAULT
    query: Annotated[str, Meta(max_length=200, description="Words in title or text.")] | None = None
    include_archived: bool = False


def title_of(view: View) -> str:
    """Return the note's title, or the start of its text where it has none."""
    title = view.text("title").strip()
    if title:
        return title
    first = view.text("content").strip().partition("\n")[0]
    return first if len(first) <= 80 else first[:79] + "…"


def _content(view: View) -> str:
    """Return the text that a write builds upon; raise NoteUnreadable where it is sealed here."""
    if "content" in view.sealed_fields:
        raise NoteUnreadable("the note's text cannot be opened here")
    return view.text("content")


def _rewrite(records: Records, view: View, content: str) -> Change:
    """Return the change of the note's text; raise TooLarge beyond the table's limit."""
    if len(content) > CONTENT_MAX:
        raise TooLarge(f"a note holds at most {CONTENT_MAX} characters")
    return records.edit(view, {"content": content})


def create_note(call: CreateNote, records: Records) -> Outcome:
    """Plan one new note."""
    values: dict[str, Json] = {"content": call.content}
    if call.title is not None:
        values["title"] = call.title.strip()
    change = records.new(NOTES, values)
    return Outcome("The note is created.", {"noteId": change.record_id}, (change,))


def update_note(call: UpdateNote, records: Records) -> Outcome:
    """Plan to replace the title, the text, or both; the old ones are gone from the note."""
    view = records.get(NOTES, call.note_id)
    values: dict[str, Json] = {}
    if call.title is not None:
        values["title"] = call.title.strip()
    if call.content is not None:
        values["content"] = call.content
    if not values:
        raise Invalid("update_note needs a title or a content")
    return Outcome("The note is changed.", {"noteId": view.id}, (records.edit(view, values),))


def append_to_note(call: AppendToNote, records: Records) -> Outcome:
    """Plan to add a paragraph at the end of a note."""
    view = records.get(NOTES, call.note_id)
    old = _content(view).rstrip()
    change = _rewrite(records, view, f"{old}\n\n{call.content}" if old else call.content)
    return Outcome("The text is added to the note.", {"noteId": view.id}, (change,))


def _tag(raw: str) -> str:
    """Return the tag as it stands in text, with one `#` and no spaces."""
    word = "-".join(raw.strip().lstrip("#").split())
    if not _TAG.fullmatch(word):
        raise Invalid("a tag is letters, digits, - and _")
    return f"#{word}"


def add_tag_to_note(call: AddTagToNote, records: Records) -> Outcome:
    """Plan to write a hashtag at the end of a note's text, unless it stands there."""
    view = records.get(NOTES, call.note_id)
    tag = _tag(call.tag)
    old = _content(view).rstrip()
    if tag.casefold() in (word.casefold() for word in re.findall(r"#[\w-]+", old)):
        raise TagPresent("the note already bears this tag")
    change = _rewrite(records, view, f"{old}\n\n{tag}" if old else tag)
    return Outcome("The tag is added to the note.", {"noteId": view.id}, (change,))


def list_notes(call: ListNotes, records: Records) -> Outcome:
    """Answer with notes, pinned first, then the newest written."""
    wanted = (call.query or "").casefold().split()
    found = [
        view
        for view in records.all(NOTES)
        if (call.include_archived or view.values.get("isArchived") is not True)
        and all(
            word in f"{view.text('title')}\n{view.text('content')}".casefold() for word in wanted
        )
    ]
    found.sort(key=lambda view: view.values.get("isPinned") is not True)
    notes: list[Json] = [
        {
            "noteId": view.id,
            "title": title_of(view),
            "excerpt": shorten(view.text("content"), _EXCERPT_MAX),
            "isPinned": view.values.get("isPinned") is True,
            "isArchived": view.values.get("isArchived") is True,
        }
        for view in found[: call.limit]
    ]
    return Outcome(f"{len(notes)} of {len(found)} notes.", {"notes": notes, "total": len(found)})


def shorten(text: str, length_max: int) -> str:
    """Return the text, cut to the limit with an ellipsis where it is longer."""
    return text if len(text) <= length_max else text[: length_max - 1] + "…"


def _named(records: Records, note_id: str) -> str:
    return f"“{shorten(title_of(records.get(NOTES, note_id)), TITLE_MAX)}”"


def _create_sentence(call: CreateNote, records: Records) -> str:
    title = call.title or call.content.strip().partition("\n")[0]
    return f"Add note “{shorten(title.strip(), 80)}”"


def _update_sentence(call: UpdateNote, records: Records) -> str:
    named = _named(records, call.note_id)
    if call.content is None:
        return f"Rename note {named} to “{shorten((call.title or '').strip(), TITLE_MAX)}”"
    if call.title is None:
        return f"Replace the text of note {named}"
    return f"Replace title and text of note {named}"


CREATE_NOTE: Final = Tool(
    name="create_note",
    module="notes",
    effect="write",
    description="Create a note with a text and, if useful, a title.",
    call=CreateNote,
    run=create_note,
    sentence=_create_sentence,
    words="write a note",
)
UPDATE_NOTE: Final = Tool(
    name="update_note",
    module="notes",
    effect="destructive",
    description="Replace the title or the whole text of a note. To add text, use append_to_note.",
    call=UpdateNote,
    run=update_note,
    sentence=_update_sentence,
    words="rewrite a note",
)
APPEND_TO_NOTE: Final = Tool(
    name="append_to_note",
    module="notes",
    effect="write",
    description="Add text at the end of a note.",
    call=AppendToNote,
    run=append_to_note,
    sentence=lambda call, records: f"Add text to note {_named(records, call.note_id)}",
    words="add text to a note",
)
ADD_TAG_TO_NOTE: Final = Tool(
    name="add_tag_to_note",
    module="notes",
    effect="write",
    description="Add a hashtag at the end of a note's text.",
    call=AddTagToNote,
    run=add_tag_to_note,
    sentence=lambda call, records: (
        f"Add tag {_tag(call.tag)} to note {_named(records, call.note_id)}"
    ),
    words="tag a note",
)
LIST_NOTES: Final = Tool(
    name="list_notes",
    module="notes",
    effect="read",
    description="List notes with id, title and the start of the text; filter by words.",
    call=ListNotes,
    run=list_notes,
    sentence=lambda call, records: "List notes",
    words="look through notes",
)
