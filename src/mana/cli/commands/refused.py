"""`mana refused`: changes that the hub refused. They are kept, shown, and block nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from mana.cli.naming import resolve, shorts
from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Line, Rows
from mana.cli.spaces import names_by_id
from mana.cli.text import one_line, when
from mana.device.desk import Device
from mana.device.views import RefusedChange

refused = typer.Typer(
    help="Changes that the hub refused.", no_args_is_help=True, add_completion=False
)

ChangeArgument = Annotated[
    str, typer.Argument(metavar="CHANGE", help="Id as `mana refused list` shows it, or its start.")
]


@refused.command("list")
@on_account(in_space=False)
async def list_refused(device: Device, around: Surroundings) -> Answer:
    """List changes that the hub refused, and why."""
    changes = await device.refused()
    ids = shorts(one.change_id for one in changes)
    now_ms = around.now_ms()
    spaces = await names_by_id(device)
    rows = [
        (
            ids[one.change_id],
            when(one.at_ms, now_ms=now_ms),
            spaces.get(one.space_id, ""),
            one.table,
            one.code,
            one.title,
            one.words,
        )
        for one in changes
    ]
    blocks: list[Block] = [
        Rows(("CHANGE", "WHEN", "SPACE", "TABLE", "CODE", "TITLE", "WHY"), rows, flexible=5)
    ]
    if not changes:
        blocks = [Line("The hub refused nothing.", "quiet")]
    return Answer({"refused": changes}, blocks)


@refused.command()
@on_account(in_space=False)
async def retry(device: Device, change: ChangeArgument) -> Answer:
    """Send a refused change again."""
    one = await _found(device, change)
    await device.retry_refused(one.change_id)
    words = f"Sent again: “{one_line(one.title, 80)}”."
    return Answer({"retried": {"changeId": one.change_id}}, [words], wrote=True)


@refused.command()
@on_account(in_space=False)
async def drop(
    device: Device,
    around: Surroundings,
    change: ChangeArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> Answer:
    """Forget a refused change; the record shows again what the hub holds."""
    one = await _found(device, change)
    title = one_line(one.title, 80)
    around.confirm(f"Forget what you wrote to “{title}”? It cannot be brought back.", yes=yes)
    await device.drop_refused(one.change_id)
    return Answer({"dropped": {"changeId": one.change_id}}, [f"Forgotten: “{title}”."])


async def _found(device: Device, named: str) -> RefusedChange:
    by_id = {one.change_id: one for one in await device.refused()}
    return by_id[resolve(named, [(ident, "") for ident in by_id], "refused change")]
