"""`mana work` and `mana usage`: stop everything, let it go on, what a day may cost, what it did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mana.cli.caps import (
    CostOption,
    TokensOption,
    cap_wait_words,
    optional_cost,
    optional_tokens,
    used_words,
)
from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Facts, Line, Rows
from mana.cli.spaces import names_by_id
from mana.cli.text import bar, counted, one_line, when
from mana.device.desk import Device
from mana.device.views import MissionView, UsageDay, UsageView, WorkView
from mana.domain.cadences import zone
from mana.domain.errors import Invalid
from mana.domain.money import amount_words, cap_words

if TYPE_CHECKING:
    from mana.device.work import Caps

BAR_WIDTH: Final = 30
DAYS_MAX: Final = 92
ID_SHOWN: Final = 16
"""Digits of a hub's id: as many as two people compare."""

work = typer.Typer(
    help="All work: stop it, let it go on, and what a day may cost.",
    no_args_is_help=False,
    add_completion=False,
)


class UsedBy(StrEnum):
    """Whose use is shown."""

    DAY = "day"
    AGENT = "agent"
    MISSION = "mission"


@work.callback(invoke_without_command=True)
@on_account(is_default=True, in_space=False)
async def standing(device: Device, around: Surroundings) -> Answer:
    """All work: stop it, let it go on, and what a day may cost."""
    return await _standing(device, around)


@work.command()
@on_account(in_space=False)
async def show(device: Device, around: Surroundings) -> Answer:
    """Show whether missions run, what was used in 24 hours, and the limits."""
    return await _standing(device, around)


@work.command()
@on_account(in_space=False)
async def stop(device: Device) -> Answer:
    """Stop every mission, here at once and everywhere else as soon as it hears of it."""
    now = await device.stop_work()
    blocks: list[Block] = ["All work is stopped. You can still decide and undo."]
    blocks += _untold(now)
    blocks.append(Line("Let it go on: mana work go-on", "quiet"))
    return Answer({"work": now}, blocks, wrote=True)


@work.command("go-on")
@on_account(in_space=False)
async def go_on(device: Device) -> Answer:
    """Let missions run again, everywhere."""
    now = await device.start_work()
    blocks: list[Block] = ["Missions run again."]
    if now.hub_stopped:
        blocks = ["Missions run again here; whoever runs the hub has stopped its work."]
    return Answer({"work": now}, [*blocks, *_untold(now)], wrote=True)


@work.command()
@on_account(in_space=False)
async def caps(
    device: Device, around: Surroundings, tokens: TokensOption = None, cost: CostOption = None
) -> Answer:
    """Set what all missions together may use in 24 hours. Needs the hub."""
    wanted: Caps = {}
    if tokens is not None:
        wanted["tokens_per_day_max"] = optional_tokens(tokens)
    if cost is not None:
        wanted["cost_per_day_max"] = optional_cost(cost)
    if not wanted:
        raise Invalid("no limit was given: --tokens-a-day, --cost-a-day or both")
    return _shown(await device.set_caps(**wanted), now_ms=around.now_ms())


@work.command("accept-hub")
@on_account(in_space=False)
async def accept_hub(
    device: Device,
    around: Surroundings,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the hub calls itself, as its operator says.")
    ],
) -> Answer:
    """Take the hub for another than it was, because whoever runs it says so. Needs the hub."""
    now = await device.accept_hub(name)
    shown = _shown(now, now_ms=around.now_ms())
    words = f"What you sign is for the hub {now.hub_said[:ID_SHOWN]} from now on."
    return Answer(shown.document, [words, *shown.blocks], wrote=True)


@on_account(in_space=False)
async def usage(
    device: Device,
    around: Surroundings,
    days: Annotated[
        int, typer.Option("--days", min=1, max=DAYS_MAX, help="How many, with today.")
    ] = 14,
    by: Annotated[UsedBy, typer.Option("--by", help="By day, by agent or by mission.")] = (
        UsedBy.DAY
    ),
) -> Answer:
    """Show the tokens and costs of your missions."""
    used = await device.usage(days)
    if by is UsedBy.DAY:
        moment = datetime.fromtimestamp(around.now_ms() / 1_000, tz=UTC)
        today = moment.astimezone(zone(await device.zone())).date()
        rows = _by_day(used, today=today, days=days)
        head = "DAY"
    else:
        rows, head = _by_name(used, by.value), by.value.upper()
    most = max((tokens for _, tokens, _, _ in rows), default=0)
    shown = [
        (
            name,
            f"{tokens:,}",
            amount_words(cost, used.currency),
            f"{calls:,}",
            bar(tokens, most, BAR_WIDTH),
        )
        for name, tokens, cost, calls in rows
    ]
    blocks: list[Block] = [Rows((head, "TOKENS", "COST", "MODEL CALLS", ""), shown, flexible=4)]
    if not used.days:
        blocks = [Line("Nothing was used.", "quiet")]
    unsaid = [one for one in used.days if one.scope == "account" and one.unconfirmed_tokens]
    if unsaid:
        tokens = sum(one.unconfirmed_tokens for one in unsaid)
        cost = sum(one.unconfirmed_cost for one in unsaid)
        blocks.append(
            f"{used_words(tokens, cost, used.currency)} of it are a worst case: reserved, or of calls"
            " whose model never said what it used."
        )
    if not used.hub_answered:
        blocks.append("The hub did not answer: only what this device used is in it.")
    return Answer({"usage": used}, blocks)


