"""The only way to SQL carries whose data it may touch."""

from __future__ import annotations

import asyncio
import contextlib
import traceback

import asyncpg
import pytest

from mana.domain.errors import Conflict, Invalid, ManaError
from mana.domain.ids import AccountId
from mana.hub.db import (
    AccessRefused,
    AlreadyExists,
    CheckFailed,
    DatabaseFailed,
    DatabaseUnavailable,
    Isolation,
    Pool,
    ReferenceMissing,
    Role,
    RoleUnsafe,
    SerializationFailed,
    Tenancy,
    Tenant,
    retried,
)
from mana.hub.db.errors import translated
from mana.testing.postgres import Database, connected

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

ADA = Tenant(AccountId("00000000-0000-4000-8000-00000000000a"))
BOB = Tenant(AccountId("00000000-0000-4000-8000-00000000000b"))

PROBE = """
create table mana.probe (
  account_id text not null,
  id int not null,
  words text unique,
  body jsonb,
  small int check (small < 10),
  parent int,
  primary key (account_id, id),
  foreign key (account_id, parent) references mana.probe (account_id, id)
);
alter table mana.probe enable row level security;
alter table mana.probe force row level security;
create policy own on mana.probe to mana_app, mana_runner
  using (account_id = mana.current_account()) with check (account_id = mana.current_account());
grant select, insert, update, delete on mana.probe to mana_app, mana_runner;
"""
INSERT = "insert into probe (account_id, id, words) values ($1, $2, $3)"


@pytest.fixture
async def probed(database: Database, tenancy: Tenancy) -> Tenancy:
    async with connected(database.owner_url) as owner:
        await owner.execute(PROBE)
    return tenancy


async def count(tenancy: Tenancy, tenant: Tenant) -> int:
    async with tenancy.transaction(tenant) as tx:
        return int(await tx.value("select count(*) from probe"))


async def test_walls(probed: Tenancy) -> None:
    """An account sees its own rows only, although the query names none."""
    async with probed.transaction(ADA) as tx:
        assert await tx.execute(INSERT, ADA.account, 1, "hello") == 1
    assert await count(probed, ADA) == 1
    assert await count(probed, BOB) == 0


async def test_foreign_write(probed: Tenancy) -> None:
    """A row under another account's name is refused with a typed error."""
    with pytest.raises(AccessRefused):
        async with probed.transaction(BOB) as tx:
            await tx.execute(INSERT, ADA.account, 1, "hello")


async def test_no_tenant_no_rows(probed: Tenancy) -> None:
    """The door without an account shows nobody's rows."""
    async with probed.transaction(ADA) as tx:
        await tx.execute(INSERT, ADA.account, 1, "hello")
    async with probed.door() as tx:
        assert await tx.value("select mana.current_account()") is None
        assert await tx.all("select * from probe") == []


async def test_tenant_ends_with_transaction(database: Database) -> None:
    """On the same connection, the next transaction does not inherit the tenant."""
    async with Pool(database.app_url, size=1) as pool:
        tenancy = Tenancy(pool)
        async with tenancy.transaction(ADA) as tx:
            assert await tx.value("select mana.current_account()") == ADA.account
        with pytest.raises(ZeroDivisionError):
            async with tenancy.transaction(ADA):
                raise ZeroDivisionError
        async with pool.connection() as bare:
            assert await bare.fetchval("select mana.current_account()") is None


@pytest.mark.parametrize("text", ["", "x", "'; drop schema mana; --", ADA.account.upper() + "'"])
async def test_tenant_is_a_uuid(text: str) -> None:
    """What is not a UUID never becomes a tenant, so it cannot carry SQL."""
    with pytest.raises(Invalid):
        Tenant(AccountId(text))


async def test_error_rolls_back(probed: Tenancy) -> None:
    """Whatever fails inside, nothing of the transaction is kept."""
    with pytest.raises(ZeroDivisionError):
        async with probed.transaction(ADA) as tx:
            await tx.execute(INSERT, ADA.account, 1, "hello")
            raise ZeroDivisionError
    assert await count(probed, ADA) == 0


