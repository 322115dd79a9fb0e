"""`mana security`: mode, password, recovery, keys, second factors, sessions, devices, grants, log.

Secrets are read from a file, a variable or the terminal, and are never arguments: those stand in
the shell's history, and every process of the machine can read them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
import typer

from mana.cli.naming import PREFIX_MIN, NameUnknown, resolve, shorts
from mana.cli.opening import ConfirmationNeeded, Surroundings, on_account, on_host, opened_device
from mana.cli.output import Answer, Block, Facts, Line, Rows, to_json
from mana.cli.spaces import called, find_space, names_by_id
from mana.cli.text import counted, left, one_line, when
from mana.device.app import DeviceHost
from mana.device.desk import Device
from mana.device.links import LinkView
from mana.device.security import RecoveryKit, SecurityStatus
from mana.device.sessions import DeviceView
from mana.device.views import GrantView, RotationView
from mana.domain.clock import parse_iso_ms
from mana.domain.errors import Conflict, Invalid, NotFound
from mana.protocol.messages import FactorAnswer, FactorInfo, SecurityEvent, SessionInfo

security = typer.Typer(
    help="Security: mode, password, recovery, keys, second factors, sessions, devices, grants.",
    no_args_is_help=True,
    add_completion=False,
)
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
LINK_S_MAX: Final = 120.0
LOOK_S: Final = 1.0
GROUPS_PER_LINE: Final = 4
ZERO_KNOWLEDGE: Final = "zero-knowledge"
TO_ZERO_KNOWLEDGE: Final = (
    "Every key is drawn anew, every other session ends, all grants end and are off. It cannot protect"
    " the past: whoever kept an older copy of the database with the hub's key can read what was in it"
    " then. If password, recovery code and every device are lost, all is lost. Switch?"
)
TO_STANDARD: Final = (
    "The hub is given your master key: whoever runs it could read all that is there, also what you"
    " wrote in zero-knowledge mode. Switch?"
)


class Mode(StrEnum):
    """The two modes of an account."""

    STANDARD = "standard"
    ZERO_KNOWLEDGE = "zero-knowledge"


class Code(StrEnum):
    """What is done with the recovery code."""

    SHOW = "show"
    MAKE = "make"
    KEPT = "kept"
    REMOVE = "remove"


class Key(StrEnum):
    """Which key becomes another."""

    MASTER = "master"
    IDENTITY = "identity"
    SPACE = "space"


class Switch(StrEnum):
    """On or off."""

    ON = "on"
    OFF = "off"


class DigitsDiffer(Conflict):
    """The digits of the new device are not those that this one shows."""

    code = "DIGITS_DIFFER"
    advice = "Somebody may stand between the two: refuse it with `mana security link --refuse`."


class LinkSilent(NotFound):
    """The new device did not show its key in time."""

    code = "LINK_SILENT"
    advice = "Leave the page or the command of the new device open, and try again."


@security.command()
@on_account(in_space=False)
async def status(device: Device, around: Surroundings) -> Answer:
    """Show mode, recovery code, second factors, and how far new keys are."""
    stands = await device.security.status()
    names = await names_by_id(device)
    blocks: list[Block] = [Facts(_status_pairs(stands, now_ms=around.now_ms()))]
    blocks += [Line(_rotation_words(one, names)) for one in stands.rotations]
    if stands.recovery_waiting:
        blocks.append(
            Line("A recovery code waits to be seen: mana security recovery show", "quiet")
        )
    return Answer({"security": _status_document(stands)}, blocks)


@security.command()
@on_account(in_space=False)
async def password(device: Device, around: Surroundings) -> Answer:
    """Set another password; every other session ends."""
    old = around.password(device.login)
    new = around.secret("MANA_NEW_PASSWORD", "New password: ", twice=True)
    await device.security.change_password(old, new)
    return Answer(
        {"changed": "password"}, ["The password is the new one. Every other session has ended."]
    )


@security.command()
@on_account(in_space=False)
async def recovery(
    device: Device,
    around: Surroundings,
    what: Annotated[
        Code, typer.Argument(help="show, make another, say that you kept it, or remove it.")
    ] = Code.SHOW,
    yes: YesOption = False,
) -> Answer:
    """Make, show or remove the recovery code. It is shown until you say that you kept it."""
    keys = device.security
    if what is Code.MAKE:
        if (await keys.status()).recovery_set_at is not None:
            around.confirm("The code that you have becomes worthless. Make another?", yes=yes)
        return _kit_answer(await keys.new_recovery_code())
    if what is Code.KEPT:
        around.confirm("Do you have it on paper, and would you find it?", yes=yes)
        await keys.kit_seen()
        return Answer({"kept": True}, ["Good. This device has forgotten it."])
    if what is Code.REMOVE:
        around.confirm("Make the recovery code worthless?", yes=yes)
        await keys.remove_recovery_code()
        return Answer({"removed": "recovery"}, ["The recovery code is worthless now."])
    kit = await keys.waiting_kit()
    if kit is None:
        return Answer(
            {"kit": None},
            [Line("No code waits to be seen. Another one: mana security recovery make", "quiet")],
        )
    return _kit_answer(kit)


@security.command()
@on_account(in_space=False)
async def mode(
    device: Device,
    around: Surroundings,
    to: Annotated[Mode, typer.Argument(metavar="MODE", help="standard or zero-knowledge.")],
    yes: YesOption = False,
) -> Answer:
    """Switch between standard and zero-knowledge mode."""
    if (await device.security.status()).mode == to.value:
        return Answer({"mode": to.value}, [f"The account is in {to.value} mode already."])
    around.confirm(TO_ZERO_KNOWLEDGE if to is Mode.ZERO_KNOWLEDGE else TO_STANDARD, yes=yes)
    kit = await device.security.set_mode(to.value, around.password(device.login))
    words = f"The account is in {to.value} mode now."
    if kit is None:
        return Answer({"mode": to.value}, [words])
    return _kit_answer(kit, words, mode=to.value)


@security.command("allow-grants")
@on_account(in_space=False)
async def allow_grants(
    device: Device,
    around: Surroundings,
    to: Annotated[Switch, typer.Argument(metavar="on|off")],
    yes: YesOption = False,
) -> Answer:
    """Say whether missions may be granted to the hub's runner; `off` ends all grants."""
    allowed = to is Switch.ON
    if not allowed:
        around.confirm("End all grants, and allow none?", yes=yes)
    await device.security.allow_grants(allowed)
    words = "Grants can be given." if allowed else "No grant can be given; those there were ended."
    return Answer({"grants": allowed}, [words])


