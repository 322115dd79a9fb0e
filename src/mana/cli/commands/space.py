"""`mana space`: spaces that are shared with others, who is in them, and who is invited.

What changes who is in a space needs the hub at once; a name is kept and sent later like a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Final

import typer

from mana.cli.commands.space_policy import SpaceArgument, YesOption, policy
from mana.cli.naming import resolve, shorts
from mana.cli.opening import Surroundings, on_account, read_standard_input
from mana.cli.output import Answer, Block, Facts, Line, Rows
from mana.cli.spaces import PERSONAL, called, find_space, option, state_words
from mana.cli.text import counted, left, one_line
from mana.device.desk import Device
from mana.device.views import InvitationView, MemberView, SpaceView
from mana.domain.errors import Invalid
from mana.protocol.errors import HubBehind


class SpaceType(StrEnum):
    """What a shared space is for, which says what it holds."""

    BRAND = "brand"
    CLUB = "club"
    FAMILY = "family"
    TEAM = "team"
    PRACTICE = "practice"


class Role(StrEnum):
    """What a member may do."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class InvitedRole(StrEnum):
    """As what somebody may be invited."""

    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


STANDING: Final[Mapping[str, str]] = {
    "open": "open",
    "accepted": "accepted; one of your devices lets them in",
    "refused": "accepted without the link; withdraw it",
}
"""What the states of an invitation mean to who made it; others are told as they are."""
WAITING: Final[Mapping[str, str]] = {
    "accepted": "waits for a device of whoever invited you",
    "refused": "not trusted: it is not the space that the link names",
}
"""What they mean to who was invited."""
MANAGERS: Final = (Role.OWNER, Role.ADMIN)

space = typer.Typer(
    help="Spaces: what you share with others, and who is in them.",
    no_args_is_help=True,
    add_completion=False,
)

space.add_typer(policy, name="policy")

MemberArgument = Annotated[
    str,
    typer.Argument(metavar="MEMBER", help="Name, id or start of an id, as `mana space members`."),
]


@space.command("list")
@on_account(in_space=False)
async def list_spaces(device: Device) -> Answer:
    """List your spaces, your own first, former ones last."""
    spaces = await device.spaces()
    ids = shorts(one.space_id for one in spaces)
    rows = [
        (ids[one.space_id], one.type, state_words(one), str(one.members), called(one))
        for one in spaces
    ]
    blocks: list[Block] = [Rows(("ID", "TYPE", "YOU ARE", "MEMBERS", "NAME"), rows, flexible=4)]
    if len(spaces) == 1:
        blocks.append(Line("Share one: mana space create NAME --type family", "quiet"))
    return Answer({"spaces": spaces}, blocks)


@space.command()
@on_account(in_space=False)
async def create(
    device: Device,
    name: Annotated[str, typer.Argument(help="How it is called.")],
    space_type: Annotated[SpaceType, typer.Option("--type", help="What it is for.")],
    description: Annotated[str, typer.Option("--description", help="More about it.")] = "",
) -> Answer:
    """Found a space to share; you are its owner. Needs the hub."""
    space_id = await device.create_space(name, space_type.value, description=description)
    made = await find_space(device, space_id)
    at = (await _in(device, made))[1]
    return Answer(
        {"space": made},
        [
            f"Created “{called(made)}”, a {made.type} space; you are its owner.",
            Line(f"Write in it: mana note add TITLE{at}", "quiet"),
            Line(f"Invite somebody: mana space invite {_short(at)}", "quiet"),
        ],
        wrote=True,
    )


@space.command()
@on_account(in_space=False)
async def show(device: Device, named: SpaceArgument) -> Answer:
    """Show a space: what it is for, what you are in it, and who else is."""
    one = await find_space(device, named)
    inside = device.in_space(one.space_id)
    members = await inside.members()
    trouble = (await device.status()).sync.troubles.get(one.space_id, "")
    facts = [
        ("Id", one.space_id),
        ("Type", one.type),
        ("You are", state_words(one)),
        ("About", one.description),
        ("Members", f"{len(members)}: mana space members {_short(await option(inside))}"),
        ("Not synced", trouble),
        ("Held here only", _held_words(one)),
    ]
    blocks: list[Block] = [Line(called(one), "title"), Facts(facts)]
    held = await inside.held_only()
    if held:
        rows = [(each.table, each.record_id, one_line(each.title)) for each in held]
        blocks.append(Rows(("TABLE", "ID", "TITLE"), rows, flexible=2))
    if trouble == HubBehind.code:
        blocks.append(
            Line(f"Read it anew: mana space reread {_short(await option(inside))}", "quiet")
        )
    if one.left:
        blocks.append(Line("What this device had of it stays readable here.", "quiet"))
    return Answer({"space": one, "members": members, "trouble": trouble, "heldOnly": held}, blocks)


