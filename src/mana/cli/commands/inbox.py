"""`mana inbox`, `mana approve`, `mana reject`: what waits for the person's decision."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from mana.cli.commands.timeline import LIMIT_ALL, WHOLE_ID
from mana.cli.naming import NameUnknown, resolve_step, short_step
from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Line, Rows, to_json
from mana.cli.proposals import diff_blocks, proposal_blocks
from mana.cli.spaces import names_by_id, option
from mana.cli.text import agent_words, counted, one_line, when
from mana.device.desk import Device
from mana.device.views import Proposal
from mana.domain.errors import Conflict

inbox = typer.Typer(
    help="Proposals that wait for your decision.", no_args_is_help=False, add_completion=False
)

MOVED: Final = "PROPOSAL_MOVED"

StepArgument = Annotated[
    str, typer.Argument(metavar="STEP", help="Id as `mana inbox` shows it, or its start.")
]


async def _list(device: Device, around: Surroundings, *, decided: bool) -> Answer:
    proposals = await device.inbox(decided=decided)
    known = [one.step_id for one in proposals]
    now_ms = around.now_ms()
    rows = [
        (
            short_step(one.step_id, known),
            when(one.planned_ms, now_ms=now_ms),
            agent_words(one.agent_name, one.agent_avatar),
            one.state if decided else _remark(one),
            one.sentence,
        )
        for one in proposals
    ]
    head = ("STEP", "WHEN", "AGENT", "STATE" if decided else "NOTE", "PROPOSAL")
    blocks: list[Block] = [Rows(head, rows, flexible=4)]
    if not proposals:
        nothing = "Nothing was decided yet." if decided else "Nothing to decide."
        blocks = [Line(nothing, "quiet")]
    elif not decided:
        at = await option(device)
        hint = f"Look closer: mana inbox show STEP{at}. Then: mana approve STEP{at}, or mana reject STEP{at}"
        blocks.append(Line(hint, "quiet"))
    if not decided:
        blocks += await _elsewhere(device)
    return Answer({"proposals": proposals}, blocks)


@inbox.callback(invoke_without_command=True)
@on_account(is_default=True)
async def waiting(device: Device, around: Surroundings) -> Answer:
    """Proposals that wait for your decision, the newest first."""
    return await _list(device, around, decided=False)


@inbox.command("list")
@on_account()
async def list_proposals(
    device: Device,
    around: Surroundings,
    decided: Annotated[
        bool, typer.Option("--decided", help="What was decided, instead of what waits.")
    ] = False,
) -> Answer:
    """List what waits for your decision, the newest first."""
    return await _list(device, around, decided=decided)


@inbox.command()
@on_account()
async def show(device: Device, around: Surroundings, step: StepArgument) -> Answer:
    """Show a proposal in full: what exactly would change, why, and how far it reaches."""
    one = await device.proposal(await _meant(device, step))
    return Answer({"proposal": one}, proposal_blocks(one, now_ms=around.now_ms()))


@on_account()
async def approve(
    device: Device,
    around: Surroundings,
    step: StepArgument,
    feedback: Annotated[str, typer.Option("--feedback", help="A word for the agent.")] = "",
) -> Answer:
    """Approve a proposal: it happens exactly as shown, once."""
    step_id = await _meant(device, step)
    try:
        one = await device.approve(step_id, feedback=feedback)
    except Conflict as error:
        if error.code == MOVED:
            # What was read before is not what would happen now: it is shown, not done.
            now = await device.proposal(step_id)
            around.tell(proposal_blocks(now, now_ms=around.now_ms()))
            error.detail["proposal"] = to_json(now)
        raise
    blocks: list[Block] = [f"Approved: {one_line(one.sentence)}", *diff_blocks(one.diffs)]
    if one.trouble:
        blocks.append(one.trouble)
    blocks.append(Line(f"Undo it: mana revert step:{one.step_id}{await option(device)}", "quiet"))
    return Answer({"proposal": one}, blocks, wrote=True)


@on_account()
async def reject(
    device: Device,
    step: StepArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; the agent is told.")] = "",
) -> Answer:
    """Reject a proposal; the agent is told why."""
    one = await device.reject(await _meant(device, step), reason=reason)
    return Answer({"proposal": one}, [f"Rejected: {one_line(one.sentence)}"], wrote=True)


async def _elsewhere(device: Device) -> list[Block]:
    """Return that proposals wait in other spaces too, and how to see them."""
    names = await names_by_id(device)
    waiting = (await device.status()).to_decide_by_space
    return [
        Line(
            f"{counted(number, 'proposal')} in “{names[space_id]}”:"
            f" mana inbox{await option(device.in_space(space_id)) or ' --space personal'}",
            "quiet",
        )
        for space_id, number in waiting.items()
        if number and space_id != device.space_id and space_id in names
    ]


async def _meant(device: Device, step: str) -> str:
    """Return the step that is meant, without looking at what it would do.

    Looking counts as having been shown it, and who types an id has seen what was shown before.
    """
    wanted = step.strip().lower().removeprefix("step:")
    if len(wanted) > WHOLE_ID:
        return wanted
    lines = [line for bucket in await device.timeline(limit=LIMIT_ALL) for line in bucket.lines]
    waiting = [line.step_id for line in lines if line.state == "proposed"]
    try:
        return resolve_step(wanted, waiting)
    except NameUnknown:
        return resolve_step(wanted, [line.step_id for line in lines])


def _remark(one: Proposal) -> str:
    if not one.verified:
        return "not verified"
    return "moved" if one.moved else ""