async def test_swallowed_failure_is_not_committed(probed: Tenancy) -> None:
    """A transaction that failed and was committed anyway says so instead of losing rows."""
    with pytest.raises(DatabaseFailed):
        async with probed.transaction(ADA) as tx:
            await tx.execute(INSERT, ADA.account, 1, "hello")
            with contextlib.suppress(ManaError):
                await tx.execute(INSERT, ADA.account, 1, "hello")
    assert await count(probed, ADA) == 0


async def test_savepoint(probed: Tenancy) -> None:
    """A part that fails inside a savepoint leaves the rest of the transaction whole."""
    async with probed.transaction(ADA) as tx:
        await tx.execute(INSERT, ADA.account, 1, "hello")
        with pytest.raises(AlreadyExists):
            async with tx.savepoint():
                await tx.execute(INSERT, ADA.account, 2, "hello")
        await tx.execute(INSERT, ADA.account, 3, "other")
    assert await count(probed, ADA) == 2


async def test_cancelled_transaction_leaves_no_tenant(database: Database) -> None:
    """A task that is cancelled in the middle of a query gives back a clean connection."""
    async with Pool(database.app_url, size=1) as pool:
        tenancy = Tenancy(pool)
        started = asyncio.Event()

        async def slow() -> None:
            async with tenancy.transaction(ADA) as tx:
                started.set()
                await tx.value("select pg_sleep(30)")

        task = asyncio.create_task(slow())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with pool.connection() as bare:
            assert await bare.fetchval("select mana.current_account()") is None


async def test_cancelling_at_any_moment_is_quiet(database: Database) -> None:
    """Wherever a transaction is cancelled, even as it begins, its connection complains of nothing."""
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(context["message"]))
    async with Pool(database.app_url, size=1) as pool:
        tenancy = Tenancy(pool)

        async def short() -> None:
            async with tenancy.transaction(ADA) as tx:
                await tx.value("select 1")

        for turns in range(40):
            task = asyncio.create_task(short())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        async with pool.connection() as bare:
            assert await bare.fetchval("select mana.current_account()") is None
    loop.set_exception_handler(None)
    assert complaints == []


async def test_killed_connection_is_replaced(database: Database, tenancy: Tenancy) -> None:
    """A connection that the server ended is an unavailable database once, then a new one."""
    with pytest.raises(DatabaseUnavailable):
        async with tenancy.transaction(ADA) as tx:
            pid = await tx.value("select pg_backend_pid()")
            async with connected(database.owner_url) as owner:
                assert await owner.fetchval("select pg_terminate_backend($1, 5000)", pid)
            await tx.value("select 1")
    async with tenancy.transaction(ADA) as tx:
        assert await tx.value("select 1") == 1


