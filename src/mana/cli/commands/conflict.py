"""`mana conflict`: what the person wrote on this device and a newer edit of another replaced."""

from __future__ import annotations

from typing import Annotated

import typer

from mana.cli.naming import NameUnknown
from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Line
from mana.cli.proposals import value_words
from mana.cli.spaces import names_by_id
from mana.cli.text import one_line, when
from mana.device.desk import Device
from mana.device.views import ConflictView

conflict = typer.Typer(
    help="What you wrote and somebody's newer edit replaced.",
    no_args_is_help=True,
    add_completion=False,
)

ConflictArgument = Annotated[
    str, typer.Argument(metavar="CONFLICT", help="Number as `mana conflict list` shows it.")
]


@conflict.command("list")
@on_account(in_space=False)
async def list_conflicts(device: Device, around: Surroundings) -> Answer:
    """List what was replaced in any space: yours, and what stands now."""
    found = await device.conflicts()
    if not found:
        return Answer({"conflicts": []}, [Line("Nothing of yours was replaced.", "quiet")])
    names = await names_by_id(device)
    blocks: list[Block] = []
    for one in found:
        where = f" in “{names[one.space_id]}”" if one.space_id in names else ""
        by = f", by {one_line(one.by, 80)}" if one.by else ""
        at = when(one.at_ms, now_ms=around.now_ms())
        blocks.append(Line(f"{one.conflict_id}  “{_title(one)}”{where}, {at}{by}", "title"))
        for field in one.fields:
            blocks.append(Line(f"  - {field.label}: {value_words(field.was)}", "gone"))
            blocks.append(Line(f"  + {field.label}: {value_words(field.now)}", "new"))
    blocks.append(
        Line("Take yours back: mana conflict restore N. Leave it: mana conflict dismiss N", "quiet")
    )
    return Answer({"conflicts": found}, blocks)


@conflict.command()
@on_account(in_space=False)
async def restore(device: Device, named: ConflictArgument) -> Answer:
    """Write again what you had written."""
    one = await _found(device, named)
    await device.restore_conflict(one.conflict_id)
    words = f"“{_title(one)}” is again as you wrote it."
    return Answer({"restored": {"conflictId": one.conflict_id}}, [words], wrote=True)


@conflict.command()
@on_account(in_space=False)
async def dismiss(device: Device, named: ConflictArgument) -> Answer:
    """Leave it as it stands, and forget what was replaced."""
    one = await _found(device, named)
    await device.dismiss_conflict(one.conflict_id)
    words = f"“{_title(one)}” stays as it is."
    return Answer({"dismissed": {"conflictId": one.conflict_id}}, [words])


async def _found(device: Device, named: str) -> ConflictView:
    wanted = named.strip()
    for one in await device.conflicts():
        if one.conflict_id == wanted:
            return one
    raise NameUnknown("nothing of this number was replaced")


def _title(one: ConflictView) -> str:
    return one_line(one.title, 80) or one.record_id
