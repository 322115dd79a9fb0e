"""How a command opens an account of this device, and what surrounds it.

A command is an async function of an unlocked account that returns an `Answer`; `on_account`
makes a Typer command of it with `--account` and `--json`. It works beside a running `mana up`
on the same folder, and without one, and without a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import inspect
import os
import sys
import time
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec, TypeVar

import typer

from mana.cli.naming import NameUnknown
from mana.cli.output import Answer, Block, Line, as_text, show
from mana.cli.spaces import PERSONAL, called, find_space, space_of
from mana.cli.text import counted, one_line
from mana.domain.errors import Conflict, Invalid, NotFound, Unauthenticated, Unavailable
from mana.protocol.errors import TwoFactorRequired
from mana.protocol.messages import FactorAnswer

if TYPE_CHECKING:
    from mana.device.app import DeviceHost
    from mana.device.desk import Device
    from mana.device.views import SyncStatus

_P = ParamSpec("_P")
_Subject = TypeVar("_Subject")
_Found = TypeVar("_Found")
_Command = Callable[Concatenate[_Subject, _P], Coroutine[Any, Any, Answer]]

DEMO: Final = "demo"
PULL_S_MAX: Final = 3.0
PUSH_S_MAX: Final = 6.0
PASSWORD_BYTES_MAX: Final = 4_096
GROUP_OPTIONS: Final = "mana.group_options"
"""Where a group that is a command too leaves its options for the command that follows it."""

AccountOption = Annotated[
    str | None,
    typer.Option(
        "--account",
        metavar="LOGIN",
        help="Which account of this device, if there are several. Default: MANA_ACCOUNT.",
    ),
]
SpaceOption = Annotated[
    str | None,
    typer.Option(
        "--space",
        metavar="SPACE",
        help="In which space: name, id or start of an id. Default: MANA_SPACE, or your own.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else.")
]


class NoAccount(NotFound):
    """No account was opened on this device yet."""

    code = "NO_ACCOUNT"
    advice = "Create one with `mana account create`, or sign in with `mana account sign-in`."


class AccountUnknown(NotFound):
    """No account of this device has this login."""

    code = "ACCOUNT_UNKNOWN"
    advice = "`mana account list` shows those of this device; `mana account sign-in` adds one."


class AccountAmbiguous(Conflict):
    """Several accounts are on this device, and none was named."""

    code = "ACCOUNT_AMBIGUOUS"
    advice = "Name one with --account or MANA_ACCOUNT."


class PasswordNeeded(Unauthenticated):
    """There is no terminal to ask at, and no variable that gives the password."""

    code = "PASSWORD_NEEDED"
    advice = "Set MANA_PASSWORD_FILE or MANA_PASSWORD, or run this in a terminal."


class SecretNeeded(Unauthenticated):
    """There is no terminal to ask for a secret at, and no variable that gives it."""

    code = "SECRET_NEEDED"
    advice = "Set the variable, or the one that names a file with it; or run this in a terminal."


class PasswordUnreadable(Invalid):
    """The file of a variable such as MANA_PASSWORD_FILE cannot be read, or holds no secret."""

    code = "PASSWORD_FILE_UNREADABLE"
    advice = "Name a text file that you can read and that holds the password alone."


class ConfirmationNeeded(Invalid):
    """This needs a yes, and there is no terminal to ask at."""

    code = "CONFIRMATION_NEEDED"
    advice = "Add --yes if you mean it."


def _build_host(environ: Mapping[str, str]) -> DeviceHost:
    # The device with its keys and its HTTP client takes a moment to import: not for `--help`.
    from mana.cli.places import Places
    from mana.device.app import build
    from mana.device.settings import DeviceSettings

    places = Places.from_env(environ)
    settings = DeviceSettings.from_env({**environ, "MANA_HUB_URL": places.hub_url(environ)})
    return build(replace(settings, home=places.home), background=False)


def _asked_hidden(question: str) -> str | None:
    if not sys.stdin.isatty():
        return None
    return getpass.getpass(question, stream=sys.stderr)


def _asked_yes(question: str) -> bool | None:
    if not sys.stdin.isatty():
        return None
    return typer.confirm(question, default=False, err=True)


@dataclass(frozen=True)
class Surroundings:
    """Everything outside a command that a test may want to be another.

    `ask_hidden` and `ask_yes` return None where there is nobody to ask. `as_json`: a program
    reads what is printed, so nothing is asked and nothing is told beside the document.
    """

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    build_host: Callable[[Mapping[str, str]], DeviceHost] = _build_host
    ask_hidden: Callable[[str], str | None] = _asked_hidden
    ask_yes: Callable[[str], bool | None] = _asked_yes
    as_json: bool = False

    def password(self, login: str, *, new: bool = False) -> str:
        """Return the password of MANA_PASSWORD_FILE, MANA_PASSWORD or the terminal.

        `new`: at a terminal it is asked for twice. Raises PasswordNeeded, PasswordUnreadable.
        """
        named = self.environ.get("MANA_PASSWORD_FILE", "").strip()
        if named:
            return _password_in(Path(named).expanduser(), "MANA_PASSWORD_FILE")
        given = self.environ.get("MANA_PASSWORD", "")
        if given:
            return given
        typed = self.ask_hidden(f"Password of {one_line(login, 80)}: ")
        if not typed:
            raise PasswordNeeded("the password is needed")
        if new and self.ask_hidden("The same again: ") != typed:
            raise Invalid("the two passwords are not the same")
        return typed

    def secret(self, variable: str, question: str, *, twice: bool = False) -> str:
        """Return the secret of the file that `<variable>_FILE` names, of the variable, or typed.

        `twice`: at a terminal it is asked for twice. Raises SecretNeeded, PasswordUnreadable.
        """
        named = self.environ.get(f"{variable}_FILE", "").strip()
        if named:
            return _password_in(Path(named).expanduser(), f"{variable}_FILE")
        given = self.environ.get(variable, "")
        if given:
            return given
        typed = self.ask_hidden(question)
        if not typed:
            raise SecretNeeded(f"this needs a secret: {variable}")
        if twice and self.ask_hidden("The same again: ") != typed:
            raise Invalid("the two are not the same")
        return typed

    async def with_factor(self, work: Callable[[FactorAnswer | None], Awaitable[_Found]]) -> _Found:
        """Do what may ask for a second factor, and do it again with its code if it does.

        Raises TwoFactorRequired where nobody can be asked, or where only a passkey would do.
        """
        try:
            return await work(None)
        except TwoFactorRequired as error:
            kinds = error.detail.get("kinds")
            if not isinstance(kinds, list) or "totp" not in kinds:
                raise
            try:
                code = self.secret("MANA_FACTOR_CODE", "Code of your authenticator: ")
            except SecretNeeded:
                raise error from None
        return await work(FactorAnswer(totp=code))

    def confirm(self, question: str, *, yes: bool) -> None:
        """Return if the person agrees; end the command quietly if not.

        Raises ConfirmationNeeded where nobody can be asked.
        """
        if yes:
            return
        agreed = None if self.as_json else self.ask_yes(question)
        if agreed is None:
            raise ConfirmationNeeded("this needs a yes")
        if not agreed:
            raise typer.Exit(1)

    def tell(self, blocks: Sequence[Block]) -> None:
        """Tell a person something on standard error, which is not the answer itself."""
        if not self.as_json:
            typer.echo(as_text(blocks), err=True)


def surroundings(ctx: typer.Context) -> Surroundings:
    """Return the surroundings of a command: those of the test, else the real ones."""
    found = ctx.find_object(Surroundings)
    as_json = ctx.params.get("as_json") is True
    return replace(found if found is not None else Surroundings(), as_json=as_json)


@asynccontextmanager
async def opened_host(around: Surroundings) -> AsyncIterator[DeviceHost]:
    """Open this device's data and close it at the end."""
    host = around.build_host(around.environ)
    try:
        yield host
    finally:
        await host.close()


