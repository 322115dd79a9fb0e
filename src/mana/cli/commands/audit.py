"""`mana audit`: what the runner read, and whether the record of it is whole."""

from __future__ import annotations

from typing import Annotated

import typer

from mana.cli.commands.grant import grant_blocks
from mana.cli.naming import resolve
from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Line
from mana.cli.text import counted, one_line, when
from mana.device.desk import Device


@on_account(in_space=False)
async def audit(
    device: Device,
    around: Surroundings,
    mission: Annotated[
        str | None, typer.Option("--mission", help="Only this mission: title or id.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many readings.")] = 50,
    before: Annotated[
        int | None, typer.Option("--before", help="Only entries before this number.")
    ] = None,
) -> Answer:
    """Show what the runner read, and whether the record of it is whole."""
    mission_id = await _mission_id(device, mission) if mission else None
    access = await device.data_access(mission_id=mission_id, limit=limit, before=before)
    now_ms = around.now_ms()
    active = [one for one in access.grants if one.state == "active"]
    blocks: list[Block] = [
        Line(f"{counted(access.entries, 'entry', 'entries')}: {access.chain_words}"),
        "",
        *grant_blocks(active, now_ms=now_ms),
        "",
    ]
    if not access.readings:
        blocks.append(Line("The runner has read nothing.", "quiet"))
    for reading in access.readings:
        at = when(reading.at_ms, now_ms=now_ms)
        blocks.append(f"{reading.seq:>6}  {at}  {one_line(reading.sentence)}")
    if access.more and access.readings:
        oldest = min(reading.seq for reading in access.readings)
        blocks.append(Line(f"Older: mana audit --before {oldest}", "quiet"))
    return Answer({"dataAccess": access}, blocks)


async def _mission_id(device: Device, named: str) -> str:
    """Return the mission that is named, of any space: readings are those of the whole account."""
    pairs = [
        (one.mission_id, one.title)
        for space in await device.spaces()
        for one in await device.in_space(space.space_id).missions()
    ]
    return resolve(named, pairs, "mission")
