"""Fixtures for tests that need the hub's database. Use: `pytest_plugins = ["mana.testing.plugin"]`.

`database` is a fresh, migrated one for each test. `tenancy` and `runner_tenancy` are open under
the two serving roles; a test that asks for them is marked `anyio`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from mana.testing.postgres import (
    Cluster,
    Database,
    Role,
    Tenancy,
    opened_tenancy,
    throw_away_cluster,
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """Lend the one server of this test process."""
    with throw_away_cluster() as cluster:
        yield cluster


@pytest.fixture
def database(postgres: Cluster) -> Iterator[Database]:
    """Lend a fresh, migrated database."""
    with postgres.database() as made:
        yield made


@pytest.fixture
def empty_database(postgres: Cluster) -> Iterator[Database]:
    """Lend a fresh database without any migration."""
    with postgres.database(migrated=False) as made:
        yield made


@pytest.fixture
async def tenancy(database: Database) -> AsyncIterator[Tenancy]:
    """Lend the hub's door to the database."""
    async with opened_tenancy(database) as opened:
        yield opened


@pytest.fixture
async def runner_tenancy(database: Database) -> AsyncIterator[Tenancy]:
    """Lend the runner's door to the database."""
    async with opened_tenancy(database, role=Role.RUNNER) as opened:
        yield opened