async def opened_device(host: DeviceHost, around: Surroundings, login: str | None) -> Device:
    """Unlock the account that is meant; raise NoAccount, AccountUnknown, AccountAmbiguous.

    The demo is made when it is named for the first time, as its link on the page does.
    """
    try:
        account_id, found, demo = chosen_account(host, around, login)
    except AccountUnknown:
        if _named(around, login) != DEMO:
            raise
        return await host.start_demo()
    if demo:
        return await host.start_demo()
    known = next(one for one in host.accounts() if one.account_id == account_id)
    if known.unlocked:
        return host.device(account_id)
    return await signed_in(host, around, found)


async def signed_in(host: DeviceHost, around: Surroundings, login: str) -> Device:
    """Open an account by its password, and by its second factor if the hub asks for one."""
    given = around.password(login)

    async def enter(answer: FactorAnswer | None) -> Device:
        if answer is None:
            return await host.sign_in(login, given)
        return await host.sign_in(login, given, factor=answer)

    return await around.with_factor(enter)


def chosen_account(
    host: DeviceHost, around: Surroundings, login: str | None
) -> tuple[str, str, bool]:
    """Return id, login and whether it is the demo, of the account that is meant."""
    known = host.accounts()
    wanted = _named(around, login)
    if wanted:
        fitting = [
            one
            for one in known
            if wanted in (one.login.casefold(), one.account_id, DEMO if one.demo else "")
        ]
        if not fitting:
            raise AccountUnknown("no account of this device has this login")
    else:
        fitting = [one for one in known if not one.demo]
        if not fitting:
            raise NoAccount(
                "only the demo is on this device, which --account demo names"
                if known
                else "no account is on this device"
            )
    if len(fitting) > 1:
        logins = ", ".join(one_line(one.login, 80) for one in fitting)
        raise AccountAmbiguous(f"several accounts are on this device: {logins}")
    one = fitting[0]
    return one.account_id, one.login, one.demo


