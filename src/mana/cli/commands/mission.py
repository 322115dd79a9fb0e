"""`mana mission` and `mana inputs`: standing goals, when they run and what they look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mana.cli.cadences import cadence_from_words
from mana.cli.caps import (
    CostOption,
    TokensOption,
    cap_wait_words,
    optional_cost,
    optional_tokens,
)
from mana.cli.commands.agent import find_agent
from mana.cli.naming import resolve, resolve_input, shorts
from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Facts, Line, Rows
from mana.cli.spaces import option
from mana.cli.text import counted, left, one_line, when
from mana.device import names
from mana.device.desk import Device
from mana.device.names import called
from mana.device.views import GrantView, MissionView, RejectedFor, RunView
from mana.device.words import spent_words
from mana.domain.cadences import MANUAL
from mana.domain.errors import Invalid
from mana.domain.missions import InputRef, MissionState
from mana.domain.money import amount_words, cap_words, smaller

if TYPE_CHECKING:
    from mana.device.missions import MissionEdit


class Place(StrEnum):
    """Where a mission runs."""

    HUB = "hub"
    DEVICE = "device"


class Missed(StrEnum):
    """What becomes of moments that passed while nothing could run."""

    ONCE = "once"
    SKIP = "skip"
    ALL = "all"


WAITING: Final = ("queued", "leased", "running")
ERRORED: Final = "errored"
RUNS_SHOWN: Final = 10
MISSED_WORDS: Final[Mapping[str, str]] = {
    "once": "runs once for all",
    "skip": "not run",
    "all": "each run, the oldest first",
}
OBJECTIVE_SHOWN_MAX: Final = 120

mission = typer.Typer(
    help="Missions: standing goals given to an agent.", no_args_is_help=True, add_completion=False
)

MissionArgument = Annotated[
    str, typer.Argument(metavar="MISSION", help="Title, id or start of an id.")
]
AgentOption = Annotated[str | None, typer.Option("--agent", help="Name or id of its agent.")]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", help="A record it looks at: notes:<id or title>. Repeat for more."),
]
CadenceOption = Annotated[
    str | None,
    typer.Option(
        "--every",
        metavar="WHEN",
        help='manual, 30m, 2h, "daily 07:00", "weekly sunday 10:00", "cron 0 7 * * mon-fri", '
        'on-change, or "on-change 2h after 10m".',
    ),
]
ZoneOption = Annotated[
    str | None, typer.Option("--zone", help="Time zone of WHEN, such as Europe/Berlin.")
]
PlaceOption = Annotated[
    Place | None,
    typer.Option("--on", help="hub: also while you are away. device: on this device alone."),
]
ConceptOption = Annotated[
    str | None, typer.Option("--concept", help="How it should be gone about, Markdown.")
]
MissedOption = Annotated[
    Missed | None,
    typer.Option(
        "--if-missed",
        help="Moments that passed while nothing could run. once: one run for all. skip: none. "
        "all: each.",
    ),
]


@mission.command()
@on_account()
async def create(
    device: Device,
    title: Annotated[str, typer.Argument(help="The title.")],
    objective: Annotated[str, typer.Option("--objective", help="What shall be reached.")],
    agent: Annotated[str, typer.Option("--agent", help="Name or id of its agent.")],
    inputs: InputOption = None,
    every: CadenceOption = None,
    zone: ZoneOption = None,
    on: PlaceOption = None,
    concept: ConceptOption = None,
    if_missed: MissedOption = None,
    tokens: TokensOption = None,
    cost: CostOption = None,
) -> Answer:
    """Create a mission."""
    worker = await find_agent(device, agent)
    mission_id = await device.create_mission(
        title,
        objective,
        agent_id=worker.agent_id,
        inputs=await _inputs(device, inputs or []),
        cadence=MANUAL if every is None else cadence_from_words(every),
        zone=zone,
        concept=concept or "",
        runs_on=(on or Place.HUB).value,
        if_missed=(if_missed or Missed.ONCE).value,
        tokens_per_day_max=None if tokens is None else optional_tokens(tokens),
        cost_per_day_max=None if cost is None else optional_cost(cost),
    )
    made = await device.mission(mission_id)
    blocks: list[Block] = [f"Created mission “{one_line(made.title, 80)}”: {sentence(made)}"]
    if made.runs_on == Place.HUB.value and made.inputs:
        command = f"mana grant give {mission_id}{await option(device)}"
        blocks.append(Line(f"It may read nothing yet. To let it: {command}", "quiet"))
    return Answer({"mission": made}, blocks, wrote=True)


@mission.command("list")
@on_account()
async def list_missions(device: Device, around: Surroundings) -> Answer:
    """List missions."""
    missions = await device.missions()
    ids = shorts(one.mission_id for one in missions)
    now_ms = around.now_ms()
    rows = [
        (
            ids[one.mission_id],
            one.state,
            one.agent_name,
            one.cadence_words,
            _next_words(one, now_ms=now_ms),
            one.title,
        )
        for one in missions
    ]
    head = ("ID", "STATE", "AGENT", "WHEN", "NEXT", "TITLE")
    blocks: list[Block] = [Rows(head, rows, flexible=5)]
    if not missions:
        command = f"mana mission create TITLE --agent NAME --objective TEXT{await option(device)}"
        blocks = [Line(f"No missions yet. Create one: {command}", "quiet")]
    return Answer({"missions": missions}, blocks)


def _next_words(one: MissionView, *, now_ms: int) -> str:
    """Return when it runs next, or why it does not: a moment that passes idle is none."""
    waits = one.hold_words or (one.cap_wait.words if one.cap_wait else "")
    if waits:
        return waits.rstrip(".")
    return when(one.next_ms[0], now_ms=now_ms) if one.next_ms else ""


@mission.command()
@on_account()
async def show(device: Device, around: Surroundings, named: MissionArgument) -> Answer:
    """Show a mission: its last result, its next runs, what it may read, and its ledger."""
    one = await find_mission(device, named)
    rejected = await device.rejections(one.mission_id)
    work = await device.work_state()
    currency = work.currency
    stopped = work.stopped_ms is not None
    now_ms = around.now_ms()
    blocks: list[Block] = [
        Line(one_line(one.title), "title"),
        sentence(one),
        "",
        Facts(
            [
                ("Id", one.mission_id),
                ("State", one.state),
                ("Shall", one.objective if len(one.objective) > OBJECTIVE_SHOWN_MAX else ""),
                ("Now", _now_words(one, now_ms=now_ms)),
                ("Failed", _failed_words(one)),
                ("Next", _upcoming_words(one, stopped=stopped, now_ms=now_ms)),
                ("Missed moments", MISSED_WORDS[one.if_missed]),
                ("Limit", cap_words(one.tokens_per_day_max, one.cost_per_day_max, currency)),
                (
                    "Raised",
                    one.raised_words and f"{one.raised_words} mana mission agree {one.mission_id}",
                ),
                ("Looks at", "\n".join(one_line(cited.title) for cited in one.input_titles)),
                ("Grant", grant_words(one.grant, now_ms=now_ms)),
                ("Concept", one.concept),
                ("Last result", one.last_summary),
                ("Rejected for", _rejected_words(rejected)),
            ]
        ),
    ]
    if one.runs:
        rows = [
            (
                when(run.scheduled_ms, now_ms=now_ms),
                called(names.KINDS, run.kind),
                _stood(run, now_ms=now_ms),
                f"{run.tokens:,}" if run.tokens else "",
                amount_words(run.cost, currency) if run.cost else "",
                str(run.tries or ""),
                " ".join(
                    part
                    for part in (
                        _why(run, stopped=stopped, now_ms=now_ms),
                        _noted(run, currency),
                    )
                    if part
                ),
            )
            for run in one.runs[:RUNS_SHOWN]
        ]
        head = ("RUN", "KIND", "STATE", "TOKENS", "COST", "RETRIES", "WHY")
        blocks += ["", Rows(head, rows, flexible=6)]
    return Answer({"mission": one, "rejections": rejected}, blocks)


@mission.command()
@on_account()
async def edit(
    device: Device,
    named: MissionArgument,
    title: Annotated[str | None, typer.Option("--title", help="A new title.")] = None,
    objective: Annotated[
        str | None, typer.Option("--objective", help="What shall be reached.")
    ] = None,
    agent: AgentOption = None,
    inputs: InputOption = None,
    no_inputs: Annotated[bool, typer.Option("--no-inputs", help="It looks at nothing.")] = False,
    every: CadenceOption = None,
    zone: ZoneOption = None,
    on: PlaceOption = None,
    concept: ConceptOption = None,
    if_missed: MissedOption = None,
    tokens: TokensOption = None,
    cost: CostOption = None,
) -> Answer:
    """Change a mission; --input replaces all its inputs, and a limit of `none` takes it away."""
    if inputs and no_inputs:
        raise Invalid("--input and --no-inputs exclude each other")
    one = await find_mission(device, named)
    fields: MissionEdit = {}
    if title is not None:
        fields["title"] = title
    if objective is not None:
        fields["objective"] = objective
    if agent is not None:
        fields["agent_id"] = (await find_agent(device, agent)).agent_id
    if inputs or no_inputs:
        fields["inputs"] = await _inputs(device, inputs or [], kept=one)
    if every is not None:
        fields["cadence"] = cadence_from_words(every)
    if zone is not None:
        fields["zone"] = zone
    if on is not None:
        fields["runs_on"] = on.value
    if concept is not None:
        fields["concept"] = concept
    if if_missed is not None:
        fields["if_missed"] = if_missed.value
    if tokens is not None:
        fields["tokens_per_day_max"] = optional_tokens(tokens)
    if cost is not None:
        fields["cost_per_day_max"] = optional_cost(cost)
    if not fields:
        raise Invalid("nothing to change was given")
    await device.edit_mission(one.mission_id, **fields)
    changed = await _changed(device, one.mission_id, "Changed")
    return replace(changed, blocks=[*changed.blocks, *_raised(fields, one)])


@mission.command()
@on_account()
async def pause(device: Device, named: MissionArgument) -> Answer:
    """Pause a mission: it is not due until it is resumed."""
    return await _state(device, named, "paused", "Paused")


@mission.command()
@on_account()
async def resume(device: Device, named: MissionArgument) -> Answer:
    """Let a mission run again that is paused, or that failed too often in a row."""
    one = await find_mission(device, named)
    if one.hold == ERRORED:
        await device.resume_mission(one.mission_id)
    if one.state != "active":
        await device.edit_mission(one.mission_id, state="active")
    return await _changed(device, one.mission_id, "Resumed")


@mission.command()
@on_account()
async def agree(device: Device, named: MissionArgument) -> Answer:
    """Agree to limits that another member raised, for what runs on this device."""
    one = await find_mission(device, named)
    if not one.raised_words:
        return Answer({"mission": one}, await _nothing_to_agree_to(device, one))
    await device.agree_to_caps(one.mission_id)
    return await _changed(device, one.mission_id, "Agreed to the limits of")


@mission.command()
@on_account()
async def stop(device: Device, named: MissionArgument) -> Answer:
    """Stop its run, and what waits to be tried again; its schedule stays."""
    one = await find_mission(device, named)
    # Asked all the same: a run may have begun since the list was read.
    await device.stop_mission(one.mission_id)
    after = await device.mission(one.mission_id)
    title = one_line(after.title, 80)
    if not any(map(_can_be_stopped, one.runs)):
        words = f"“{title}” was not running, and nothing of it waited: there was nothing to stop."
        return Answer({"mission": after, "stopped": False}, [words])
    words = f"Stopped the run of “{title}”. It runs again when it is due."
    return Answer({"mission": after, "stopped": True}, [words], wrote=one.runs_here)


@mission.command()
@on_account()
async def delete(
    device: Device,
    around: Surroundings,
    named: MissionArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> Answer:
    """Delete a mission and end its grant."""
    one = await find_mission(device, named)
    title = one_line(one.title, 80)
    around.confirm(f"Delete mission “{title}” and end its grant?", yes=yes)
    await device.delete_mission(one.mission_id)
    return Answer(
        {"deleted": {"missionId": one.mission_id}}, [f"Deleted mission “{title}”."], wrote=True
    )


@mission.command()
@on_account()
async def run(device: Device, around: Surroundings, named: MissionArgument) -> Answer:
    """Run a mission now: on the hub it is asked for, on this device it runs here."""
    one = await find_mission(device, named)
    ran = await device.run_now(one.mission_id)
    waiting = len(await device.inbox())
    blocks: list[Block] = [_run_words(one, ran, now_ms=around.now_ms())]
    if waiting:
        blocks.append(f"{counted(waiting, 'proposal')} to decide: mana inbox{await option(device)}")
    return Answer({"missionId": one.mission_id, "run": ran}, blocks, wrote=one.runs_here)


@on_account()
async def inputs(device: Device) -> Answer:
    """List what can be given to a mission as input."""
    picked = await device.inputs()
    ids = shorts(ref.id for ref, _ in picked)
    rows = [(f"{ref.module}:{ids[ref.id]}", title) for ref, title in picked]
    blocks: list[Block] = [Rows(("INPUT", "TITLE"), rows, flexible=1)]
    if not picked:
        blocks = [Line("Nothing to look at yet: write a note or a task.", "quiet")]
    return Answer({"inputs": [{**ref.to_wire(), "title": title} for ref, title in picked]}, blocks)


async def find_mission(device: Device, named: str) -> MissionView:
    """Return the one mission that a person names."""
    pairs = [(one.mission_id, one.title) for one in await device.missions()]
    return await device.mission(resolve(named, pairs, "mission"))


def sentence(one: MissionView) -> str:
    """Return a mission as a sentence: who shall do what, looking at what, when and where."""
    looking = f", looking at {counted(len(one.inputs), 'record')}" if one.inputs else ""
    where = "on the hub" if one.runs_on == Place.HUB.value else "on a device"
    if one.runs_here:
        where = "on this device"
    who = one_line(one.agent_name, 80) or "Nobody"
    objective = one_line(one.objective, OBJECTIVE_SHOWN_MAX).rstrip(".")
    if objective[1:2].islower():
        objective = objective[:1].lower() + objective[1:]
    return f"{who} shall {objective}{looking}, {one.cadence_words}, {where}."


def grant_words(grant: GrantView | None, *, now_ms: int) -> str:
    """Return what a mission's grant lets it read, and until when."""
    if grant is None:
        return ""
    reads = counted(len(grant.titles), "record")
    if grant.state == "active":
        life = f"reads {reads}, {left(grant.expires_ms, now_ms=now_ms)}"
        return one_line(f"{life}. {grant.stale_reason}" if grant.stale_reason else life)
    return one_line(f"{called(names.STATES, grant.state)} ({reads}) {grant.stale_reason}")


