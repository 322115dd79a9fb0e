"""`mana status` and `mana sync`: how things stand, told truthfully."""

from __future__ import annotations

import asyncio

from mana.cli.opening import PUSH_S_MAX, Surroundings, on_account
from mana.cli.output import Answer, Block, Facts, Line
from mana.cli.text import counted, one_line, when
from mana.device.desk import Device
from mana.device.views import ModelView, Status, SyncStatus
from mana.domain.errors import Unavailable


class HubSlow(Unavailable):
    """The hub did not answer in time."""

    code = "HUB_SLOW"
    advice = "What you wrote is kept; try again later."


@on_account()
async def status(device: Device, around: Surroundings) -> Answer:
    """Show account, sync, runner, model and what waits for you."""
    now = await device.status()
    now_ms = around.now_ms()
    name = f" ({one_line(now.display_name, 80)})" if now.display_name else ""
    pairs = [
        ("Account", one_line(now.login, 80) + name + (", demo" if now.demo else "")),
        ("Mode", now.mode),
        ("Sync", sync_words(now.sync, now_ms=now_ms)),
        ("Runner", _runner_words(now)),
        ("Model here", model_words(now.device_model)),
        ("Next run", when(now.next_run_ms, now_ms=now_ms) if now.next_run_ms else "none"),
        ("To decide", f"{counted(now.to_decide, 'proposal')}" if now.to_decide else "nothing"),
    ]
    blocks: list[Block] = [Facts(pairs)]
    if now.sync.refused:
        hint = f"The hub refused {counted(now.sync.refused, 'change')}: mana refused list"
        blocks.append(Line(hint, "quiet"))
    return Answer({"status": now}, blocks)


@on_account(fresh=False)
async def sync(device: Device, around: Surroundings) -> Answer:
    """Send and fetch once, now."""
    try:
        async with asyncio.timeout(5 * PUSH_S_MAX):
            now = await device.sync_now()
    except TimeoutError as error:
        raise HubSlow("the hub did not answer in time") from error
    words = sync_words(now, now_ms=around.now_ms())
    return Answer({"sync": now}, [words[:1].upper() + words[1:] + "."])


def sync_words(now: SyncStatus, *, now_ms: int) -> str:
    """Return the truth about sync in words."""
    words = {
        "online": f"synced {when(now.synced_ms, now_ms=now_ms)}",
        "offline": f"offline, last synced {when(now.synced_ms, now_ms=now_ms)}",
        "refused": f"the hub refuses this device, last synced {when(now.synced_ms, now_ms=now_ms)}",
    }[now.link]
    if now.waiting:
        words += f", {counted(now.waiting, 'change')} waiting"
    if now.refused:
        words += f", {counted(now.refused, 'change')} refused"
    return words + (f" ({one_line(now.trouble)})" if now.trouble else "")


def model_words(model: ModelView) -> str:
    """Return which model it is, and where."""
    name = model.model or model.endpoint
    where = "on this machine" if model.local else f"at {model.endpoint}"
    # A description may open with the name; nobody wants to read it twice.
    about = model.description.removeprefix(name).lstrip(": ")
    return one_line(f"{name}, {where}: {about}").rstrip(": ")


def _runner_words(now: Status) -> str:
    if now.runner is None:
        return "none that this device knows"
    models = ", ".join(one_line(one.model or one.endpoint) for one in now.runner.models)
    return f"fingerprint {now.runner.fingerprint}" + (f", models: {models}" if models else "")
