"""A whole Mana on one machine: the database, hub, runner and device, as `mana up` runs them.

Also what `mana demo` and the tests start, in a folder of its own and on ports that the system
chooses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from mana.cli.places import PORTS, Places
from mana.cli.supervisor import Part, Supervisor
from mana.hub.postgres import Instance, Outcome, find_binaries
from mana.hub.schema.store import addresses, bring_up_to_date

DATABASE: Final = "mana"


@dataclass(frozen=True, slots=True)
class Running:
    """Addresses and facts of a started Mana."""

    supervisor: Supervisor
    hub_url: str
    runner_url: str
    device_url: str
    model: str
    demo_url: str | None
    database_url: str


@asynccontextmanager
async def started(
    places: Places,
    environ: Mapping[str, str],
    *,
    say: Callable[[str], None],
    with_device: bool = True,
) -> AsyncIterator[Running]:
    """Start everything on the folder of `places`, and stop all of it at the end.

    An external database (MANA_DATABASE_URL) is used and left running; an embedded one is
    started here and stopped here.
    """
    embedded: Instance | None = None
    supervisor = Supervisor(say=say)
    try:
        began = time.monotonic()
        if not environ.get("MANA_DATABASE_URL", "").strip():
            embedded = Instance(find_binaries(environ), places.home / "postgres")
            outcome = embedded.ensure()
            word = "started" if outcome is Outcome.STARTED else "already running"
            say(f"PostgreSQL {word} ({_seconds(began)})")
        urls = addresses(environ, embedded=embedded.url(DATABASE) if embedded else None)
        number, applied = await bring_up_to_date(urls.owner)
        say(f"database schema {number}" + (f", {applied} steps applied" if applied else ""))
        base = {
            **environ,
            "MANA_HOME": str(places.home),
            "MANA_APP_DATABASE_URL": urls.app,
            "MANA_RUNNER_DATABASE_URL": urls.runner,
            **{PORTS[part][0]: str(port) for part, port in places.ports.items()},
        }
        # Nobody but migrations needs the owner's address, so no part is told it.
        base.pop("MANA_DATABASE_URL", None)
        # On a port that is known the device need not wait for the hub: it works offline too.
        parts = ["runner", "hub"]
        known = bool(places.ports["hub"])
        if with_device and known:
            base["MANA_HUB_URL"] = f"http://127.0.0.1:{places.ports['hub']}"
            parts.append("device")
        facts = dict(
            zip(
                parts,
                await asyncio.gather(*(_start(supervisor, places, part, base) for part in parts)),
                strict=True,
            )
        )
        hub, runner = facts["hub"], facts["runner"]
        say(f"hub on {hub['url']}")
        say(f"runner on {runner['url']}, model: {runner['model']}")
        if with_device and not known:
            base["MANA_HUB_URL"] = str(hub["url"])
            facts["device"] = await _start(supervisor, places, "device", base)
        device = facts.get("device", {})
        if device:
            say(f"device on {device['url']} ({_seconds(began)} in all)")
        yield Running(
            supervisor=supervisor,
            hub_url=str(hub["url"]),
            runner_url=str(runner["url"]),
            device_url=str(device.get("url", "")),
            model=str(runner["model"]),
            demo_url=str(device["demo_url"]) if device.get("demo_url") else None,
            database_url=urls.owner,
        )
    finally:
        await supervisor.close()
        if embedded is not None:
            embedded.stop()


async def _start(
    supervisor: Supervisor, places: Places, name: str, environ: Mapping[str, str]
) -> dict[str, object]:
    """Start a part; one that is started again later comes back on the port it has now."""
    kept = dict(environ)
    part = Part(name, (name,), kept, places.home / "logs" / f"{name}.log")
    facts = await supervisor.start(part)
    port = urlsplit(str(facts["url"])).port
    if port is not None:
        kept[PORTS[name][0]] = str(port)
    return facts


def _seconds(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"