async def _inputs(
    device: Device, named: list[str], *, kept: MissionView | None = None
) -> list[InputRef]:
    """Return the records that are named. What a mission has already may be named too."""
    if not named:
        return []
    pickable = await device.inputs()
    if kept is not None:
        known = {ref.key for ref, _ in pickable}
        titles = {(cited.table, cited.record_id): cited.title for cited in kept.input_titles}
        pickable += [
            (ref, titles.get((ref.table, ref.id), ""))
            for ref in kept.inputs
            if ref.key not in known
        ]
    return [resolve_input(text, pickable) for text in named]


async def _state(device: Device, named: str, state: MissionState, verb: str) -> Answer:
    one = await find_mission(device, named)
    await device.edit_mission(one.mission_id, state=state)
    return await _changed(device, one.mission_id, verb)


def _can_be_stopped(run: RunView) -> bool:
    """Say whether a line is a run that goes on, or one that waits by hand or for another try."""
    asked = run.kind == "manual" or run.tries > 0
    return run.state in WAITING and (run.state != "queued" or asked)


async def _nothing_to_agree_to(device: Device, one: MissionView) -> list[Block]:
    """Return why there is nothing to agree to, and where a limit is agreed to by a grant."""
    title = one_line(one.title, 80)
    if one.grant is None or one.grant.state != "active" or not one.grant.stale_reason:
        return [f"Nobody raised a limit of “{title}” beyond yours: there is nothing to agree to."]
    again = f"mana grant give {one.mission_id}{await option(device)}"
    return [
        f"“{title}” runs on the hub, under its grant. {one.grant.stale_reason}",
        Line(f"Grant again: {again}", "quiet"),
    ]


