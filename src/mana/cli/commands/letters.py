"""`mana letters`: whether the hub writes a letter when something waits. No letter holds content."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from mana.cli.opening import Surroundings, on_account
from mana.cli.output import Answer, Block, Facts, Line
from mana.cli.text import one_line
from mana.device.desk import Device
from mana.protocol.messages import NotifyState

letters = typer.Typer(
    help="Letters: a word by mail when something waits for you.",
    no_args_is_help=False,
    add_completion=False,
)


@letters.callback(invoke_without_command=True)
@on_account(fresh=False, is_default=True, in_space=False)
async def standing(device: Device) -> Answer:
    """Letters: a word by mail when something waits for you."""
    return _answer(await device.notifications())


@letters.command()
@on_account(fresh=False, in_space=False)
async def show(device: Device) -> Answer:
    """Show whether letters are sent, and where. Needs the hub."""
    return _answer(await device.notifications())


@letters.command()
@on_account(fresh=False, in_space=False)
async def address(
    device: Device,
    mailbox: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where they are sent.")],
) -> Answer:
    """Give an address; a code is sent to it."""
    now = await device.set_notifications(address=mailbox)
    words = f"A code is on its way to {one_line(now.address)}. Then: mana letters confirm"
    return _answer(now, words)


@letters.command()
@on_account(fresh=False, in_space=False)
async def confirm(device: Device, around: Surroundings) -> Answer:
    """Confirm the address by the code, asked for or of MANA_LETTERS_CODE; letters are on then."""
    code = around.secret("MANA_LETTERS_CODE", "The code of the letter: ")
    return _answer(await device.set_notifications(code=code))


@letters.command("on")
@on_account(fresh=False, in_space=False)
async def switch_on(device: Device) -> Answer:
    """Send letters to the confirmed address again."""
    return _answer(await device.set_notifications(enabled=True))


@letters.command("off")
@on_account(fresh=False, in_space=False)
async def switch_off(
    device: Device,
    forget: Annotated[
        bool, typer.Option("--forget", help="Let the hub forget the address, too.")
    ] = False,
) -> Answer:
    """Send no more letters."""
    if forget:
        return _answer(await device.set_notifications(address=""))
    return _answer(await device.set_notifications(enabled=False))


def _answer(now: NotifyState, *words: str) -> Answer:
    state = "on" if now.enabled else "off"
    known = "" if now.confirmed else " (not confirmed)"
    pairs = [("Letters", state), ("Address", f"{one_line(now.address)}{known}")]
    blocks: list[Block] = [*words, Facts(pairs if now.address else pairs[:1])]
    if not now.available:
        blocks.append(Line("Whoever runs this hub has not set up mail.", "quiet"))
    elif not now.address:
        blocks.append(Line("Give an address: mana letters address ADDRESS", "quiet"))
    return Answer({"letters": msgspec.structs.asdict(now)}, blocks)
