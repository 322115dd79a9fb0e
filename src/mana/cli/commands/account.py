"""`mana account`: accounts of this device, and invitations to its hub."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

import typer

from mana.cli.opening import (
    PUSH_S_MAX,
    Surroundings,
    chosen_account,
    on_account,
    on_host,
    signed_in,
    synced,
)
from mana.cli.output import Answer, Block, Facts, Line, Rows
from mana.cli.text import one_line
from mana.device.desk import Device
from mana.domain.cadences import zone as zone_of
from mana.domain.errors import Invalid
from mana.protocol.errors import LinkEnded

if TYPE_CHECKING:
    from mana.device.app import DeviceHost

account = typer.Typer(
    help="Accounts: create, sign in, invite, remove.", no_args_is_help=True, add_completion=False
)

LINK_S_MAX: Final = 600.0
LOOK_S: Final = 1.0
LoginArgument = Annotated[str, typer.Argument(metavar="LOGIN", help="The login.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@account.command()
@on_host
async def create(
    host: DeviceHost,
    around: Surroundings,
    login: LoginArgument,
    name: Annotated[
        str | None, typer.Option("--name", help="How you are addressed. Default: the login.")
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option("--zone", help="Your time zone. Default: that of this machine."),
    ] = None,
    invite: Annotated[
        str | None, typer.Option("--invite", help="The invitation, where the hub asks for one.")
    ] = None,
    zero_knowledge: Annotated[
        bool,
        typer.Option(
            "--zero-knowledge", help="So that whoever runs the hub cannot read it either."
        ),
    ] = False,
) -> Answer:
    """Create an account on the hub, with its keys made on this device."""
    from mana.device.app import local_zone

    shown_zone = zone_of(zone or local_zone()).key
    password = around.password(login, new=True)
    device = await host.sign_up(
        login,
        password,
        display_name=name or login,
        mode="zero-knowledge" if zero_knowledge else "standard",
        invite=invite,
        zone=shown_zone,
    )
    await synced(device, seconds_max=PUSH_S_MAX)
    now = await device.status()
    step = "mana security recovery show" if zero_knowledge else "mana note add TITLE"
    return Answer(
        {"account": {"accountId": device.account_id, "login": device.login, "mode": now.mode}},
        [
            f"Created account {one_line(device.login, 80)}, in {now.mode} mode.",
            Line(f"Its keys are on this device. Next: {step}", "quiet"),
        ],
    )


@account.command("sign-in")
@on_host
async def sign_in(host: DeviceHost, around: Surroundings, login: LoginArgument) -> Answer:
    """Bring an account of the hub to this device."""
    return _entered(await signed_in(host, around, login))


@account.command()
@on_host
async def recover(host: DeviceHost, around: Surroundings, login: LoginArgument) -> Answer:
    """Open an account by its recovery code, and give it a new password."""
    code = around.secret("MANA_RECOVERY_CODE", "Recovery code: ")
    new = around.secret("MANA_NEW_PASSWORD", "New password: ", twice=True)
    return _entered(await host.recover(login, code, new))


@account.command()
@on_host
async def reset(host: DeviceHost, around: Surroundings, login: LoginArgument) -> Answer:
    """Open an account by a token of whoever runs the hub, and give it a new password."""
    token = around.secret("MANA_RESET_TOKEN", "Token: ")
    new = around.secret("MANA_NEW_PASSWORD", "New password: ", twice=True)
    return _entered(await host.reset(login, token, new))


@account.command()
@on_host
async def link(
    host: DeviceHost,
    around: Surroundings,
    login: LoginArgument,
    name: Annotated[
        str | None, typer.Option("--name", help="What this device is called. Default: its system.")
    ] = None,
) -> Answer:
    """Bring an account to this device by another one of yours, without its password."""
    pending = await host.begin_link(login, name or host.settings.name)
    try:
        around.tell(["Look at your other device: mana security link, or the line on its page."])
        shown = ""
        async with asyncio.timeout(LINK_S_MAX):
            while (view := await pending.poll()).state != "approved":
                if view.state == "refused":
                    raise LinkEnded("it was refused on the other device")
                if view.digits and not shown:
                    shown = view.digits
                    around.tell([f"Digits: {shown}"])
                await asyncio.sleep(LOOK_S)
        around.confirm(f"Did the other device show exactly {view.digits}?", yes=False)
        return _entered(await pending.finish())
    except TimeoutError:
        raise LinkEnded("the other device did not answer in time") from None
    finally:
        await pending.close()


def _entered(device: Device) -> Answer:
    return Answer(
        {"account": {"accountId": device.account_id, "login": device.login}},
        [f"Signed in as {one_line(device.login, 80)}."],
    )


@account.command("list")
@on_host
async def list_accounts(host: DeviceHost) -> Answer:
    """List the accounts of this device."""
    known = host.accounts()
    rows = [(one.account_id[:8], "demo" if one.demo else "own", one.login) for one in known]
    blocks: list[Block] = [Rows(("ID", "KIND", "LOGIN"), rows, flexible=2)]
    if not known:
        blocks = [
            Line("No accounts on this device. Create one: mana account create LOGIN", "quiet")
        ]
    document = {
        "accounts": [
            {
                "accountId": one.account_id,
                "login": one.login,
                "demo": one.demo,
            }
            for one in known
        ]
    }
    return Answer(document, blocks)


@account.command("rename")
@on_account(in_space=False)
async def rename(
    device: Device, name: Annotated[str, typer.Argument(help="How you are addressed.")]
) -> Answer:
    """Set how you are addressed."""
    shown = name.strip()
    if not shown:
        raise Invalid("a name needs a letter at least")
    await device.set_display_name(shown)
    return Answer({"displayName": shown}, [f"You are {one_line(shown, 80)} now."], wrote=True)


@account.command()
@on_account(fresh=False, in_space=False)
async def invite(device: Device) -> Answer:
    """Make an invitation to this hub, for one account; administrators only."""
    made = await device.create_invite()
    blocks: list[Block] = [
        Facts([("Invitation", made), ("To use it", f"mana account create LOGIN --invite {made}")])
    ]
    return Answer({"invite": made}, blocks)


@account.command("sign-out")
@on_host
async def sign_out(
    host: DeviceHost,
    around: Surroundings,
    account: str | None,
    yes: YesOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if changes would be lost that the hub lacks.")
    ] = False,
) -> Answer:
    """Remove an account's data from this device; on the hub it stays."""
    account_id, login, _ = chosen_account(host, around, account)
    shown = one_line(login, 80)
    around.confirm(f"Remove {shown} from this device?", yes=yes)
    if not force:
        # What waits is pushed first, which needs the keys.
        await signed_in(host, around, login)
    await host.sign_out(account_id, force=force)
    return Answer(
        {"signedOut": {"accountId": account_id, "login": login}},
        [f"Signed out {shown}; its data is removed from this device."],
    )


@account.command()
@on_host
async def remove(
    host: DeviceHost, around: Surroundings, account: str | None, yes: YesOption = False
) -> Answer:
    """Delete an account with all its data, on the hub and here, for ever."""
    account_id, login, demo = chosen_account(host, around, account)
    shown = one_line(login, 80)
    around.confirm(f"Delete {shown} and all its data for ever?", yes=yes)
    if demo:
        await host.remove_demo()
    else:
        await host.remove_account(account_id, around.password(login))
    return Answer({"removed": {"accountId": account_id, "login": login}}, [f"Deleted {shown}."])
