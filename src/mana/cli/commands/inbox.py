"""`mana inbox`, `mana approve`, `mana reject`: what waits for the person's decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final

import typer

from mana.cli.caps import currency_of
from mana.cli.commands.timeline import LIMIT_ALL, WHOLE_ID
from mana.cli.edits import edited
from mana.cli.naming import NameUnknown, resolve, resolve_step, short_step
from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Line, Rows, to_json
from mana.cli.proposals import diff_blocks, proposal_blocks, value_words
from mana.cli.spaces import names_by_id, option
from mana.cli.text import agent_words, counted, one_line, when
from mana.device import names
from mana.device.desk import Device
from mana.device.names import called
from mana.device.views import ParameterKind, Proposal, ToolParameter
from mana.domain.encoding import Json
from mana.domain.errors import Conflict, Invalid

inbox = typer.Typer(
    help="Proposals that wait for your decision.", no_args_is_help=False, add_completion=False
)


class RejectReason(StrEnum):
    """Why a proposal is rejected."""

    NOT_NEEDED = "not-needed"
    WRONG = "wrong"
    TOO_MUCH = "too-much"
    NOT_NOW = "not-now"
    STYLE = "style"
    OTHER = "other"


MOVED: Final = "PROPOSAL_MOVED"
UNSEEN: Final = "EDIT_UNSEEN"
VALUE_SHOWN_MAX: Final = 200
KIND_WORDS: Final[Mapping[ParameterKind, str]] = {
    "text": "text",
    "long-text": "text of several lines",
    "day": "day",
    "whole": "whole number",
    "number": "number",
    "choice": "one of these",
    "yes-no": "yes or no",
    "record": "record",
    "list": "list",
    "other": "JSON",
}

StepArgument = Annotated[
    str, typer.Argument(metavar="STEP", help="Id as `mana inbox` shows it, or its start.")
]
StepsArgument = Annotated[
    list[str], typer.Argument(metavar="STEP...", help="Ids as `mana inbox` shows them.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Do it so instead. Repeat for more. See `mana inbox fields`.",
    ),
]
UnsetOption = Annotated[
    list[str] | None, typer.Option("--unset", metavar="NAME", help="Do it without this.")
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
            called(names.STATES, one.state) if decided else _remark(one),
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
    return Answer(
        {"proposal": one}, proposal_blocks(one, await currency_of(device), now_ms=around.now_ms())
    )


@inbox.command()
@on_account()
async def fields(device: Device, step: StepArgument) -> Answer:
    """List what `mana approve STEP --set NAME=VALUE` can change of a proposal."""
    form = await device.edit_form(await _meant(device, step))
    rows = [
        (
            one.name,
            KIND_WORDS[one.kind],
            "yes" if one.required else "no",
            _bounds(one),
            _value_words(one),
        )
        for one in form.parameters
    ]
    head = ("NAME", "KIND", "NEEDED", "MAY BE", "VALUE")
    blocks: list[Block] = [
        f"{form.tool}: {one_line(form.described)}",
        Rows(head, rows, flexible=4),
    ]
    return Answer({"form": form}, blocks)


@inbox.command()
@on_account()
async def comment(
    device: Device,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Id of a run as `mana timeline` shows it.")
    ],
    text: Annotated[str, typer.Argument(help='What its agent reads next time; "" takes it back.')],
) -> Answer:
    """Say something of a whole run, for its agent to read before the next."""
    wanted = run.strip().lower().removeprefix("iteration:")
    known = [(one.iteration_id, "") for one in await device.timeline(limit=LIMIT_ALL)]
    run_id = wanted if len(wanted) >= WHOLE_ID else resolve(wanted, known, "run")
    await device.comment(run_id, text)
    words = "Kept; its agent reads it next time." if text.strip() else "Taken back."
    document = {"comment": {"iterationId": run_id, "text": text.strip()}}
    return Answer(document, [words], wrote=True)


@on_account()
async def approve(
    device: Device,
    around: Surroundings,
    steps: StepsArgument,
    values: SetOption = None,
    unset: UnsetOption = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show what would happen; write nothing.")
    ] = False,
    feedback: Annotated[str, typer.Option("--feedback", help="A word for the agent.")] = "",
) -> Answer:
    """Approve proposals: they happen exactly as shown, once.

    Several are steps of one run, and happen together or not at all. With --set it happens as you
    want it; what that comes to is shown first, and done when you say the same again.
    """
    ids = await _all_meant(device, steps)
    changes = bool(values or unset)
    if changes and len(ids) > 1:
        raise Invalid("--set and --unset change one proposal at a time")
    arguments = await _arguments(device, around, ids[0], values, unset) if changes else None
    if preview:
        shown = await _previewed(device, ids, arguments)
        return Answer(_document(shown), await _all_blocks(device, around, shown))
    try:
        done = await _approved(device, ids, arguments, feedback)
    except Conflict as error:
        if error.code in (MOVED, UNSEEN):
            # What was read before is not what would happen now: it is shown, not done.
            now = await _previewed(device, ids, arguments)
            around.tell(await _all_blocks(device, around, now))
            error.detail.update({name: to_json(value) for name, value in _document(now).items()})
        raise
    at = await option(device)
    blocks: list[Block] = []
    for one in done:
        blocks += [f"Approved: {one_line(one.sentence)}", *diff_blocks(one.diffs)]
        if one.trouble:
            blocks.append(one.trouble)
        blocks.append(Line(f"Undo it: mana revert step:{one.step_id}{at}", "quiet"))
    return Answer(_document(done), blocks, wrote=True)


@on_account()
async def reject(
    device: Device,
    steps: StepsArgument,
    because: Annotated[
        RejectReason | None, typer.Option("--because", help="Why, in one word.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; the agent is told.")] = "",
) -> Answer:
    """Reject proposals; the agent is told why."""
    ids = await _all_meant(device, steps)
    code = because.value if because else ""
    done = await device.reject_all(ids, reason_code=code, reason=reason)
    blocks = [f"Rejected: {one_line(one.sentence)}" for one in done]
    return Answer(_document(done), blocks, wrote=True)


async def _approved(
    device: Device, ids: Sequence[str], arguments: Mapping[str, Json] | None, feedback: str
) -> Sequence[Proposal]:
    if len(ids) > 1:
        return await device.approve_all(ids, feedback=feedback)
    return [await device.approve(ids[0], arguments=arguments, feedback=feedback)]


async def _previewed(
    device: Device, ids: Sequence[str], arguments: Mapping[str, Json] | None
) -> Sequence[Proposal]:
    """Return what would happen; from now on it is what was shown."""
    if len(ids) > 1:
        return await device.preview_all(ids)
    if arguments is None:
        return [await device.proposal(ids[0])]
    return [await device.edit_preview(ids[0], arguments)]


async def _arguments(
    device: Device,
    around: Surroundings,
    step_id: str,
    values: Sequence[str] | None,
    unset: Sequence[str] | None,
) -> Mapping[str, Json]:
    """Return the arguments of a call as the person wants them; raise Invalid, ParameterUnknown."""
    form = await device.edit_form(step_id)
    today = datetime.fromtimestamp(around.now_ms() / 1_000, tz=UTC).astimezone().date()
    return edited(form, values or (), unset or (), today=today)


def _document(found: Sequence[Proposal]) -> dict[str, object]:
    return {"proposal": found[0]} if len(found) == 1 else {"proposals": found}


async def _all_blocks(
    device: Device, around: Surroundings, found: Sequence[Proposal]
) -> list[Block]:
    currency, blocks = await currency_of(device), list[Block]()
    for one in found:
        shown = proposal_blocks(one, currency, now_ms=around.now_ms())
        blocks += [*([""] if blocks else []), *shown]
    return blocks


async def _all_meant(device: Device, steps: Sequence[str]) -> list[str]:
    """Return the steps that are meant, each once."""
    return list(dict.fromkeys([await _meant(device, step) for step in steps]))


def _bounds(one: ToolParameter) -> str:
    """Return what a parameter may be, in words."""
    if one.choices:
        return ", ".join(one.choices)
    if one.kind == "day":
        return "such as 2026-11-27, or friday"
    if one.length_max is not None:
        return f"at most {one.length_max:,}"
    ends = [f"{end:g}" for end in (one.low, one.high) if end is not None]
    return " to ".join(ends)


def _value_words(one: ToolParameter) -> str:
    if one.value is None:
        return ""
    shown = one_line(value_words(one.value), VALUE_SHOWN_MAX)
    return f"{shown} ({one_line(one.title, 80)})" if one.title else shown


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