def _by_day(used: UsageView, *, today: date, days: int) -> list[tuple[str, int, int, int]]:
    """Return each day with its use, also those without any, the oldest first."""
    found = {one.day: one for one in used.days if one.scope == "account"}
    named = [(today - timedelta(days=ago)).isoformat() for ago in reversed(range(days))]
    nothing = UsageDay("", "account", "", "", 0, 0, 0)
    lines = [(day, found.get(day, nothing)) for day in named]
    return [(day, one.tokens, one.cost, one.model_calls) for day, one in lines]


def _by_name(used: UsageView, scope: str) -> list[tuple[str, int, int, int]]:
    """Return the use of each agent or mission in all days, the most first."""
    found: dict[str, list[UsageDay]] = defaultdict(list)
    for one in used.days:
        if one.scope == scope:
            found[one.id].append(one)
    sums = [
        (
            one_line(lines[-1].name, 80) or ident,
            sum(one.tokens for one in lines),
            sum(one.cost for one in lines),
            sum(one.model_calls for one in lines),
        )
        for ident, lines in found.items()
    ]
    return sorted(sums, key=lambda one: (-one[1], one[0]))


async def _standing(device: Device, around: Surroundings) -> Answer:
    """Return how work stands, with the missions of all spaces that wait for room under a cap."""
    missions = [
        one
        for space_id in await names_by_id(device)
        for one in await device.in_space(space_id).missions()
    ]
    return _shown(
        await device.work_state(),
        [one for one in missions if one.cap_wait is not None],
        now_ms=around.now_ms(),
    )


def _is_used_up(now: WorkView) -> bool:
    """Say whether a cap of the account holds back whatever asks a model."""
    return any(
        cap is not None and used >= cap
        for used, cap in (
            (now.tokens_today, now.tokens_per_day_max),
            (now.tokens_today, now.hub_tokens_per_day_max),
            (now.cost_today, now.cost_per_day_max),
            (now.cost_today, now.hub_cost_per_day_max),
        )
    )


def _shown(now: WorkView, waiting: Sequence[MissionView] = (), *, now_ms: int) -> Answer:
    state = "goes on"
    if now.stopped_ms is not None:
        state = f"stopped by you {when(now.stopped_ms, now_ms=now_ms)}"
    elif _is_used_up(now):
        state = "your limit is used up: missions that ask a model wait"
    elif waiting:
        state = f"{counted(len(waiting), 'mission')} cannot go on for a limit; others can"
    own = cap_words(now.tokens_per_day_max, now.cost_per_day_max, now.currency)
    hub = cap_words(now.hub_tokens_per_day_max, now.hub_cost_per_day_max, now.currency)
    used = used_words(
        now.tokens_today,
        now.cost_today,
        now.currency,
        unconfirmed_tokens=now.unconfirmed_tokens_today,
        unconfirmed_cost=now.unconfirmed_cost_today,
    )
    pairs = [
        ("Work", state),
        ("The hub", "stopped by whoever runs it" if now.hub_stopped else ""),
        ("Used in 24 hours", used),
        ("Your limit", own or "none"),
        ("The hub's limit", hub),
    ]
    blocks: list[Block] = [Facts(pairs), *_untold(now)]
    for one in waiting:
        why = "" if one.cap_wait is None else cap_wait_words(one.cap_wait, now_ms=now_ms)
        blocks.append(f"“{one_line(one.title, 80)}” waits. {why}")
    if now.stopped_ms is not None:
        blocks.append(Line("Let it go on: mana work go-on", "quiet"))
    return Answer({"work": now, "waiting": waiting}, blocks)


def _untold(now: WorkView) -> Sequence[Block]:
    """Return that the hub has not heard it yet, or says something else, where it does."""
    blocks: list[Block] = []
    if not now.hub_told:
        blocks.append("The hub does not know it yet; it is told as soon as it answers.")
    if now.hub_changed:
        said, known = now.hub_said[:ID_SHOWN], now.hub_known[:ID_SHOWN]
        blocks.append(
            f"The hub calls itself {said}; the one that you signed for before is {known}. It gets no "
            "word of yours but a stop. Ask whoever runs it."
        )
        meant = "Only if they say that it is meant to be another: mana work accept-hub"
        blocks.append(Line(f"{meant} {said}", "quiet"))
    elif now.hub_unnamed:
        blocks.append(
            "The hub does not say its name, so it gets no word of yours but a stop. It is too old: "
            "whoever runs it has to bring it up to date."
        )
    elif now.differs:
        blocks.append(
            "The hub says something else of your limits than you signed. It is told again, and "
            "its runner works by your word alone. If this stays, ask whoever runs it."
        )
    return blocks