@security.command()
@on_account(in_space=False)
async def rotate(
    device: Device,
    around: Surroundings,
    what: Annotated[Key, typer.Argument(help="master, identity, or the key of a space.")],
    named: Annotated[
        str | None, typer.Argument(metavar="SPACE", help="Which space: name or id.")
    ] = None,
    yes: YesOption = False,
) -> Answer:
    """Make a key another. What was sealed under it is sealed anew in the background."""
    keys = device.security
    if what is Key.SPACE:
        one = await find_space(device, named or "personal")
        around.confirm(f"Give “{called(one)}” a new key?", yes=yes)
        await keys.rotate_space(one.space_id)
        words = f"“{called(one)}” has a new key. See how far it is: mana security status"
        return Answer({"rotated": {"what": "space", "spaceId": one.space_id}}, [words])
    if named is not None:
        raise Invalid("only the key of a space takes a name")
    if what is Key.IDENTITY:
        around.confirm("Your fingerprint changes; others compare it anew. Go on?", yes=yes)
        await keys.rotate_identity()
        words = "You have a new identity. Your spaces follow by themselves."
        return Answer({"rotated": {"what": "identity"}}, [words])
    around.confirm("The recovery code becomes another, sessions end. Go on?", yes=yes)
    kit = await keys.rotate_master(around.password(device.login))
    return _kit_answer(kit, "You have a new master key.")


