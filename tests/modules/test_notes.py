"""Notes: each tool plans exactly what it says."""

from __future__ import annotations

import pytest

from mana.domain.encoding import Json
from mana.domain.errors import ManaError
from mana.domain.tools import Outcome
from mana.planning.dispatch import execute
from tests.planning.given import CATALOGUE, PERSON, records, view

VIEWS = [
    view("notes", "n1", {"title": "Trip", "content": "Pack bags.\n\n#travel", "isPinned": True}),
    view("notes", "n2", {"content": "First line\nand more"}),
    view("notes", "n3", {"title": "Old", "content": "x", "isArchived": True}),
]


def do(tool: str, arguments: Json) -> Outcome:
    """Run a tool for a person over three notes."""
    return execute(tool, arguments, caller=PERSON, catalogue=CATALOGUE, records=records(VIEWS))


def test_create_note_makes_one_note() -> None:
    """A new note holds title and text, and its id is told."""
    outcome = do("create_note", {"title": " Plan ", "content": "Text"})
    [change] = outcome.changes
    assert change.values == {"title": "Plan", "content": "Text"}
    assert outcome.data == {"noteId": change.record_id}


def test_update_note_writes_only_what_is_given() -> None:
    """A title alone leaves the text as it is."""
    [change] = do("update_note", {"noteId": "n1", "title": "Journey"}).changes
    assert change.values == {"title": "Journey"}


def test_append_adds_a_paragraph() -> None:
    """The old text stays in front of the new one."""
    [change] = do("append_to_note", {"noteId": "n2", "content": "End."}).changes
    assert change.values == {"content": "First line\nand more\n\nEnd."}


@pytest.mark.parametrize("tag, written", [("Home", "#Home"), ("#to do", "#to-do")])
def test_a_tag_is_written_into_the_text(tag: str, written: str) -> None:
    """A tag stands as a hashtag at the end."""
    [change] = do("add_tag_to_note", {"noteId": "n1", "tag": tag}).changes
    assert str(change.values["content"]).endswith(f"\n\n{written}")


@pytest.mark.parametrize("tag, code", [("TRAVEL", "TAG_PRESENT"), ("a<b", "BAD_REQUEST")])
def test_a_tag_is_written_once(tag: str, code: str) -> None:
    """A tag that stands there, in any case, or is none, is refused."""
    with pytest.raises(ManaError) as refused:
        do("add_tag_to_note", {"noteId": "n1", "tag": tag})
    assert refused.value.code == code


@pytest.mark.parametrize(
    "arguments, ids",
    [
        ({}, ["n1", "n2"]),
        ({"includeArchived": True}, ["n1", "n3", "n2"]),
        ({"includeArchived": "true", "limit": "1"}, ["n1"]),
        ({"query": "LINE more"}, ["n2"]),
        ({"query": "nothing"}, []),
    ],
)
def test_notes_are_listed(arguments: Json, ids: list[str]) -> None:
    """Pinned first, archived only when asked, filtered by words; numbers as text are read."""
    data = do("list_notes", arguments).data
    assert [note["noteId"] for note in data["notes"]] == ids  # type: ignore[index,call-overload,union-attr]


def test_inputs_show_title_and_text() -> None:
    """A note without a title is named by its first line; archived ones are not offered."""
    kind = CATALOGUE.inputs["notes"]
    assert [kind.title(found) for found in VIEWS] == ["Trip", "First line", "Old"]
    assert [kind.pickable(found) for found in VIEWS] == [True, True, False]
    long = kind.content(view("notes", "n", {"content": "x" * 30_000}))
    assert (len(long), long[-1]) == (20_000, "…")