def _named(around: Surroundings, login: str | None) -> str:
    """Return how the account is named, without regard to case; empty if it is not."""
    return (login or around.environ.get("MANA_ACCOUNT", "")).strip().casefold()


async def synced(device: Device, *, seconds_max: float) -> SyncStatus | None:
    """Push and pull once; None if the hub cannot be reached in time. Nothing is lost then."""
    try:
        async with asyncio.timeout(seconds_max):
            return await device.sync_now()
    except (Unavailable, TimeoutError):
        return None


def on_account(
    *, fresh: bool = True, is_default: bool = False, in_space: bool = True
) -> Callable[[_Command[Device, _P]], Callable[..., None]]:
    """Make a command of an async function of an unlocked account.

    `fresh`: what others wrote is pulled first, if the hub can be reached. After a write it is
    pushed; without the hub it is kept, which is said and is no error. `is_default`: it is what a
    group does where no command of it is named. `in_space`: it works in the space that `--space`
    or MANA_SPACE names, and takes that option; else it is of the whole account.
    """

    def decorate(command: _Command[Device, _P]) -> Callable[..., None]:
        async def run(ctx: typer.Context, asked: _Asked, given: Mapping[str, Any]) -> Answer:
            around = surroundings(ctx)
            async with opened_host(around) as host:
                device = await opened_device(host, around, asked.account)
                if fresh:
                    await synced(device, seconds_max=PULL_S_MAX)
                if in_space:
                    device = await _placed(device, around, asked.space, fresh=fresh)
                answer = await _called(command, device, around, given)
                if in_space:
                    answer = await _told_where(device, answer)
                return await _sent(device, answer) if answer.wrote else answer

        return _typer_command(command, run, is_default=is_default, in_space=in_space)

    return decorate


def on_host(command: _Command[DeviceHost, _P]) -> Callable[..., None]:
    """Make a command of an async function of this device's host, with nothing unlocked."""

    async def run(ctx: typer.Context, asked: _Asked, given: Mapping[str, Any]) -> Answer:
        around = surroundings(ctx)
        async with opened_host(around) as host:
            extra = dict(given)
            if "account" in inspect.signature(command).parameters:
                extra["account"] = asked.account
            return await _called(command, host, around, extra)

    return _typer_command(command, run)


async def _placed(
    device: Device, around: Surroundings, space: str | None, *, fresh: bool
) -> Device:
    """Return the account in the space that is meant; raise NameUnknown or NameAmbiguous."""
    named = (space or around.environ.get("MANA_SPACE", "")).strip()
    if not named:
        return device
    try:
        found = await find_space(device, named)
    except NameUnknown:
        if fresh:
            raise
        # It may have been joined since this device last heard of the hub.
        await synced(device, seconds_max=PULL_S_MAX)
        found = await find_space(device, named)
    return device.in_space(found.space_id)


