"""What sync relies on to be fast, and that none of it shows or takes more than before."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest

from mana.crypto.passwords import HashCost
from mana.crypto.signatures import SigningKey
from mana.domain.errors import Invalid, Unauthenticated
from mana.domain.ids import AccountId, SpaceId
from mana.hub.accounts import tokens
from mana.hub.accounts.tokens import LIFE_S, TokenIssuer
from mana.hub.app import build, serve
from mana.hub.db import AccessRefused, Isolation, Tenancy, Tenant
from mana.hub.settings import HubSettings
from mana.hub.sync import store
from mana.hub.sync.store import Q
from mana.testing.accounts import CHEAP
from mana.testing.postgres import Database, connected
from tests.hub.client import START_MS, Person, served_hub
from tests.hub.test_sync import join, task

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

TABLES = ("mana.space_heads", "mana.records", "mana.sync_changes", "mana.hidden_records")
COPY = {
    "mana.records": "insert into mana.records select * from mana.records",
    "mana.space_heads": "insert into mana.space_heads values ($1, 9)",
    "mana.sync_changes": (
        "insert into mana.sync_changes (space_id, seq, change_id, app_id, table_name, record_id,"
        " user_id, author_id, visibility, op, data, field_meta, client_id, created_at, actor,"
        " origin) values ($1, 99, 'c', 'todo', 'tasks', 't', mana.current_account(),"
        " mana.current_account(), 'space', 'insert', '{}', '{}', 'd', now(), '{}', 'user')"
    ),
}


async def seen(tenancy: Tenancy, person: Person, space: SpaceId | None) -> dict[str, list[str]]:
    """Return every row of the tables of sync that a transaction of the person sees."""
    async with tenancy.transaction(Tenant(person.account.account_id), space=space) as tx:
        return {
            name: [row["row"] for row in await tx.all(f"select t::text as row from {name} t")]
            for name in TABLES
        }


async def test_naming_a_space_shows_nothing_more(database: Database, tenancy: Tenancy) -> None:
    """A transaction that names a space sees the rows that it sees without, whoever it is."""
    async with served_hub(database) as served:
        ada, bob, eve = [await served.sign_up(name) for name in ("ada", "bob", "eve")]
        await join(database, ada, bob)
        await ada.push([task(ada, "shared"), task(ada, "mine", visibility="private")])
    for person in (ada, bob, eve):
        bare = await seen(tenancy, person, None)
        for space in (ada.space, bob.space, eve.space, SpaceId("0" * 64)):
            assert await seen(tenancy, person, space) == bare
    shown = await seen(tenancy, eve, ada.space)
    assert not any(ada.space in row for rows in shown.values() for row in rows)
    assert len((await seen(tenancy, bob, ada.space))["mana.records"]) == 1
    assert len((await seen(tenancy, ada, ada.space))["mana.records"]) == 2


@pytest.mark.parametrize("name", ["mana.space_heads", "mana.sync_changes"])
async def test_naming_a_space_writes_nothing_there(
    database: Database, tenancy: Tenancy, name: str
) -> None:
    """Who is no member writes no row of a space, although the transaction names it."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        await ada.push([task(ada)])
    tenant = Tenant(eve.account.account_id)
    with pytest.raises(AccessRefused):
        async with tenancy.transaction(tenant, space=ada.space) as tx:
            await tx.execute(COPY[name], ada.space)
    async with tenancy.transaction(tenant, space=ada.space) as tx:
        touched = await tx.execute("update mana.records set seq = 9")
        touched += await tx.execute("update mana.space_heads set seq = 9 where seq = 1")
    assert touched == 0