@space.command()
@on_account(in_space=False)
async def reread(device: Device, named: SpaceArgument) -> Answer:
    """Read a space anew from the hub, if the hub was set back. Nothing on this device goes.

    What you wrote here and the hub lacks is sent again. Needs the hub.
    """
    one = await find_space(device, named)
    inside = device.in_space(one.space_id)
    await inside.reread()
    after = await find_space(device, one.space_id)
    blocks: list[Block] = [f"Read “{called(one)}” anew."]
    if after.held_only:
        blocks.append(f"Held here only: {_held_words(after)}.")
        blocks.append(Line(f"See which: mana space show {_short(await option(inside))}", "quiet"))
    return Answer({"space": after}, blocks)


@space.command()
@on_account(in_space=False)
async def rename(
    device: Device,
    named: SpaceArgument,
    name: Annotated[str, typer.Argument(help="A new name.")],
) -> Answer:
    """Give a space another name; owners and admins, also without the hub."""
    one = await find_space(device, named)
    await device.in_space(one.space_id).edit_space(name=name)
    after = await find_space(device, one.space_id)
    return Answer({"space": after}, [f"“{called(one)}” is “{called(after)}” now."], wrote=True)


@space.command()
@on_account(in_space=False)
async def describe(
    device: Device,
    named: SpaceArgument,
    text: Annotated[str, typer.Argument(help="What it is for.")],
) -> Answer:
    """Say what a space is for; owners and admins, also without the hub."""
    one = await find_space(device, named)
    await device.in_space(one.space_id).edit_space(description=text)
    after = await find_space(device, one.space_id)
    return Answer({"space": after}, [f"Changed what “{called(after)}” is for."], wrote=True)


@space.command()
@on_account(in_space=False)
async def invite(
    device: Device,
    around: Surroundings,
    named: SpaceArgument,
    role: Annotated[
        InvitedRole,
        typer.Option(
            "--role",
            help="admin: invites and removes too. member: reads and writes. viewer: reads.",
        ),
    ] = InvitedRole.MEMBER,
    days: Annotated[int, typer.Option("--days", min=1, max=30, help="How long it holds.")] = 7,
    label: Annotated[str, typer.Option("--for", help="Whom you mean; only you see it.")] = "",
) -> Answer:
    """Make a link by which one person can join a space. Needs the hub."""
    one = await find_space(device, named)
    inside, at = await _in(device, one)
    made = await inside.invite(role.value, days=days, label=label)
    life = left(made.expires_ms, now_ms=around.now_ms())
    take_back = f"mana space withdraw {_short(at)} {made.invitation_id}"
    return Answer(
        {"invitation": made},
        [
            Facts([("Link", made.link)]),
            f"Whoever has it can join “{called(one)}” as {made.role}, once: {life}.",
            "Give it only to the person you mean, on a way that nobody else reads.",
            Line("They join with: mana space join", "quiet"),
            Line(f"Take it back: {take_back}", "quiet"),
        ],
        wrote=True,
    )


@space.command("invitations")
@on_account(in_space=False)
async def list_invitations(
    device: Device,
    around: Surroundings,
    named: SpaceArgument,
    links: Annotated[
        bool, typer.Option("--links", help="With the links that are still open.")
    ] = False,
) -> Answer:
    """List the invitations into a space. Needs the hub."""
    one = await find_space(device, named)
    found = await device.in_space(one.space_id).invitations()
    ids = shorts(each.invitation_id for each in found)
    now_ms = around.now_ms()
    rows = [
        (
            ids[each.invitation_id],
            each.role,
            left(each.expires_ms, now_ms=now_ms) if each.state in STANDING else "",
            STANDING.get(each.state, each.state),
            one_line(each.label, 80),
        )
        for each in found
    ]
    blocks: list[Block] = [Rows(("ID", "ROLE", "LIFE", "STATE", "FOR"), rows, flexible=4)]
    if not found:
        blocks = [Line(f"Nobody is invited into “{called(one)}”.", "quiet")]
    facts = [(ids[each.invitation_id], _secrets(each, links=links)) for each in found]
    if any(words for _, words in facts):
        blocks += ["", Facts(facts)]
    return Answer({"invitations": found}, blocks)


