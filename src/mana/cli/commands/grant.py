"""`mana grant`: what a mission may read while the person is away, shown before it is given."""

from __future__ import annotations

from typing import Annotated

import typer

from mana.cli.commands.mission import find_mission, grant_words
from mana.cli.naming import PREFIX_MIN, NameUnknown, resolve, shorts
from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Line, Rows
from mana.cli.spaces import option
from mana.cli.text import counted, left, one_line
from mana.device import names
from mana.device.desk import Device
from mana.device.views import Consent, GrantView

grant = typer.Typer(
    help="Grants: what a mission may read while you are away.",
    no_args_is_help=True,
    add_completion=False,
)

MissionArgument = Annotated[
    str, typer.Argument(metavar="MISSION", help="Title, id or start of an id.")
]
DaysOption = Annotated[int, typer.Option("--days", min=1, help="How long it lasts.")]


@grant.command("show-consent")
@on_account()
async def show_consent(device: Device, mission: MissionArgument, days: DaysOption = 7) -> Answer:
    """Show what a grant would allow, without giving it."""
    one = await find_mission(device, mission)
    consent = await device.consent(one.mission_id, days=days)
    return Answer({"consent": consent}, consent_blocks(consent))


@grant.command()
@on_account()
async def give(
    device: Device,
    around: Surroundings,
    mission: MissionArgument,
    days: DaysOption = 7,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> Answer:
    """Grant a mission the records it looks at, after showing what that means."""
    one = await find_mission(device, mission)
    consent = await device.consent(one.mission_id, days=days)
    if not yes:
        # On standard error: standard output holds the answer alone.
        around.tell(consent_blocks(consent))
    around.confirm("Grant this?", yes=yes)
    given = await device.grant(one.mission_id, days=days)
    words = f"Granted: “{one_line(one.title, 80)}” {grant_words(given, now_ms=around.now_ms())}."
    command = f"mana grant revoke {given.grant_id}{await option(device)}"
    blocks: list[Block] = [words, Line(f"End it: {command}", "quiet")]
    return Answer({"consent": consent, "grant": given}, blocks, wrote=True)


@grant.command("list")
@on_account()
async def list_grants(device: Device, around: Surroundings) -> Answer:
    """List grants, the newest first."""
    grants = await device.grants()
    return Answer({"grants": grants}, grant_blocks(grants, now_ms=around.now_ms()))


@grant.command()
@on_account()
async def revoke(
    device: Device,
    named: Annotated[
        str, typer.Argument(metavar="GRANT", help="Id or start of an id, or the mission's title.")
    ],
) -> Answer:
    """End a grant for ever, before the next reading."""
    one = _find_grant(await device.grants(), named)
    await device.revoke(one.grant_id)
    words = f"Revoked. “{one_line(one.mission_title, 80)}” reads nothing from now on."
    return Answer({"revoked": {"grantId": one.grant_id}}, [words], wrote=True)


def consent_blocks(consent: Consent) -> list[Block]:
    """Return the consent's sentences, each harmless and on its line."""
    title = one_line(consent.mission_title, 80)
    return [
        Line(f"May “{title}” work while you are away?", "title"),
        "",
        *(one_line(line) for line in consent.lines),
        "",
    ]


def grant_blocks(grants: list[GrantView], *, now_ms: int) -> list[Block]:
    """Return grants as rows, or that there are none."""
    if not grants:
        return [Line("Nothing is granted: no mission reads anything while you are away.", "quiet")]
    ids = shorts(one.grant_id for one in grants)
    rows = [
        (
            ids[one.grant_id],
            _state_words(one),
            left(one.expires_ms, now_ms=now_ms) if one.state == "active" else "",
            counted(len(one.titles), "record"),
            one.mission_title,
        )
        for one in grants
    ]
    return [Rows(("ID", "STATE", "LIFE", "READS", "MISSION"), rows, flexible=4)]


def _state_words(one: GrantView) -> str:
    state = names.called(names.STATES, one.state)
    return state if one.own else f"{state}, another's"


def _find_grant(grants: list[GrantView], named: str) -> GrantView:
    """Return the grant of an id; by a mission's title only one that is in force."""
    by_id = {one.grant_id: one for one in grants}
    wanted = named.strip().lower()
    pairs = [(one.grant_id, "") for one in grants if one.grant_id.startswith(wanted)]
    if len(wanted) < PREFIX_MIN or not pairs:
        in_force = [one for one in grants if one.state in ("active", "stale")]
        pairs = [(one.grant_id, one.mission_title) for one in in_force]
    if not pairs:
        raise NameUnknown("there is no grant of this id, and none in force of such a mission")
    return by_id[resolve(named, pairs, "grant")]