async def test_a_locked_space_is_read_after_its_lock(database: Database, tenancy: Tenancy) -> None:
    """Who asks for a space locked waits for its holder, and then reads what that one wrote."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
    tenant, space = Tenant(ada.account.account_id), ada.space

    async def next_head() -> int:
        async with tenancy.transaction(tenant, space=space, locked=True) as tx:
            assert tx.locked == space
            return int(await tx.value(Q["head"], space))

    async with connected(database.owner_url) as owner:
        async with tenancy.transaction(tenant, space=space, locked=True) as tx:
            waiting = asyncio.create_task(next_head())
            while not await owner.fetchval(
                "select count(*) from pg_stat_activity"
                " where datname = current_database() and wait_event_type = 'Lock'"
            ):
                pass
            # A stranger does not even wait.
            async with tenancy.transaction(
                Tenant(eve.account.account_id), space=space, locked=True
            ) as foreign:
                assert await foreign.value(Q["head"], space) is None
            assert not waiting.done()
            await tx.execute("update mana.space_heads set seq = 5 where space_id = $1", space)
        assert await waiting == 5


@pytest.mark.parametrize("isolation", [Isolation.ONE_MOMENT, Isolation.SERIALIZABLE, None])
async def test_nothing_is_said_to_be_locked_that_is_not(
    tenancy: Tenancy, isolation: Isolation | None
) -> None:
    """A lock without a space, or under which later statements read old rows, is refused."""
    tenant = Tenant(AccountId("00000000-0000-4000-8000-00000000000a"))
    space = None if isolation is None else SpaceId("0" * 64)
    with pytest.raises(Invalid):
        async with tenancy.transaction(
            tenant, isolation=isolation or Isolation.READ_COMMITTED, space=space, locked=True
        ):
            raise AssertionError
    async with tenancy.transaction(tenant, space=SpaceId("0" * 64)) as tx:
        assert tx.locked is None


async def test_no_plan_reads_a_whole_space(database: Database, tenancy: Tenancy) -> None:
    """Every statement of sync finds its rows by an index and in order, whatever is known of them.

    The tables were never analysed here, which is when a plan that sorts a space looks cheap.
    """
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        await ada.push([task(ada, f"t{number}") for number in range(300)])
    async with tenancy.transaction(Tenant(ada.account.account_id), space=ada.space) as tx:
        for name in ("lock", "head", "survey", "changes_after", "hidden_within", "state_page"):
            count = max(int(number) for number in re.findall(r"\$(\d+)", Q[name]))
            await tx.execute(f"prepare one as {Q[name]}")
            nulls = ", ".join(["null"] * count)
            lines = [row[0] for row in await tx.all(f"explain execute one({nulls})")]  # type: ignore[index]
            await tx.execute("deallocate one")
            plan = "\n".join(lines)
            assert "Seq Scan" not in plan, plan
            assert "Bitmap" not in plan, plan
            if name in ("changes_after", "hidden_within", "state_page"):
                assert "Sort" not in plan, plan


async def test_pages_are_bounded_in_bytes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page ends where it has enough bytes, and nothing is lost between pages."""
    monkeypatch.setattr(store, "PAGE_BYTES_MAX", 300)
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        sent = [task(ada, f"t{number}") for number in range(9)]
        await ada.push(sent)
        pulled, after, pages = [], 0, 0
        while True:
            answer = await ada.pull(after=after)
            pulled += [logged.change for logged in answer.changes]
            after, pages = answer.cursor, pages + 1
            if not answer.more:
                break
        assert pulled == sent
        assert 2 < pages <= 9
        ids, page, pages = [], None, 0
        while True:
            state = await ada.state(page)
            ids += [record.id for record in state.records]
            page, pages = state.next, pages + 1
            if page is None:
                break
        assert ids == [change.id for change in sent]
        assert 2 < pages <= 9


def test_a_known_token_still_expires() -> None:
    """A token whose signature was checked before is refused at its end, and a forged one always."""
    issuer = TokenIssuer(SigningKey.generate(), issuer="mana")
    account = AccountId("00000000-0000-4000-8000-00000000000a")
    token = issuer.issue(account, "s", now_ms=START_MS)
    end_ms = START_MS + LIFE_S * 1_000
    assert issuer.verify(token, now_ms=START_MS).account == account
    assert issuer.verify(token, now_ms=end_ms - 1).account == account
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            issuer.verify(token, now_ms=end_ms)
    with pytest.raises(Unauthenticated):
        issuer.verify(token, now_ms=START_MS - 61_000)
    head, _, signature = token.rpartition(".")
    forged = f"{head}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"
    with pytest.raises(Unauthenticated):
        issuer.verify(forged, now_ms=START_MS)


def test_known_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens come by, a bounded number is remembered, and all are verified."""
    monkeypatch.setattr(tokens, "CHECKED_MAX", 3)
    issuer = TokenIssuer(SigningKey.generate(), issuer="mana")
    account = AccountId("00000000-0000-4000-8000-00000000000a")
    made = [issuer.issue(account, f"s{number}", now_ms=START_MS) for number in range(9)]
    for _ in range(2):
        for number, token in enumerate(made):
            assert issuer.verify(token, now_ms=START_MS).session_id == f"s{number}"
    assert len(issuer._verifier._checked) == 3


async def test_answers_do_not_wait(database: Database, tmp_path: Path) -> None:
    """What the hub writes leaves at once: accepted connections do not gather small writes."""
    settings = HubSettings(
        home=tmp_path,
        database_url=database.app_url,
        kdf_floor=CHEAP,
        hash_cost=HashCost(t=1, m_kib=8, p=1),
    )
    listeners: list[socket.socket] = []
    create = socket.create_server

    def kept(*args: object, **options: object) -> socket.socket:
        listeners.append(create(*args, **options))  # type: ignore[arg-type]
        return listeners[-1]

    stop, ready = asyncio.Event(), asyncio.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_server", kept)
        task_ = asyncio.create_task(
            serve(
                build(settings),
                host="127.0.0.1",
                port=0,
                ready=lambda _port: ready.set(),
                stop=stop,
            )
        )
        await ready.wait()
        assert listeners[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        stop.set()
        await task_