@space.command()
@on_account(in_space=False)
async def withdraw(
    device: Device,
    named: SpaceArgument,
    invitation: Annotated[
        str,
        typer.Argument(metavar="INVITATION", help="Id as `mana space invitations`, or its start."),
    ],
) -> Answer:
    """Take an invitation back; its link opens nothing any more. Needs the hub."""
    one = await find_space(device, named)
    inside = device.in_space(one.space_id)
    pairs = [(each.invitation_id, "") for each in await inside.invitations()]
    invitation_id = resolve(invitation, pairs, "invitation")
    await inside.withdraw_invitation(invitation_id)
    words = f"Withdrawn: the link opens nothing of “{called(one)}” any more."
    return Answer({"withdrawn": {"invitationId": invitation_id}}, [words], wrote=True)


@space.command()
@on_account(in_space=False)
async def join(
    device: Device,
    around: Surroundings,
    link: Annotated[
        str,
        typer.Argument(
            metavar="LINK",
            help="The link. Without it, it is asked for or read from standard input, so that it"
            " stays out of your shell's history.",
        ),
    ] = "",
) -> Answer:
    """Accept an invitation to a space by its link. Needs the hub."""
    given = link if link not in ("", "-") else _asked_link(around)
    asked = await device.join(given)
    return Answer(
        {"invitation": asked},
        [
            f"Asked to join as {asked.role}. A device of whoever invited you lets you in.",
            f"They can compare your fingerprint: {one_line(asked.fingerprint)}",
            Line("See whether you are in: mana space list", "quiet"),
        ],
        wrote=True,
    )


@space.command()
@on_account(in_space=False)
async def joining(device: Device, around: Surroundings) -> Answer:
    """List the invitations that you accepted and wait for. Needs the hub."""
    found = await device.joining()
    ids = shorts(each.space_id for each in found)
    now_ms = around.now_ms()
    rows = [
        (
            ids[each.space_id],
            each.role,
            left(each.expires_ms, now_ms=now_ms),
            WAITING.get(each.state, each.state),
        )
        for each in found
    ]
    blocks: list[Block] = [Rows(("SPACE", "ROLE", "LIFE", "STATE"), rows, flexible=3)]
    if not found:
        blocks = [Line("You wait for no space.", "quiet")]
    return Answer({"joining": found}, blocks)


@space.command("members")
@on_account(in_space=False)
async def list_members(device: Device, named: SpaceArgument) -> Answer:
    """List who is in a space. Names are what people call themselves; fingerprints are sure."""
    one = await find_space(device, named)
    members = await device.in_space(one.space_id).members()
    ids = shorts(each.account_id for each in members)
    # Beside the role and not the name, which anybody may end in "(you)".
    rows = [
        (
            ids[each.account_id],
            each.role + (" (you)" if each.own else ""),
            one_line(each.fingerprint),
            _name(each),
        )
        for each in members
    ]
    blocks: list[Block] = [Rows(("ID", "ROLE", "FINGERPRINT", "NAME"), rows, flexible=3)]
    return Answer({"members": members}, blocks)


@space.command()
@on_account(in_space=False)
async def role(
    device: Device,
    around: Surroundings,
    named: SpaceArgument,
    member: MemberArgument,
    to: Annotated[Role, typer.Argument(metavar="ROLE", help="owner, admin, member or viewer.")],
    yes: YesOption = False,
) -> Answer:
    """Give a member another role. Needs the hub."""
    one = await find_space(device, named)
    inside = device.in_space(one.space_id)
    who = _found(await inside.members(), member)
    if to in MANAGERS:
        # Anybody may call themselves as somebody else does.
        question = (
            f"Make {_sure(who)} {to} of “{called(one)}”, who then invites and removes others?"
        )
        around.confirm(question, yes=yes)
    await inside.set_role(who.account_id, to.value)
    words = f"{_name(who)} is {to} of “{called(one)}” now."
    return await _moved(inside, who.account_id, words)


@space.command()
@on_account(in_space=False)
async def remove(
    device: Device,
    around: Surroundings,
    named: SpaceArgument,
    member: MemberArgument,
    yes: YesOption = False,
) -> Answer:
    """Put a member out of a space, which gets another key. Needs the hub."""
    one = await find_space(device, named)
    inside = device.in_space(one.space_id)
    who = _found(await inside.members(), member)
    kept = "What they have read, and what their devices hold, stays with them."
    around.confirm(
        f"Remove {_sure(who)} from “{called(one)}”? They read nothing that is written from then"
        f" on, and their grants in it end. {kept}",
        yes=yes,
    )
    await inside.remove_member(who.account_id)
    words = f"Removed {_name(who)}. “{called(one)}” has another key: what is written from now on"
    return Answer(
        {"removed": {"spaceId": one.space_id, "accountId": who.account_id}},
        [f"{words} they cannot read.", Line(kept, "quiet")],
        wrote=True,
    )


