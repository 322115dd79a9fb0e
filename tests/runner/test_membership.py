"""What a grant is worth once its grantor is out of the space, or may not write there any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from mana.crypto.identity import revoke_device
from mana.crypto.primitives import b64
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.grants import GrantHeader
from mana.protocol.messages import ChangeMessage, CloseSpace, OccurrenceInfo
from mana.testing.accounts import FoundedSpace
from mana.testing.postgres import Database, connected
from mana.testing.spaces import MadeSpace, closing, leaving, removing, reroling
from tests.hub import test_spaces as spaces
from tests.hub.client import Person, codes
from tests.runner.world import InlineWorkers, World, world

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@dataclass
class SharedWorld(World):
    """A world whose missions live in a space of `bob`, in which `ada` is a member and grants."""

    made: MadeSpace | None = None
    bob: Person | None = None

    @property
    def shared(self) -> MadeSpace:
        assert self.made is not None
        return self.made

    @property
    def space(self) -> FoundedSpace:
        return self.shared.founded

    def change(
        self, table: Any, record_id: str, values: dict[str, Json], **options: Any
    ) -> ChangeMessage:
        return super().change(table, record_id, values, space=self.space, **options)

    async def push(self, *changes: ChangeMessage) -> None:
        answer = await self.ada.push(changes, space=self.shared.space_id)
        assert set(codes(answer)) == {"accepted"}, codes(answer)

    async def header(
        self, mission_id: str = "mission-1", *, inputs: Sequence[str] = ("note-1",), **options: Any
    ) -> GrantHeader:
        return await super().header(
            mission_id, inputs=inputs, space_id=self.shared.space_id, **options
        )

    async def run_now(self, mission_id: str = "mission-1") -> OccurrenceInfo:
        path = f"/api/v1/spaces/{self.shared.space_id}/missions/{mission_id}/run"
        answer = await self.ada.call("POST", path)
        assert answer.status_code == 202, answer.text
        return msgspec.json.decode(answer.content, type=OccurrenceInfo)

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        async with connected(self.database.owner_url) as owner:
            return [tuple(row) for row in await owner.fetch(query)]


async def shared(made: World) -> SharedWorld:
    bob = await made.served.sign_up("bob")
    space = await spaces.join(bob, await spaces.create(bob), made.ada)
    return SharedWorld(made.database, made.served, made.ada, made.home, made=space, bob=bob)


async def removed(here: SharedWorld) -> None:
    assert here.bob is not None
    bob, ada = here.bob.account, here.ada.account
    step = removing(here.shared, bob, ada, [bob], now_ms=here.clock)
    await spaces.take(here.bob, here.shared, step)


async def demoted(here: SharedWorld) -> None:
    assert here.bob is not None
    step = reroling(here.shared, here.bob.account, here.ada.account, "viewer", now_ms=here.clock)
    await spaces.take(here.bob, here.shared, step)


async def left(here: SharedWorld) -> None:
    step = leaving(here.shared, here.ada.account, now_ms=here.clock)
    await spaces.take(here.ada, here.shared, step)


async def closed(here: SharedWorld) -> None:
    assert here.bob is not None
    body = CloseSpace(entry=closing(here.shared, here.bob.account, now_ms=here.clock))
    answer = await here.bob.call("DELETE", f"/api/v1/spaces/{here.shared.space_id}", body)
    assert answer.status_code == 204, answer.text


Happens = Callable[[SharedWorld], Awaitable[None]]


async def test_a_member_grants(database: Database) -> None:
    """A member who may write grants in a shared space, and the runner works there."""
    async with world(database) as made:
        here = await shared(made)
        await here.ready()
        await here.run_now()
        async with here.runner() as runner:
            await runner.scheduler.tick()
        assert (await here.status()).occurrences[0].state == "done"


@pytest.mark.parametrize("happens", [removed, demoted, left])
async def test_grants_end_with_the_role(database: Database, happens: Happens) -> None:
    """Who is out, or may only look on, has every grant in the space ended at once, its keys erased,
    its missions held and nothing of them queued."""
    async with world(database) as made:
        here = await shared(made)
        await here.ready()
        await here.mission("mission-2", cadence={"kind": "interval", "everyMinutes": 30})
        await here.header()
        await here.run_now()
        await happens(here)
        assert await here.rows(
            "select distinct state, wrapped_key, sealed_keys from mana_ai.grants"
        ) == [("revoked", None, None)]
        assert await here.rows(
            "select mission_id, hold, next_run_at from mana_ai.mission_snapshots order by 1"
        ) == [("mission-1", "revoked", None), ("mission-2", "no-grant", None)]
        assert await here.rows("select * from mana_ai.occurrences where state = 'queued'") == []


@pytest.mark.parametrize("happens", [removed, demoted, left, closed])
async def test_nothing_is_opened_after(database: Database, happens: Happens) -> None:
    """A run that was leased before its grantor was out opens nothing afterwards, and writes nothing."""
    async with world(database) as made:
        here = await shared(made)
        await here.ready()
        await here.run_now()
        workers = InlineWorkers()
        start = workers.start

        async def late() -> Any:
            await happens(here)
            return await start()

        workers.start = late  # type: ignore[method-assign]
        async with here.runner(workers=workers) as runner:
            await runner.scheduler.tick()
            workers.start = start  # type: ignore[method-assign]
            await runner.scheduler.tick()
        assert await here.rows("select * from mana_ai.decrypt_audit where status = 'ok'") == []
        assert await here.rows("select * from mana_ai.occurrences where state = 'done'") == []
        tables = "('aiIterations', 'aiSteps')"
        assert await here.rows(f"select * from mana.records where table_name in {tables}") == []


@pytest.mark.parametrize(
    ("after_ms", "ends"), [(-1_000, ("skipped", "not-a-member")), (60_000, ("done", None))]
)
async def test_revoked_device(database: Database, after_ms: int, ends: tuple[str, str]) -> None:
    """A grant that a revoked device signed counts if it was made before the revocation."""
    async with world(database) as made:
        header = await made.ready()
        await made.run_now()
        account = made.ada.account
        moment = iso_ms(parse_iso_ms(header.issued_at) + after_ms)
        identity = account.identity.signing_key
        word = revoke_device(identity, account.account_id, account.device_id, moment)
        async with connected(database.owner_url) as owner:
            await owner.execute(
                "update mana.devices set revoked_at = $1, revocation = $2",
                moment,
                b64(word.signature),
            )
        async with made.runner() as runner:
            await runner.scheduler.tick()
        line = (await made.status()).occurrences[0]
        assert (line.state, line.reason) == ends


async def test_others_go_on(database: Database) -> None:
    """The grant of somebody who stays is in force after another member has gone."""
    async with world(database) as made:
        here = await shared(made)
        assert here.bob is not None
        await here.agent()
        await here.note("note-1")
        await here.mission()
        ada, here.ada = here.ada, here.bob
        await here.grant()
        here.ada = ada
        await left(here)
        assert await here.rows("select state from mana_ai.grants") == [("active",)]
        assert await here.rows("select hold from mana_ai.mission_snapshots") == [(None,)]
