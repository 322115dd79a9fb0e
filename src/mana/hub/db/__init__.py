"""The hub's door to PostgreSQL, and the only importer of its driver.

A store takes a `Tenancy` and opens transactions; nothing else here hands out a connection.
"""

from mana.hub.db.errors import (
    AccessRefused,
    AlreadyExists,
    CheckFailed,
    CommitLost,
    DatabaseFailed,
    DatabaseUnavailable,
    ReferenceMissing,
    RoleUnsafe,
    SerializationFailed,
)
from mana.hub.db.listening import Subscription
from mana.hub.db.migrating import Migration, ensure_database, migrate, read_migrations
from mana.hub.db.pool import Pool, Role
from mana.hub.db.queries import load_queries
from mana.hub.db.tenancy import Isolation, Row, Tenancy, Transaction, retried
from mana.hub.db.urls import DatabaseUrls, database_urls
from mana.hub.tenants import Tenant

__all__ = [
    "AccessRefused",
    "AlreadyExists",
    "CheckFailed",
    "CommitLost",
    "DatabaseFailed",
    "DatabaseUnavailable",
    "DatabaseUrls",
    "Isolation",
    "Migration",
    "Pool",
    "ReferenceMissing",
    "Role",
    "RoleUnsafe",
    "Row",
    "SerializationFailed",
    "Subscription",
    "Tenancy",
    "Tenant",
    "Transaction",
    "database_urls",
    "ensure_database",
    "load_queries",
    "migrate",
    "read_migrations",
    "retried",
]
