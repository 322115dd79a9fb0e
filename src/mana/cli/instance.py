"""A whole Mana on one machine: the database, hub, runner and device, as `mana up` runs them.

Also what `mana demo` and the tests start, in a folder of its own and on ports that the system
chooses.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from mana.cli.places import PORTS, Places
from mana.cli.supervisor import (
    RESTART_WINDOW_S,
    RESTARTS_MAX,
    Part,
    PartFailed,
    Supervisor,
)
from mana.domain.errors import ManaError
from mana.hub.postgres import Instance, Outcome, find_binaries
from mana.hub.schema.store import addresses, bring_up_to_date

DATABASE: Final = "mana"
DATABASE_LOOK_S: Final = 1.0
"""How often it is looked whether PostgreSQL still runs."""


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
    database: DatabaseGuard | None = None
    supervisor = Supervisor(say=say)
    try:
        began = time.monotonic()
        if not environ.get("MANA_DATABASE_URL", "").strip():
            embedded = Instance(find_binaries(environ), places.home / "postgres")
            outcome = embedded.ensure()
            word = "started" if outcome is Outcome.STARTED else "already running"
            say(f"PostgreSQL {word} ({_seconds(began)})")
            database = DatabaseGuard(embedded, supervisor, say)
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
            base["MANA_HUB_URL"] = places.hub_url(environ)
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
        port = urlsplit(str(hub["url"])).port or places.ports["hub"]
        found = {**environ, PORTS["hub"][0]: str(port)}
        hub_url = replace(places, ports={**places.ports, "hub": port}).hub_url(found)
        if with_device and not known:
            base["MANA_HUB_URL"] = hub_url
            facts["device"] = await _start(supervisor, places, "device", base)
        device = facts.get("device", {})
        if device:
            say(f"device on {device['url']} ({_seconds(began)} in all)")
        with places.telling_hub(hub_url):
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
        if database is not None:
            await database.close()
        if embedded is not None:
            embedded.stop()


class DatabaseGuard:
    """Starts the embedded PostgreSQL again when its process has ended by itself.

    Its socket stays where it is, so the parts find it again at the address they know.
    """

    def __init__(
        self, embedded: Instance, supervisor: Supervisor, say: Callable[[str], None]
    ) -> None:
        self._embedded, self._supervisor, self._say = embedded, supervisor, say
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Look no more; a start that is under way is waited for, so that none outlives this."""
        self._closing.set()
        await self._task

    async def _watch(self) -> None:
        restarts: list[float] = []
        while not await self._is_closing_within(DATABASE_LOOK_S):
            if self._embedded.pid is not None:
                continue
            now = time.monotonic()
            restarts = [at for at in restarts if at > now - RESTART_WINDOW_S]
            try:
                if len(restarts) >= RESTARTS_MAX:
                    raise PartFailed(f"PostgreSQL ended {len(restarts)} times in a minute")
                restarts.append(now)
                self._say("PostgreSQL ended; starting it again")
                await asyncio.to_thread(self._embedded.ensure)
            except (ManaError, OSError) as error:
                failure = (
                    error
                    if isinstance(error, ManaError)
                    else PartFailed("PostgreSQL could not be started again")
                )
                self._supervisor.fail(failure)
                return

    async def _is_closing_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        return self._closing.is_set()


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