def _raised(fields: MissionEdit, before: MissionView) -> list[Block]:
    """Return where a limit that was raised does not hold yet, because somebody else granted."""
    given = before.grant
    if given is None or given.own or given.state != "active":
        return []
    raised = (
        (
            "tokens_per_day_max" in fields,
            fields.get("tokens_per_day_max"),
            before.tokens_per_day_max,
        ),
        ("cost_per_day_max" in fields, fields.get("cost_per_day_max"), before.cost_per_day_max),
    )
    if not any(named and smaller(cap, was) != cap for named, cap, was in raised):
        return []
    return ["On the hub the higher limit holds only once whoever granted it grants again."]


async def _changed(device: Device, mission_id: str, verb: str) -> Answer:
    after = await device.mission(mission_id)
    words = f"{verb} mission “{one_line(after.title, 80)}”: {sentence(after)}"
    return Answer({"mission": after}, [words], wrote=True)


def _run_words(one: MissionView, ran: RunView | None, *, now_ms: int) -> str:
    title = one_line(one.title, 80)
    if ran is None:
        return f"Nothing is to be run for “{title}” now."
    why = f" {again}" if (again := _why(ran, now_ms=now_ms)) else ""
    if ran.state == "done":
        return f"“{title}” has run, with {ran.tokens:,} tokens.{why}"
    if ran.state in WAITING and not one.runs_here:
        return f"“{title}” is asked for; the hub runs it as soon as it can.{why}"
    return f"“{title}”: {_stood(ran, now_ms=now_ms)}.{why}"


