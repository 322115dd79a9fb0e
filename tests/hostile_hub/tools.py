"""What the cases are made of: people in zero-knowledge mode, and a hub that lies to one of them.

The hub, its database and the devices are the real ones. An operator who owns all of it can change
two things: what an answer says (`Mouth`), and what a row holds (`owner`).
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import httpx
import msgspec

from mana.device.desk import Device
from mana.device.records import RecordBook
from mana.device.vault import OpenedVault, derive
from mana.device.vaults import Wish, head_of
from mana.domain.errors import ManaError
from mana.protocol.messages import Vault
from mana.testing.accounts import CHEAP, PASSWORD
from mana.testing.postgres import Cluster, Database, connected
from tests.device.household import (
    Household,
    Place,
    household,
    let_in,
    operations,
    planned_mission,
    shared_space,
)
from tests.device.rig import Wire

Body: TypeAlias = Any
"""The JSON of an answer."""
Change: TypeAlias = Callable[[Body], Body]
"""What the hub says instead of an answer: the body that it returns, or the given one, changed."""

VAULT: Final = "/api/v1/me/vault"
VAULT_LOG: Final = "/api/v1/me/vault/log"
KDF: Final = "/api/v1/auth/kdf"
LOGIN: Final = "/api/v1/auth/login"
RESET: Final = "/api/v1/auth/reset"
FACTORS: Final = "/api/v1/me/factors"
SPACES: Final = "/api/v1/spaces"
RUNNER: Final = "/api/v1/runner"
GRANTS: Final = "/api/v1/me/ai-mission-grants"
AUDIT: Final = "/api/v1/me/ai-audit"
CHANGES: Final = "/api/v1/spaces/[0-9a-f]{64}/changes"
STATE: Final = "/api/v1/spaces/[0-9a-f]{64}/records"
DEVICES: Final = "/api/v1/spaces/[0-9a-f]{64}/devices"


@dataclass
class Lie:
    """A call, and what its answer becomes."""

    method: str
    path: re.Pattern[str]
    change: Change

    def is_about(self, method: str, path: str) -> bool:
        return method == self.method and self.path.fullmatch(path) is not None


@dataclass
class Mouth:
    """What the hub says to one device: the truth, except where a lie is set."""

    wire: Wire
    lies: list[Lie] = field(default_factory=list)
    swaps: dict[str, Change] = field(default_factory=dict)
    inventions: dict[str, Body] = field(default_factory=dict)
    told: int = 0
    """How many answers were changed."""
    answers: list[tuple[str, Body]] = field(default_factory=list)
    """By path, what the hub answered honestly."""
    asked: list[tuple[str, Body]] = field(default_factory=list)
    """By path, what the device sent."""

    def __post_init__(self) -> None:
        self.wire.on_request = self._answer

    def lie(self, path: str, change: Change, *, method: str = "GET") -> None:
        """Change the answers to a call from now on; `path` is an expression for all of it."""
        self.lies.append(Lie(method, re.compile(path), change))

    def pass_on(self, path: str, change: Change) -> None:
        """Change what the device sends to a call, on its way to the honest part of the hub."""
        self.swaps[path] = change

    def instead(self, path: str, body: Body) -> None:
        """Answer a call without asking the honest part of the hub."""
        self.inventions[path] = body

    def honest(self) -> None:
        """Say the truth again."""
        self.lies.clear()
        self.swaps.clear()
        self.inventions.clear()
        self.told = 0

    def last(self, path: str) -> Body:
        """Return the newest honest answer to a call."""
        pattern = re.compile(path)
        found = [body for place, body in self.answers if pattern.fullmatch(place)]
        return copy.deepcopy(found[-1])

    async def _answer(
        self, request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response:
        if request.url.path == "/api/v1/live":
            raise httpx.ConnectError("no live stream in this test", request=request)
        path, sent = request.url.path, await request.aread()
        if sent:
            self.asked.append((path, msgspec.json.decode(sent)))
        if path in self.inventions:
            return httpx.Response(200, json=self.inventions[path], request=request)
        if sent and path in self.swaps:
            swapped = self.swaps[path](msgspec.json.decode(sent))
            request = httpx.Request(
                request.method,
                request.url,
                headers={
                    name: one
                    for name, one in request.headers.items()
                    if name.lower() not in ("content-length", "transfer-encoding")
                },
                content=msgspec.json.encode(swapped),
            )
        answer = await under.handle_async_request(request)
        raw = await answer.aread()
        if not raw or answer.status_code >= 300:
            return httpx.Response(answer.status_code, content=raw, request=request)
        body = msgspec.json.decode(raw)
        self.answers.append((path, copy.deepcopy(body)))
        for one in self.lies:
            if one.is_about(request.method, path):
                before = copy.deepcopy(body)
                body = one.change(body)
                self.told += body != before
        return httpx.Response(
            answer.status_code, content=msgspec.json.encode(body), request=request
        )


def opened(device: Device) -> OpenedVault:
    """Return the open vault behind a desk."""
    return book_of(device).inner().vault


def book_of(device: Device) -> RecordBook:
    """Return the record book behind a desk."""
    return operations(device).opened.book


# What a person sees


async def picture(device: Device) -> dict[str, Any]:
    """Return all that a device shows of its account, and what it holds of its vault."""
    book = book_of(device)
    inner = book.inner()
    shown: dict[str, Any] = {
        "vault": head_of(inner.keeper.standing),
        "mode": inner.vault.mode,
        "allows": inner.keeper.standing.grants,
    }
    for space in book.spaces():
        place = book.in_space(space.space_id)
        shown[f"log {space.space_id}"] = (
            space.verified.hashes,
            space.role,
            space.former,
            sorted(space.space_keys),
            sorted(space.private_keys),
        )
        for table in book.catalogue.tables:
            if place.space_of(table.name) != space.space_id:
                continue
            for view in await place.views(table.name, include_deleted=True):
                shown[f"{space.space_id} {table.name} {view.id}"] = {
                    "values": view.values,
                    "stamps": view.stamps,
                    "visibility": view.visibility,
                    "author": view.author_id,
                    "deleted": view.deleted,
                    "closed": view.sealed_fields,
                    "obeyed": table.authority and await place.is_verified(table.name, view.id),
                }
    return shown


async def code_of(work: Awaitable[object]) -> str:
    """Return the code with which something is refused; empty if it is done."""
    try:
        await work
    except ManaError as error:
        return error.code
    return ""


async def is_refused(scene: Scene, lies: Callable[[], None], code: str) -> None:
    """Have the hub tell Ada's device these lies, and require that they change nothing there.

    They are refused with this code, and the device shows it; none: what was said does not count.
    Told the truth again, all is as it was, and nothing is shown.
    """
    before, keys = await picture(scene.ada), opened(scene.ada).keys
    lies()
    try:
        assert await code_of(scene.ada.sync_now()) == code
        assert scene.mouth.told, "the hub told the truth"
        shown = (await scene.ada.status()).sync
        assert (shown.trouble, shown.link) == (code, "refused" if code else "online")
        assert await picture(scene.ada) == before
        assert opened(scene.ada).keys is keys
    finally:
        scene.mouth.honest()
    assert await code_of(scene.ada.sync_now()) == ""
    assert await picture(scene.ada) == before


# Where it takes place


@dataclass
class Scene:
    """Ada with two devices, and Bob, who shares a space with her. All without trust in the hub.

    The hub lies to `ada`, by `mouth`, and to nobody else.
    """

    home: Household
    ada: Device
    away: Device
    bob: Device
    team: str
    mouth: Mouth
    code: bytes = field(repr=False)
    signed_up: Body = field(repr=False)
    spaces_before: Body = field(repr=False)
    """Ada's vault and spaces as they were before zero-knowledge mode."""

    @property
    def database(self) -> Database:
        return self.home.database

    async def owner(self, sql: str, *values: object) -> list[Any]:
        """Do something to the database as whoever owns it, past every guard."""
        async with connected(self.database.owner_url) as owner, owner.transaction():
            await owner.execute("set local session_replication_role = replica")
            found: list[Any] = await owner.fetch(sql, *values)
            return found

    @contextlib.asynccontextmanager
    async def put_back(self, *tables: str) -> AsyncIterator[Rows]:
        """Keep what these tables hold now, to put it back as an older copy of the database."""
        rows = Rows(self, tables)
        await rows.keep()
        yield rows

    def newcomer(self) -> tuple[Place, Mouth]:
        """Return a machine on which Ada was never signed in, and what the hub says to it."""
        place = self.home.place(background=False)
        return place, Mouth(place.wire)

    async def signs_in(self, place: Place) -> tuple[str, Device | None]:
        """Sign Ada in at a machine, and sync; return the code that is shown, and the device."""
        code = await code_of(place.host.sign_in("ada", PASSWORD))
        if code:
            assert place.host.accounts() == [], "a sign-in that failed keeps nothing"
            return code, None
        device = place.host.device(self.ada.account_id)
        code = await code_of(device.sync_now())
        assert (await device.status()).sync.trouble == code
        return code, device