@security.command()
@on_host
async def follow(host: DeviceHost, around: Surroundings, account: str | None) -> Answer:
    """Take the keys that another device changed, and sign in to the hub anew."""
    device = await opened_device(host, around, account)
    given = around.password(device.login)
    await around.with_factor(lambda answer: device.security.refresh(given, factor=answer))
    await device.sync_now()
    return Answer({"followed": True}, ["This device has the keys in force."])


@security.command()
@on_account(in_space=False)
async def grants(device: Device, around: Surroundings) -> Answer:
    """List every grant of all your spaces: agent, life, model, who gave it, verified or not."""
    rows, documents = [], []
    for space in await device.spaces():
        inside = device.in_space(space.space_id)
        found = await inside.grants()
        agents = {one.mission_id: one.agent_name for one in await inside.missions()}
        names = {one.account_id: one.name for one in await inside.members()} if found else {}
        for one in found:
            by = "you" if one.own else names.get(one.account_id, "somebody who left")
            agent = agents.get(one.mission_id, "")
            rows.append(_grant_row(one, agent, by, now_ms=around.now_ms()))
            documents.append(
                {"grant": one, "agent": agent, "grantedBy": by, "spaceId": space.space_id}
            )
    head = ("ID", "STATE", "LIFE", "READS", "AGENT", "MODEL", "GRANTED BY", "MISSION")
    blocks: list[Block] = [Rows(head, rows, flexible=7)]
    if not rows:
        blocks = [Line("Nothing is granted, in none of your spaces.", "quiet")]
    return Answer({"grants": documents}, blocks)


@security.command()
@on_account(in_space=False)
async def sessions(
    device: Device,
    around: Surroundings,
    end: Annotated[str | None, typer.Option("--end", metavar="SESSION", help="End it.")] = None,
) -> Answer:
    """List the sessions of the account, or end one at once."""
    found = await device.sessions.list()
    if end is None:
        return _listed("sessions", found, _session_rows(found, now_ms=around.now_ms()))
    session_id = _resolved(end, [(one.session_id, one.name) for one in found], "session")
    await device.sessions.end(session_id)
    return _ended("ended", "sessionId", session_id, "Ended. Its device asks for the password.")


@security.command()
@on_account(in_space=False)
async def devices(
    device: Device,
    around: Surroundings,
    revoke: Annotated[
        str | None, typer.Option("--revoke", metavar="DEVICE", help="End it for ever.")
    ] = None,
    yes: YesOption = False,
) -> Answer:
    """List the devices of the account, or revoke one."""
    found = await device.sessions.devices()
    if revoke is None:
        return _listed("devices", found, _device_rows(found, now_ms=around.now_ms()))
    device_id = _resolved(revoke, [(one.id, one.name) for one in found], "device")
    name = next(one.name for one in found if one.id == device_id)
    around.confirm(f"Revoke “{one_line(name or device_id, 80)}” for ever?", yes=yes)
    await device.sessions.revoke(device_id)
    words = "Revoked. Its sessions have ended, and what it signs from now on counts nowhere."
    return _ended("revoked", "deviceId", device_id, words)


@security.command()
@on_account(in_space=False)
async def factors(
    device: Device,
    around: Surroundings,
    add: Annotated[
        str | None, typer.Option("--add", metavar="NAME", help="Add an authenticator.")
    ] = None,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="FACTOR", help="Remove one.")
    ] = None,
) -> Answer:
    """List second factors, add an authenticator, or remove one. Passkeys are added on the page."""
    if add is not None:
        return await _add_factor(device, around, add)
    found = await device.sessions.factors()
    if remove is None:
        return _listed("factors", found, _factor_rows(found, now_ms=around.now_ms()))
    factor_id = _resolved(remove, [(one.factor_id, one.name) for one in found], "second factor")
    await device.sessions.remove_factor(factor_id)
    return _ended("removed", "factorId", factor_id, "Removed. It is asked for no more.")