def _stood(run: RunView, *, now_ms: int) -> str:
    """Return how a run stands or ended; one that was stopped did not fail."""
    if run.state == "queued" and run.scheduled_ms > now_ms:
        return "not due yet"
    if (run.state, run.reason) == ("failed", "stopped"):
        return "stopped"
    return called(names.RUN_STATES, run.state).lower()


def _why(run: RunView, *, stopped: bool = False, now_ms: int) -> str:
    """Return why a run ended as it did, why it is tried again and when, or how far it is.

    `stopped`: all work is, so nobody can say when.
    """
    if run.reason_words:
        return one_line(run.reason_words)
    if run.state == "queued" and run.last_reason:
        said = one_line(run.last_reason_words or run.last_reason)
        if stopped or not run.due_ms:
            return said
        return f"{said} Tried again {when(run.due_ms, now_ms=now_ms)}."
    if run.state not in WAITING or not run.phase:
        return ""
    return f"{called(names.PHASES, run.phase)}, round {run.round}"


def _noted(run: RunView, currency: str) -> str:
    """Return what is to be known of a run beside its end: a worst case among what it used, marks."""
    notes = [names.FLAGS[flag] for flag in run.flags if flag in names.FLAGS]
    if run.unconfirmed_tokens:
        said = spent_words(
            run.tokens, run.unconfirmed_tokens, run.cost, run.unconfirmed_cost, currency
        )
        notes.insert(0, f"{said[:1].upper()}{said[1:]}.")
    return " ".join(notes)


