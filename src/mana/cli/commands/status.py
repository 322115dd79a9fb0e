"""`mana status` and `mana sync`: how things stand, told truthfully."""

from __future__ import annotations

import asyncio
from typing import Final

from mana.cli.opening import PUSH_S_MAX, Surroundings, on_account
from mana.cli.output import Answer, Block, Facts, Line
from mana.cli.spaces import PERSONAL, called, state_words
from mana.cli.text import counted, one_line, when
from mana.device.desk import Device
from mana.device.views import ModelView, SpaceView, Status, SyncStatus
from mana.domain.errors import Unavailable

OFFLINE: Final = "OFFLINE"
"""No trouble of one space: the line on sync says it of all."""


class HubSlow(Unavailable):
    """The hub did not answer in time."""

    code = "HUB_SLOW"
    advice = "What you wrote is kept; try again later."


@on_account(in_space=False)
async def status(device: Device, around: Surroundings) -> Answer:
    """Show account, sync, runner, model and what waits for you."""
    now = await device.status()
    spaces = await device.spaces()
    stopped_ms = (await device.work_state()).stopped_ms
    now_ms = around.now_ms()
    name = f" ({one_line(now.display_name, 80)})" if now.display_name else ""
    pairs = [
        ("Account", one_line(now.login, 80) + name + (", demo" if now.demo else "")),
        ("Mode", now.mode),
        ("Sync", sync_words(now.sync, now_ms=now_ms)),
        ("Hub", one_line(now.hub_url)),
        ("Runner", _runner_words(now)),
        ("Model here", model_words(now.device_model)),
        ("Next run", _next_words(now, stopped=stopped_ms is not None, now_ms=now_ms)),
        ("Work", f"stopped by you {when(stopped_ms, now_ms=now_ms)}" if stopped_ms else ""),
        ("Spaces", _spaces_words(spaces)),
        ("To decide", _to_decide_words(now, spaces)),
    ]
    blocks: list[Block] = [Facts(pairs)]
    for one in spaces:
        if (code := now.sync.troubles.get(one.space_id, OFFLINE)) != OFFLINE:
            blocks.append(f"“{called(one)}” is not synced: {one_line(code)}")
    if now.sync.refused:
        hint = f"The hub refused {counted(now.sync.refused, 'change')}: mana refused list"
        blocks.append(Line(hint, "quiet"))
    return Answer({"status": now, "spaces": spaces}, blocks)


@on_account(fresh=False, in_space=False)
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


def _spaces_words(spaces: list[SpaceView]) -> str:
    """Return the shared spaces with what the person is in each; empty if there is none."""
    return ", ".join(
        f"{called(one)} ({state_words(one)})" for one in spaces if one.type != PERSONAL
    )


def _to_decide_words(now: Status, spaces: list[SpaceView]) -> str:
    """Return how much waits for a decision, and in which spaces."""
    if not now.to_decide:
        return "nothing"
    counts = [(one, now.to_decide_by_space.get(one.space_id, 0)) for one in spaces]
    shared = [
        f"{number} in “{called(one)}”" for one, number in counts if number and one.type != PERSONAL
    ]
    return ", ".join([counted(now.to_decide, "proposal"), *shared])


def _next_words(now: Status, *, stopped: bool, now_ms: int) -> str:
    if stopped:
        return "none, while all work is stopped"
    return when(now.next_run_ms, now_ms=now_ms) if now.next_run_ms else "none"


def _runner_words(now: Status) -> str:
    if now.runner is None:
        return "none that this device knows"
    models = ", ".join(one_line(one.model or one.endpoint) for one in now.runner.models)
    return f"fingerprint {now.runner.fingerprint}" + (f", models: {models}" if models else "")
