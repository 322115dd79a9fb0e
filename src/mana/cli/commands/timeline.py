"""`mana timeline`, `mana revert`, `mana redo`: what AI did, and how to undo any of it."""

from __future__ import annotations

import contextlib
from typing import Annotated, Final

import typer

from mana.cli.caps import currency_of, used_words
from mana.cli.commands.mission import find_mission
from mana.cli.naming import PREFIX_MIN, NameAmbiguous, NameUnknown, resolve_step, shorts
from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Line
from mana.cli.proposals import diff_blocks
from mana.cli.spaces import option
from mana.cli.text import agent_words, counted, one_line, when
from mana.device import names
from mana.device.desk import Device
from mana.device.timeline import EDITED, EDITED_BY_OTHER
from mana.device.views import Bucket, Conflict, RecordDiff, RevertPreview, TimelineLine
from mana.domain.errors import NotFound

LIMIT_ALL: Final = 1_000
"""As many as a timeline shows at once; older ones are named by their whole id."""
WHOLE_ID: Final = 36
KINDS: Final = ("step", "iteration", "mission", "revert")


class NotReverted(NotFound):
    """There is no revert here that could be taken back."""

    code = "NOT_REVERTED"
    advice = "`mana timeline` shows what is reverted."


TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="Id of a step or iteration as `mana timeline` shows it, or mission:TITLE.",
    ),
]


@on_account()
async def timeline(
    device: Device,
    around: Surroundings,
    mission: Annotated[
        str | None, typer.Option("--mission", help="Only this mission: title or id.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many iterations.")] = 20,
    diffs: Annotated[bool, typer.Option("--diffs", help="With every change in full.")] = False,
) -> Answer:
    """Show what AI did, newest first."""
    mission_id = (await find_mission(device, mission)).mission_id if mission else None
    buckets = await device.timeline(limit=limit, mission_id=mission_id)
    if not buckets:
        words = "No AI has done anything yet."
        return Answer({"timeline": []}, [Line(words, "quiet")])
    ids = shorts(one.iteration_id for one in buckets)
    now_ms, currency = around.now_ms(), await currency_of(device)
    blocks: list[Block] = []
    for bucket in buckets:
        short = ids[bucket.iteration_id]
        blocks += _bucket_blocks(bucket, short, currency, now_ms=now_ms, diffs=diffs)
    return Answer({"timeline": buckets}, blocks[:-1])


@on_account()
async def revert(
    device: Device,
    target: TargetArgument,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show what would be restored; change nothing.")
    ] = False,
) -> Answer:
    """Undo what AI did: a step, an iteration or a mission."""
    found = await _target(device, target)
    if preview:
        shown = await device.revert_preview(found)
        blocks = _revert_blocks((shown,), "Would revert", "Would leave")
        return Answer({"preview": True, "revert": shown}, blocks)
    done = await device.revert(found)
    blocks = _revert_blocks((done,), "Reverted", "Left")
    if done.restored:
        blocks.append(Line(f"Take it back: mana redo {found}{await option(device)}", "quiet"))
    return Answer({"preview": False, "revert": done}, blocks, wrote=bool(done.restored))


@on_account()
async def redo(
    device: Device,
    target: TargetArgument,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show what would come back; change nothing.")
    ] = False,
) -> Answer:
    """Take a revert back."""
    found = await _target(device, target)
    shown: list[RevertPreview] = []
    for one in [found] if found.startswith("revert:") else await _reverts(device, found):
        # A revert is taken back as a whole, so the next may have come back with the last.
        with contextlib.suppress(NotFound):
            made = await (device.revert_preview(one) if preview else device.revert(one))
            if all(made.restored != known.restored for known in shown):
                shown.append(made)
    if not shown:
        raise NotReverted("nothing of this is reverted")
    verbs = ("Would bring back", "Would leave") if preview else ("Brought back", "Left")
    wrote = not preview and any(one.restored for one in shown)
    document = {"preview": preview, "redo": {"target": found, **_merged(shown)}}
    return Answer(document, _revert_blocks(shown, *verbs), wrote=wrote)