@dataclass
class Rows:
    """Some tables as they were: `swap` puts that back, and returns what they held meanwhile."""

    scene: Scene
    tables: Sequence[str]
    kept: dict[str, list[str]] = field(default_factory=dict)

    async def now(self) -> dict[str, list[str]]:
        return {
            table: [
                row[0] for row in await self.scene.owner(f"select to_jsonb(t)::text from {table} t")
            ]
            for table in self.tables
        }

    async def keep(self) -> None:
        self.kept = await self.now()

    async def swap(self, rows: dict[str, list[str]] | None = None) -> dict[str, list[str]]:
        """Put older rows in the place of what is there, past every guard."""
        before = await self.now()
        async with connected(self.scene.database.owner_url) as owner, owner.transaction():
            await owner.execute("set local session_replication_role = replica")
            for table, held in (rows or self.kept).items():
                await owner.execute(f"delete from {table}")
                for row in held:
                    await owner.execute(
                        f"insert into {table} overriding system value"
                        f" select * from jsonb_populate_record(null::{table}, $1)",
                        row,
                    )
        return before


async def to_zero_knowledge(device: Device, *, grants: bool = True) -> bytes:
    """Switch an account over, with grants allowed or not; return its recovery code's secret."""
    inner = book_of(device).inner()

    async def wish(standing: Vault) -> Wish:
        keys = derive(PASSWORD, standing.login, standing.kdf, floor=CHEAP)
        return Wish(
            unlock_key=keys.unlock_key,
            master=True,
            identity=True,
            code=True,
            mode="zero-knowledge",
            grants=grants,
            devices=await inner.hub.devices(),
        )

    secret = await inner.keeper.change(wish)
    assert secret is not None
    await inner.keeper.code_seen()
    await device.sync_now()
    return secret


@contextlib.asynccontextmanager
async def scene_on(postgres: Cluster) -> AsyncIterator[Scene]:
    """Lend a scene in a database of its own."""
    with postgres.database() as database:
        async with household(database) as home:
            ada = await home.person("ada", background=False)
            signed_up = msgspec.to_builtins(await book_of(ada).hub.vault())
            spaces_before = msgspec.to_builtins(await book_of(ada).hub.spaces())
            code = await to_zero_knowledge(ada)
            bob = await home.person("bob", background=False)
            await to_zero_knowledge(bob)
            team = await shared_space(ada)
            await let_in(ada, team, bob)
            away = await home.second("ada", background=False)
            for one in (ada, bob, away):
                await one.sync_now()
            mouth = Mouth(home.places[0].wire)
            yield Scene(home, ada, away, bob, team, mouth, code, signed_up, spaces_before)


__all__ = ["PASSWORD", "Mouth", "Scene", "planned_mission", "scene_on"]