@security.command()
@on_account(in_space=False)
async def events(
    device: Device,
    around: Surroundings,
    before: Annotated[
        str | None, typer.Option("--before", metavar="TIME", help="Only earlier ones (ISO).")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="At most so many.")] = 50,
) -> Answer:
    """Show what happened to keys and sessions, newest first; refused attempts too."""
    found = await device.security.events(before=before, limit=limit)
    shown: Block = Line("Nothing was written down.", "quiet")
    if found:
        shown = Rows(("WHEN", "WHAT", "RESULT", "DETAIL"), _event_rows(found, around), 3)
    return _listed("events", found, shown)


@security.command()
@on_account(in_space=False)
async def link(
    device: Device,
    around: Surroundings,
    approve: Annotated[
        str | None, typer.Option("--approve", metavar="LINK", help="Let a new device in.")
    ] = None,
    digits: Annotated[
        str | None,
        typer.Option("--digits", help="The digits of the new device, instead of a question."),
    ] = None,
    refuse: Annotated[
        str | None, typer.Option("--refuse", metavar="LINK", help="Turn a new device away.")
    ] = None,
) -> Answer:
    """List the new devices that ask to be let in; let one in after comparing digits."""
    waiting = await device.links.waiting()
    pairs = [(one.link_id, one.name) for one in waiting]
    if refuse is not None:
        link_id = _resolved(refuse, pairs, "new device")
        await device.links.refuse(link_id)
        return _ended("refused", "linkId", link_id, "Refused. Nothing was handed over.")
    if approve is not None:
        link_id = _resolved(approve, pairs, "new device")
        shown = await _revealed(device, link_id)
        _require_same(around, shown, digits)
        await device.links.approve(link_id)
        return _ended("approved", "linkId", link_id, "Let in. Confirm it on the new device, too.")
    ids = shorts(one.link_id for one in waiting)
    rows = [
        (ids[one.link_id], one.state, _ago(one.created_at, around), one.name) for one in waiting
    ]
    blocks: list[Block] = [Line("No new device asks.", "quiet")]
    if rows:
        blocks = [
            Rows(("ID", "STATE", "ASKED", "CALLS ITSELF"), rows, flexible=3),
            Line("Let it in: mana security link --approve ID", "quiet"),
        ]
    return Answer({"links": waiting}, blocks)


@security.command("auto-lock")
@on_host
async def auto_lock(
    host: DeviceHost,
    around: Surroundings,
    account: str | None,
    minutes: Annotated[int, typer.Argument(min=0, help="0: never by itself.")],
) -> Answer:
    """Choose after how many minutes without you a running device locks the account."""
    device = await opened_device(host, around, account)
    await host.set_auto_lock(device.account_id, minutes)
    words = (
        f"It locks after {counted(minutes, 'minute')} without you."
        if minutes
        else "It never locks by itself."
    )
    return Answer({"autoLockMinutes": minutes}, [words])


@security.command()
@on_account(fresh=False, in_space=False)
async def keyring(
    device: Device, to: Annotated[Switch, typer.Argument(metavar="on|off")]
) -> Answer:
    """Let the account open by the system's keyring when the device starts, or not."""
    on = to is Switch.ON
    await device.keyring.remember(on)
    words = (
        "The device opens it without the password: whoever can use your keyring can, too."
        if on
        else "The password is asked for again."
    )
    return Answer({"keyring": on}, [words])


# Within


def _listed(name: str, found: Sequence[object], shown: Block) -> Answer:
    """Return what was found under its name, for people as it is shown."""
    plain = [msgspec.to_builtins(one) if isinstance(one, msgspec.Struct) else one for one in found]
    return Answer({name: plain}, [shown])