@space.command()
@on_account(in_space=False)
async def transfer(
    device: Device,
    around: Surroundings,
    named: SpaceArgument,
    member: MemberArgument,
    yes: YesOption = False,
) -> Answer:
    """Hand a space over: a member becomes its owner, and you an admin. Needs the hub."""
    one = await find_space(device, named)
    inside = device.in_space(one.space_id)
    who = _found(await inside.members(), member)
    around.confirm(
        f"Hand “{called(one)}” over to {_sure(who)}? You stay as an admin, and only they can give"
        " it back.",
        yes=yes,
    )
    await inside.transfer(who.account_id)
    return await _moved(
        inside, who.account_id, f"{_name(who)} is owner of “{called(one)}” now, and you an admin."
    )


@space.command()
@on_account(in_space=False)
async def leave(
    device: Device, around: Surroundings, named: SpaceArgument, yes: YesOption = False
) -> Answer:
    """Leave a space; what is here of it stays readable here. Needs the hub."""
    one = await find_space(device, named)
    inside, at = await _in(device, one)
    around.confirm(
        f"Leave “{called(one)}”? What you wrote stays with the others, and to come back you need"
        " another invitation.",
        yes=yes,
    )
    await inside.leave()
    return _gone(await find_space(device, one.space_id), f"You left “{called(one)}”.", at)


@space.command()
@on_account(in_space=False)
async def close(
    device: Device, around: Surroundings, named: SpaceArgument, yes: YesOption = False
) -> Answer:
    """End a space for everybody, for ever; only an owner may. Needs the hub."""
    one = await find_space(device, named)
    inside, at = await _in(device, one)
    around.confirm(
        f"Close “{called(one)}” for {counted(one.members, 'member')}, for ever? The hub deletes"
        " it; each device keeps what it has, to read.",
        yes=yes,
    )
    await inside.close_space()
    return _gone(await find_space(device, one.space_id), f"Closed “{called(one)}”.", at)


@space.command()
@on_account(in_space=False)
async def forget(
    device: Device, around: Surroundings, named: SpaceArgument, yes: YesOption = False
) -> Answer:
    """Remove a space that you left, or that was closed, from this device."""
    one = await find_space(device, named)
    if one.left:
        question = f"Remove all of “{called(one)}” from this device? It cannot be brought back."
        around.confirm(question, yes=yes)
    await device.in_space(one.space_id).forget_space()
    words = f"Forgot “{called(one)}”: nothing of it is on this device any more."
    return Answer({"forgotten": {"spaceId": one.space_id}}, [words])


async def _in(device: Device, one: SpaceView) -> tuple[Device, str]:
    """Return the account in a space, and the option that names the space in a command."""
    inside = device.in_space(one.space_id)
    return inside, await option(inside)


def _short(at: str) -> str:
    """Return the start of a space's id from the option that names it."""
    return at.removeprefix(" --space ") or PERSONAL


def _asked_link(around: Surroundings) -> str:
    given = around.ask_hidden("The link of the invitation: ") or read_standard_input()
    if not given.strip():
        raise Invalid("the link of the invitation is needed")
    return given


def _found(members: Sequence[MemberView], named: str) -> MemberView:
    by_id = {one.account_id: one for one in members}
    return by_id[resolve(named, [(one.account_id, one.name) for one in members], "member")]


async def _moved(inside: Device, account_id: str, words: str) -> Answer:
    after = next(one for one in await inside.members() if one.account_id == account_id)
    return Answer({"member": after, "spaceId": inside.space_id}, [words], wrote=True)


def _gone(after: SpaceView, words: str, at: str) -> Answer:
    hints = [
        Line(f"What this device has of it can be read: mana note list{at}", "quiet"),
        Line(f"Remove it from this device: mana space forget {_short(at)}", "quiet"),
    ]
    return Answer({"space": after}, [words, *hints], wrote=True)


def _name(member: MemberView) -> str:
    return one_line(member.name, 80) or "a member without a name"


def _held_words(one: SpaceView) -> str:
    """Say how much of a space the hub does not show; empty if it shows all."""
    if not one.held_only:
        return ""
    return f"{counted(one.held_only, 'record')} with what the hub did not show"


def _sure(member: MemberView) -> str:
    """Return a member with what nobody else can call themselves."""
    return f"{_name(member)} (fingerprint {one_line(member.fingerprint)})"


def _secrets(one: InvitationView, *, links: bool) -> str:
    """Return what tells an invitation apart: its link, or who accepted it."""
    if links and one.link:
        return one.link
    return f"accepted by fingerprint {one_line(one.fingerprint)}" if one.fingerprint else ""