async def _target(device: Device, named: str) -> str:
    """Return `step:…`, `iteration:…`, `mission:…` or `revert:…` of what a person names."""
    kind, colon, rest = named.strip().partition(":")
    if colon and kind == "mission":
        return f"mission:{(await find_mission(device, rest)).mission_id}"
    if colon and kind == "revert":
        return named.strip()
    wanted = (rest if colon and kind in KINDS else named).strip().lower()
    if colon and kind in KINDS and len(wanted) >= WHOLE_ID:
        return f"{kind}:{wanted}"
    buckets = await device.timeline(limit=LIMIT_ALL)
    steps = [line.step_id for bucket in buckets for line in bucket.lines if _is_step(line)]
    if kind != "step" or not colon:
        iterations = [
            bucket.iteration_id
            for bucket in buckets
            if bucket.iteration_id.startswith(wanted) and len(wanted) >= PREFIX_MIN
        ]
        if len(iterations) > 1:
            raise NameAmbiguous("iteration", iterations)
        if iterations:
            return f"iteration:{iterations[0]}"
        if colon and kind == "iteration":
            raise NameUnknown("there is no iteration of this id on the timeline")
    return f"step:{resolve_step(wanted, steps)}"


async def _reverts(device: Device, target: str) -> list[str]:
    """Return what would take back reverts of a step, an iteration or a mission, if there are."""
    kind, _, ident = target.partition(":")
    lines = [
        line
        for bucket in await device.timeline(limit=LIMIT_ALL)
        for line in bucket.lines
        if ident
        == {"step": line.step_id, "iteration": bucket.iteration_id}.get(kind, bucket.mission_id)
    ]
    found = [f"revert:{one}" for line in lines for one in line.journal_ids]
    return list(dict.fromkeys(found))


def _bucket_blocks(
    bucket: Bucket, short: str, currency: str, *, now_ms: int, diffs: bool
) -> list[Block]:
    who = agent_words(bucket.agent_name, bucket.agent_avatar)
    title = one_line(bucket.mission_title, 80)
    state = "  reverted" if bucket.reverted else ""
    head = f"{when(bucket.at_ms, now_ms=now_ms)}  {who} on “{title}”  {short}{state}"
    blocks: list[Block] = [Line(head, "title")]
    if bucket.summary:
        blocks.append(f"  {one_line(bucket.summary, 400)}")
    for line in bucket.lines:
        blocks.append(_line(line))
        if diffs:
            blocks += diff_blocks(line.diffs)
    if bucket.feedback:
        blocks.append(f"  You said: {one_line(bucket.feedback, 400)}")
    model = one_line(bucket.model)
    used = used_words(bucket.tokens, bucket.cost or 0, currency)
    blocks += [f"  {names.FLAGS[flag]}" for flag in bucket.flags if flag in names.FLAGS]
    blocks += [Line(f"  {model or bucket.source}, {used}", "quiet"), ""]
    return blocks


def _line(line: TimelineLine) -> Line:
    number = "-" + line.step_id.rpartition("-")[2] if _is_step(line) else ""
    said = [one_line(line.note).removesuffix(".")] if line.note else []
    if line.edited and line.note not in (EDITED, EDITED_BY_OTHER):
        said.append("changed before it was approved")
    note = f" ({', '.join(said)})" if said else ""
    mark = "quiet" if line.state in ("reverted", "rejected") else ""
    return Line(f"  {number:<4}{line.state:<10}{one_line(line.sentence)}{note}", mark)


def _is_step(line: TimelineLine) -> bool:
    """Say whether this is a step, and not a call that was refused before it became one."""
    return "-refused-" not in line.step_id


def _merged(shown: list[RevertPreview]) -> dict[str, list[RecordDiff] | list[Conflict]]:
    return {
        "restored": [diff for one in shown for diff in one.restored],
        "conflicts": [conflict for one in shown for conflict in one.conflicts],
    }


def _revert_blocks(
    shown: tuple[RevertPreview, ...] | list[RevertPreview], did: str, left: str
) -> list[Block]:
    restored = tuple(diff for one in shown for diff in one.restored)
    conflicts = [conflict for one in shown for conflict in one.conflicts]
    blocks: list[Block] = [f"{did} {counted(len(restored), 'record')}."]
    blocks += diff_blocks(restored)
    if conflicts:
        blocks += ["", f"{left} {counted(len(conflicts), 'field')} as they are:"]
        blocks += [
            f"  {one_line(one.title, 80) or one.record_id}, {one.field}: {one_line(one.reason)}"
            for one in conflicts
        ]
    return blocks