def _ended(did: str, what: str, ident: str, words: str) -> Answer:
    """Return what was done to the one thing of an id, such as `{"removed": {"factorId": …}}`."""
    return Answer({did: {what: ident}}, [words])


async def _add_factor(device: Device, around: Surroundings, name: str) -> Answer:
    setup = await device.sessions.begin_totp(name)
    # Before the question, and not among what a program reads: it is of use to nobody else.
    around.tell([Facts([("Secret", setup.secret), ("Address", setup.uri)])])
    code = around.secret("MANA_FACTOR_CODE", "Code of the authenticator: ")
    await device.sessions.finish_factor(setup.factor_id, FactorAnswer(totp=code))
    words = f"Added “{one_line(name, 80)}”. It is asked for at the next sign-in."
    return Answer({"added": {"factorId": setup.factor_id, "kind": "totp"}}, [words])


async def _revealed(device: Device, link_id: str) -> LinkView:
    """Return a link once the new device has shown its key; raise LinkSilent."""
    await device.links.answer(link_id)
    try:
        async with asyncio.timeout(LINK_S_MAX):
            while found := [one for one in await device.links.waiting() if one.link_id == link_id]:
                if found[0].state == "forged":
                    raise DigitsDiffer("the new device shows another key than it had promised")
                if found[0].digits is not None:
                    return found[0]
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise LinkSilent("the new device did not show its key in time") from None
    raise LinkSilent("the new device asks no more")


def _require_same(around: Surroundings, shown: LinkView, typed: str | None) -> None:
    """Raise DigitsDiffer unless the person says that both devices show the same."""
    digits = shown.digits or ""
    if typed is not None:
        if "".join(filter(str.isdigit, typed)) != "".join(filter(str.isdigit, digits)):
            raise DigitsDiffer("these are not the digits that this device shows")
        return
    if around.as_json:
        raise ConfirmationNeeded("give the digits of the new device with --digits")
    around.confirm(f"Does the new device show exactly {digits}?", yes=False)


def _resolved(named: str, pairs: Sequence[tuple[str, str]], what: str) -> str:
    wanted = named.strip().lower()
    if len(wanted) < PREFIX_MIN:
        raise NameUnknown(f"there is no {what} of this name or id")
    return resolve(named, pairs, what)


def _status_pairs(stands: SecurityStatus, *, now_ms: int) -> list[tuple[str, str]]:
    made = stands.recovery_set_at
    code = "none" if made is None else f"made {when(parse_iso_ms(made), now_ms=now_ms)}"
    if stands.factors is None:
        kinds = "not known without the hub"
    else:
        kinds = ", ".join(one_line(one.name, 80) for one in stands.factors) or "none"
    minutes = stands.auto_lock_minutes
    return [
        ("Mode", stands.mode),
        ("Fingerprint", stands.fingerprint),
        ("Recovery code", code),
        ("Second factors", kinds),
        ("Grants", "allowed" if stands.grants else "off"),
        ("Locks itself", f"after {counted(minutes, 'minute')}" if minutes else "never"),
        ("Keyring", "opens it" if stands.keyring else "not used"),
    ]


def _status_document(stands: SecurityStatus) -> dict[str, Any]:
    known = stands.factors
    plain = {
        name: getattr(stands, name)
        for name in (
            "mode", "revision", "fingerprint", "grants", "keyring",
        )
    }  # fmt: skip
    return {
        **plain,
        "recoverySetAt": stands.recovery_set_at,
        "recoveryWaiting": stands.recovery_waiting,
        "autoLockMinutes": stands.auto_lock_minutes,
        "factors": None if known is None else [msgspec.to_builtins(one) for one in known],
        "rotations": [
            {**_members(to_json(one)), "percent": one.percent} for one in stands.rotations
        ],
    }


