"""`mana space policy`: what agents may do in a space without asking, by whom and since when."""

from __future__ import annotations

from typing import Annotated

import typer

from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Line, Rows
from mana.cli.spaces import called, find_space
from mana.cli.text import one_line, when
from mana.device import names
from mana.device.desk import Device
from mana.device.views import SpacePolicyView

policy = typer.Typer(
    help="What agents may do in a space without asking.",
    no_args_is_help=True,
    add_completion=False,
)

SpaceArgument = Annotated[str, typer.Argument(metavar="SPACE", help="Name, id or start of an id.")]
ToolArgument = Annotated[
    str, typer.Argument(metavar="TOOL", help="Name of a tool, as `mana space policy show`.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@policy.command()
@on_account(in_space=False)
async def show(device: Device, around: Surroundings, named: SpaceArgument) -> Answer:
    """Show the tools that agents use in a space without asking, and who said so."""
    one = await find_space(device, named)
    now = await device.in_space(one.space_id).space_policy()
    now_ms = around.now_ms()
    blocks: list[Block] = [Line(f"Agents ask before every such tool in “{called(one)}”.")]
    if now.lifted:
        rows = [
            (
                lift.tool,
                names.called(names.EFFECTS, lift.effect),
                lift.name,
                when(lift.at_ms, now_ms=now_ms),
            )
            for lift in now.lifted
        ]
        blocks = [Rows(("WITHOUT ASKING", "EFFECT", "BY", "SINCE"), rows, flexible=2)]
    could = ", ".join(f"{tool} ({names.tool_words(tool)})" for tool in _liftable(now))
    blocks.append(Line(f"Could be lifted: {could or 'nothing'}", "quiet"))
    if now.history:
        changes = [
            (when(change.at_ms, now_ms=now_ms), change.action, change.name, change.tool)
            for change in now.history
        ]
        blocks += ["", Rows(("WHEN", "CHANGE", "BY", "TOOL"), changes, flexible=2)]
    return Answer({"spacePolicy": now, "spaceId": one.space_id}, blocks)


@policy.command()
@on_account(in_space=False)
async def lift(
    device: Device,
    around: Surroundings,
    named: SpaceArgument,
    tool: ToolArgument,
    yes: YesOption = False,
) -> Answer:
    """Let agents use a tool in a space without asking, as far as their own policies do."""
    one = await find_space(device, named)
    shown = one_line(tool, 80)
    around.confirm(f"Let agents use {shown} in “{called(one)}” without asking?", yes=yes)
    inside = device.in_space(one.space_id)
    await inside.lift(tool, acknowledged=True)
    again = f"mana space policy unlift {one.space_id} {shown}"
    return Answer(
        {"spacePolicy": await inside.space_policy(), "spaceId": one.space_id},
        [
            f"Agents use {shown} in “{called(one)}” without asking from now on.",
            Line(f"Let them ask again: {again}", "quiet"),
        ],
        wrote=True,
    )


@policy.command()
@on_account(in_space=False)
async def unlift(device: Device, named: SpaceArgument, tool: ToolArgument) -> Answer:
    """Let agents ask again before each use of a tool."""
    one = await find_space(device, named)
    inside = device.in_space(one.space_id)
    await inside.unlift(tool)
    words = f"Agents ask before they use {one_line(tool, 80)} in “{called(one)}”."
    document = {"spacePolicy": await inside.space_policy(), "spaceId": one.space_id}
    return Answer(document, [words], wrote=True)


def _liftable(now: SpacePolicyView) -> list[str]:
    lifted = {one.tool for one in now.lifted}
    return [tool for tool in now.liftable if tool not in lifted]