def _now_words(one: MissionView, *, now_ms: int) -> str:
    """Return how far a mission's run is, or what the mission waits for."""
    if one.phase or one.hold_words:
        return called(names.PHASES, one.phase) if one.phase else one.hold_words
    return cap_wait_words(one.cap_wait, now_ms=now_ms) if one.cap_wait else ""


def _upcoming_words(one: MissionView, *, stopped: bool, now_ms: int) -> str:
    """Return when a mission runs next; empty where that is said elsewhere, or only by hand."""
    if one.hold_words:
        return ""
    if stopped:
        return "none, while all work is stopped"
    ahead = ", ".join(when(at, now_ms=now_ms) for at in one.next_ms)
    return ahead or _change_words(one, now_ms=now_ms)


def _change_words(one: MissionView, *, now_ms: int) -> str:
    """Return when a mission on change runs; empty for another."""
    waits = one.on_change
    if waits is None:
        return ""
    last = f"Somebody last changed one {when(waits.changed_ms, now_ms=now_ms)}."
    last = last if waits.changed_ms is not None else "Nobody has changed one yet."
    floor = waits.rests_until_ms
    number = len(one.inputs)
    said = "when its input changes" if number == 1 else f"when one of its {number} inputs changes"
    if waits.due_ms is not None:
        said = f"{when(waits.due_ms, now_ms=now_ms)} at the earliest, because an input was changed"
    elif floor is not None:
        said += f", {when(floor, now_ms=now_ms)} at the earliest"
    return f"{said}. {last} What agents write does not start it."


def _failed_words(one: MissionView) -> str:
    """Return how often it failed in a row and why; empty if its last run did not fail."""
    if not one.failures:
        return ""
    return one_line(f"{counted(one.failures, 'time')} in a row. {one.failure_words}")


def _rejected_words(rejected: Sequence[RejectedFor]) -> str:
    """Return for which reasons its proposals were rejected, with the newest word of each."""
    return "\n".join(
        f"{called(names.REJECTED, one.reason) if one.reason else 'No reason given'} ({one.count})"
        + (f": “{one_line(one.said[0], 200)}”" if one.said else "")
        for one in rejected
    )