def _members(document: object) -> dict[str, Any]:
    return document if isinstance(document, dict) else {}


def _rotation_words(one: RotationView, names: dict[str, str]) -> str:
    where = names.get(one.space_id, "your settings")
    if one.what == "identity":
        return f"New identity: {one.done} of {counted(one.all, 'space')} follow it"
    what = "your private records in " if one.what == "private" else ""
    kept = f"; {counted(one.kept, 'record')} stay under an older key" if one.kept else ""
    rest = 100 - one.percent
    state = f"{rest} % still under an older key" if rest else "all under it"
    return f"Version {one.version} of {what}“{where}”: {state}{kept}"


def _kit_answer(kit: RecoveryKit, *words: str, **more: str) -> Answer:
    groups = kit.code.split("-")
    lines = [
        "-".join(groups[at : at + GROUPS_PER_LINE]) for at in range(0, len(groups), GROUPS_PER_LINE)
    ]
    pairs = [
        ("Login", kit.login),
        ("Hub", kit.hub_url),
        ("Made", kit.made_at[:10]),
        ("Fingerprint", kit.fingerprint),
        ("Recovery code", "\n".join(lines)),
    ]
    blocks: list[Block] = [
        *words,
        Facts(pairs),
        Line(
            "Write it down, or print it from the page. Then: mana security recovery kept", "quiet"
        ),
    ]
    return Answer({**more, "kit": kit}, blocks)


def _grant_row(one: GrantView, agent: str, by: str, *, now_ms: int) -> tuple[str, ...]:
    return (
        one.grant_id[:8],
        "not verified" if one.state == "unverified" else one.state,
        left(one.expires_ms, now_ms=now_ms) if one.state in ("active", "stale") else "",
        counted(len(one.titles), "record"),
        agent,
        ", ".join(one.endpoints),
        by,
        one.mission_title,
    )


def _session_rows(found: Sequence[SessionInfo], *, now_ms: int) -> Rows:
    ids = shorts(one.session_id for one in found)
    rows = [
        (
            ids[one.session_id],
            when(parse_iso_ms(one.created_at), now_ms=now_ms),
            when(parse_iso_ms(one.seen_at), now_ms=now_ms),
            f"{one.name} (this one)" if one.current else one.name,
        )
        for one in found
    ]
    return Rows(("ID", "SINCE", "SEEN", "NAME"), rows, flexible=3)


def _device_rows(found: Sequence[DeviceView], *, now_ms: int) -> Rows:
    ids = shorts(one.id for one in found)
    rows = [
        (
            ids[one.id],
            when(parse_iso_ms(one.created_at), now_ms=now_ms),
            _device_state(one),
            f"{one.name} (this one)" if one.current else one.name,
        )
        for one in found
    ]
    return Rows(("ID", "SINCE", "STATE", "NAME"), rows, flexible=3)


def _device_state(one: DeviceView) -> str:
    if one.revoked_at is not None:
        return "revoked"
    return "counts" if one.certified else "not certified"


def _factor_rows(found: Sequence[FactorInfo], *, now_ms: int) -> Block:
    if not found:
        return Line("None: the password alone signs in.", "quiet")
    ids = shorts(one.factor_id for one in found)
    rows = [
        (
            ids[one.factor_id],
            "passkey" if one.kind == "passkey" else "authenticator",
            when(parse_iso_ms(one.created_at), now_ms=now_ms),
            one.name,
        )
        for one in found
    ]
    return Rows(("ID", "KIND", "ADDED", "NAME"), rows, flexible=3)


def _event_rows(found: Sequence[SecurityEvent], around: Surroundings) -> list[tuple[str, ...]]:
    return [
        (_ago(one.at, around), one.action, "done" if one.ok else "refused", one.detail)
        for one in found
    ]


def _ago(iso: str, around: Surroundings) -> str:
    return when(parse_iso_ms(iso), now_ms=around.now_ms()) if iso else ""
