"""What the commands of every data module share: find a record by name, list, show, remove."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated

import typer

from mana.cli.naming import resolve, shorts
from mana.cli.output import Answer, Block, Facts, Line, Rows, record_document
from mana.cli.spaces import PERSONAL, called, option, space_of
from mana.cli.text import when
from mana.device.desk import Device
from mana.domain.clock import parse_stamp
from mana.domain.records import View

TitleOf = Callable[[View], str]


class Visible(StrEnum):
    """Who sees a record of a shared space."""

    PRIVATE = "private"
    SPACE = "space"


PrivateOption = Annotated[bool, typer.Option("--private", help="In a shared space: for you alone.")]
VisibleArgument = Annotated[
    Visible,
    typer.Argument(
        metavar="private|space", help="private: you alone. space: every member of the space."
    ),
]


async def find(
    device: Device, table: str, query: str, *, what: str, title: TitleOf, deleted: bool = False
) -> View:
    """Return the one live record that `query` names, or with `deleted` the deleted one."""
    views = [
        view
        for view in await device.list(table, include_deleted=deleted)
        if view.deleted is deleted
    ]
    by_id = {view.id: view for view in views}
    found = resolve(query, [(view.id, title(view)) for view in views], what)
    return next(view for ident, view in by_id.items() if ident == found)


async def short_ids(device: Device, table: str) -> dict[str, str]:
    """Return the shown ids of a table's records, told apart from all of them."""
    return dict(shorts(view.id for view in await device.list(table, include_deleted=True)))


def written(view: View, *, now_ms: int) -> str:
    """Return when a record was last written, in words."""
    stamp = view.written_at
    return when(parse_stamp(stamp).wall_ms, now_ms=now_ms) if stamp else ""


def is_private(view: View) -> bool:
    """Say whether a record is for the person alone."""
    return view.visibility == "private"


async def seen_by(device: Device, view: View) -> str:
    """Return who else sees a record, in words; empty where nobody else ever does."""
    here = await space_of(device)
    if here.type == PERSONAL:
        return ""
    return "you alone" if is_private(view) else f"everybody in “{called(here)}”"


def with_seen_by(shown: Rows, views: Sequence[View]) -> Rows:
    """Return rows of records with who sees each, if any is for the person alone."""
    if not any(map(is_private, views)):
        return shown
    seen = ["you alone" if is_private(view) else "all" for view in views]
    rows = [(row[0], who, *row[1:]) for row, who in zip(shown.rows, seen, strict=True)]
    return Rows((shown.head[0], "SEEN BY", *shown.head[1:]), rows, shown.flexible + 1)


def listed(name: str, views: Sequence[View], rows: Rows, *, nothing: str) -> Answer:
    """Return a list of records, or why it is empty and the one next step."""
    blocks: list[Block] = [rows] if views else [Line(nothing, "quiet")]
    return Answer({name: [record_document(view) for view in views]}, blocks)


def shown(name: str, view: View, title: str, facts: Sequence[tuple[str, str]], body: str) -> Answer:
    """Return one record: its title, facts and text."""
    blocks: list[Block] = [Line(title, "title"), Facts(facts)]
    if body:
        blocks += ["", body]
    if view.sealed_fields:
        names = ", ".join(view.sealed_fields)
        blocks.append(Line(f"Sealed with a key that is not on this device: {names}", "quiet"))
    return Answer({name: record_document(view)}, blocks)


async def wrote(device: Device, name: str, table: str, record_id: str, words: str) -> Answer:
    """Return what a write to a record came to."""
    view = await device.get(table, record_id)
    return Answer({name: record_document(view)}, [words], wrote=True)


async def removed(device: Device, view: View, *, name: str, shown_title: str) -> Answer:
    """Delete a record and say how to bring it back."""
    await device.delete(view.table, view.id)
    again = f"mana {name} restore {view.id}{await option(device)}"
    words = f"Deleted {name} “{shown_title}”. Bring it back: {again}"
    return await wrote(device, name, view.table, view.id, words)


async def brought_back(device: Device, view: View, *, name: str, shown_title: str) -> Answer:
    """Restore a deleted record."""
    await device.restore(view.table, view.id)
    return await wrote(device, name, view.table, view.id, f"Restored {name} “{shown_title}”.")


async def made_visible(
    device: Device, view: View, to: Visible, *, name: str, shown_title: str
) -> Answer:
    """Make a record private, or share it with its space. Needs the hub."""
    await device.set_visibility(view.table, view.id, to.value)
    here = called(await space_of(device))
    words = (
        f"Only you see {name} “{shown_title}” from now on. What others read before stays read."
        if to is Visible.PRIVATE
        else f"Everybody in “{here}” sees {name} “{shown_title}” from now on."
    )
    return await wrote(device, name, view.table, view.id, words)