async def _told_where(device: Device, answer: Answer) -> Answer:
    """Say in which space something was written, where others read it too."""
    blocks = list(answer.blocks)
    if answer.wrote:
        here = await space_of(device)
        if here.type != PERSONAL:
            blocks.append(Line(f"In “{called(here)}”.", "quiet"))
    return Answer({**answer.document, "spaceId": device.space_id}, blocks, wrote=answer.wrote)


async def _called(
    command: Callable[..., Awaitable[Answer]],
    subject: object,
    around: Surroundings,
    given: Mapping[str, Any],
) -> Answer:
    extra: dict[str, Any] = (
        {"around": around} if "around" in inspect.signature(command).parameters else {}
    )
    return await command(subject, **given, **extra)


async def _sent(device: Device, answer: Answer) -> Answer:
    """Push what was written, and say what became of it."""
    status = await synced(device, seconds_max=PUSH_S_MAX)
    if status is None:
        waiting = (await device.status()).sync.waiting
        words = [Line("Kept here; it will sync when the hub can be reached.", "quiet")]
        told = {"state": "kept", "waiting": waiting, "refused": 0}
    else:
        words = []
        if status.refused:
            words.append(
                Line(
                    f"The hub refused {counted(status.refused, 'change')}; see `mana refused list`."
                )
            )
        told = {
            "state": "synced" if not status.waiting else "kept",
            "waiting": status.waiting,
            "refused": status.refused,
        }
    return Answer({**answer.document, "sync": told}, [*answer.blocks, *words])


@dataclass(frozen=True, slots=True)
class _Asked:
    """Whose and where a command is to work, as the person named it."""

    account: str | None
    space: str | None

    def after(self, group: _Asked) -> _Asked:
        """Return this with what was named before the command, as in `mana inbox --space X list`."""
        return _Asked(self.account or group.account, self.space or group.space)


_Run = Callable[[typer.Context, _Asked, Mapping[str, Any]], Coroutine[Any, Any, Answer]]


def _typer_command(
    command: Callable[..., object], run: _Run, *, is_default: bool = False, in_space: bool = False
) -> Callable[..., None]:
    """Return what Typer sees: the function's own parameters, then those that commands share."""
    own = inspect.signature(command)
    subject, *names = own.parameters
    hints = _hints(command, names)

    def entry(
        ctx: typer.Context,
        account: str | None,
        as_json: bool,
        space_named: str | None = None,
        **given: Any,
    ) -> None:
        asked = _Asked(account, space_named).after(ctx.meta.get(GROUP_OPTIONS, _Asked(None, None)))
        if is_default and ctx.invoked_subcommand:
            ctx.meta[GROUP_OPTIONS] = asked
        else:
            show(asyncio.run(run(ctx, asked, given)), as_json=as_json)

    hidden = {subject, "around", "account"}
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        *(
            own.parameters[name].replace(kind=keyword, annotation=hints[name])
            for name in names
            if name not in hidden
        ),
        *(
            [inspect.Parameter("space_named", keyword, default=None, annotation=SpaceOption)]
            if in_space
            else []
        ),
        inspect.Parameter("account", keyword, default=None, annotation=AccountOption),
        inspect.Parameter("as_json", keyword, default=False, annotation=JsonOption),
    ]
    entry.__name__ = command.__name__
    entry.__doc__ = command.__doc__
    entry.__annotations__ = {one.name: one.annotation for one in parameters}
    entry.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return entry


def _hints(command: Callable[..., object], names: list[str]) -> dict[str, Any]:
    """Return the evaluated annotations of the command's own parameters.

    The subject's is left alone: its class is not imported until a command runs.
    """

    def shell() -> None: ...

    shell.__annotations__ = {
        name: command.__annotations__[name] for name in names if name != "around"
    }
    return typing.get_type_hints(
        shell, globalns=inspect.unwrap(command).__globals__, include_extras=True
    )


def _password_in(path: Path, variable: str) -> str:
    try:
        with path.open("rb") as opened:
            raw = opened.read(PASSWORD_BYTES_MAX + 1)
        text = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise PasswordUnreadable(f"the file of {variable} cannot be read") from error
    if not text or len(raw) > PASSWORD_BYTES_MAX:
        raise PasswordUnreadable(f"the file of {variable} holds no secret")
    return text


def read_standard_input() -> str:
    """Return standard input as text; raise Invalid if it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("standard input is not UTF-8 text") from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdin.flush()