@pytest.mark.parametrize(
    "broken",
    [
        asyncpg.InternalClientError("got result for unknown protocol state 3"),
        ConnectionResetError(),
        TimeoutError(),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_server_that_dies_is_unavailable(broken: Exception) -> None:
    """However the driver puts it, a server that was killed in mid-answer is one that is away."""

    async def cut() -> None:
        raise broken

    with pytest.raises(DatabaseUnavailable):
        await translated(cut())


async def test_typed_errors(probed: Tenancy) -> None:
    """Each constraint that refuses is an error of its own class, with the constraint's name."""
    cases: list[tuple[str, tuple[object, ...], type[DatabaseFailed]]] = [
        (INSERT, (ADA.account, 1, "hello"), AlreadyExists),
        ("update probe set small = $1", (11,), CheckFailed),
        ("update probe set parent = $1", (9,), ReferenceMissing),
        ("select $1::text::uuid", ("no uuid",), CheckFailed),
        ("create table mana.own (x int)", (), AccessRefused),
        ("select nothing_like_this", (), DatabaseFailed),
    ]
    async with probed.transaction(ADA) as tx:
        await tx.execute(INSERT, ADA.account, 1, "hello")
    for sql, args, expected in cases:
        with pytest.raises(DatabaseFailed) as caught:
            async with probed.transaction(ADA) as tx:
                await tx.execute(sql, *args)
        assert type(caught.value) is expected
    with pytest.raises(AlreadyExists) as duplicate:
        async with probed.transaction(ADA) as tx:
            await tx.execute(INSERT, ADA.account, 2, "hello")
    assert duplicate.value.constraint == "probe_words_key"
    assert isinstance(duplicate.value, Conflict)


async def test_errors_carry_no_values(probed: Tenancy) -> None:
    """No text of a row or a parameter is in an error, nor in what it is chained to."""
    secret = "zanzibar"
    async with probed.transaction(ADA) as tx:
        await tx.execute(INSERT, ADA.account, 1, secret)
    for sql, args in (
        (INSERT, (ADA.account, 2, secret)),
        ("select $1::text::uuid", (secret,)),
        ("select $1::text::int", (secret,)),
        ("select $1::int", (secret,)),
    ):
        with pytest.raises(DatabaseFailed) as caught:
            async with probed.transaction(ADA) as tx:
                await tx.execute(sql, *args)
        assert secret not in "".join(traceback.format_exception(caught.value, chain=True)[-1:])
        assert secret not in repr(caught.value.detail)
        seen: BaseException | None = caught.value
        while seen is not None:
            assert secret not in str(seen)
            seen = seen.__context__ or seen.__cause__


async def test_jsonb(probed: Tenancy) -> None:
    """JSON goes in and comes out as plain values."""
    body = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    async with probed.transaction(ADA) as tx:
        await tx.execute(
            "insert into probe (account_id, id, body) values ($1, 1, $2)", ADA.account, body
        )
        row = await tx.one("select body from probe")
        assert row is not None
        assert row["body"] == body
        assert await tx.one("select body from probe where id = 2") is None
        assert await tx.value("select $1::json", body) == body


async def test_retried_until_it_fits(probed: Tenancy) -> None:
    """Two serializable transactions that collide both succeed in the end, one after the other."""
    async with probed.transaction(ADA) as tx:
        await tx.execute("insert into probe (account_id, id, small) values ($1, 1, 0)", ADA.account)
    both_read = asyncio.Barrier(2)
    tries = 0

    async def increment() -> None:
        nonlocal tries
        tries += 1
        first = tries <= 2
        async with probed.transaction(ADA, isolation=Isolation.SERIALIZABLE) as tx:
            value = await tx.value("select small from probe")
            if first:
                await both_read.wait()
            await tx.execute("update probe set small = $1", value + 1)

    await asyncio.gather(retried(increment), retried(increment))
    assert tries > 2
    async with probed.transaction(ADA) as tx:
        assert await tx.value("select small from probe") == 2


async def test_retry_gives_up() -> None:
    """What never fits is an error after a bounded number of tries."""
    tries = 0

    async def never() -> None:
        nonlocal tries
        tries += 1
        raise SerializationFailed("40001")

    with pytest.raises(SerializationFailed):
        await retried(never, attempts=3)
    assert tries == 3


async def test_only_the_runner_leases(tenancy: Tenancy, runner_tenancy: Tenancy) -> None:
    """The door across accounts is closed to the hub's role."""
    with pytest.raises(RoleUnsafe):
        async with tenancy.lease():
            pass
    async with runner_tenancy.lease() as tx:
        assert await tx.value("select current_user::text") == Role.RUNNER.value


async def test_owner_is_refused(database: Database) -> None:
    """A pool does not open under a role that row-level security does not hold."""
    with pytest.raises(RoleUnsafe):
        await Pool(database.owner_url).open()


async def test_nothing_listens() -> None:
    """No server is an unavailable database, not a crash."""
    with pytest.raises(DatabaseUnavailable):
        await Pool("postgresql://mana_app@/mana?host=/nonexistent").open()


async def test_closed_pool(database: Database) -> None:
    """A pool that is closed says that the database is unavailable."""
    async with Pool(database.app_url) as pool:
        tenancy = Tenancy(pool)
    with pytest.raises(DatabaseUnavailable):
        async with tenancy.transaction(ADA):
            pass
