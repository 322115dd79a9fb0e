"""The three addresses of one database: owner for migrations, and the two roles that serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from mana.domain.errors import Invalid
from mana.hub.db.pool import Role


@dataclass(frozen=True, slots=True, repr=False)
class DatabaseUrls:
    """Addresses with their passwords; never shown."""

    owner: str
    app: str
    runner: str


def database_urls(environ: Mapping[str, str], *, embedded: str | None = None) -> DatabaseUrls:
    """Return the addresses that the settings give, else those of the embedded server.

    MANA_DATABASE_URL names the owner. The others are the same address under the names mana_app
    and mana_runner, unless MANA_APP_DATABASE_URL and MANA_RUNNER_DATABASE_URL say otherwise.
    """
    owner = environ.get("MANA_DATABASE_URL", "").strip() or embedded
    if not owner:
        raise Invalid("MANA_DATABASE_URL is not set and there is no embedded database")
    return DatabaseUrls(
        owner,
        environ.get("MANA_APP_DATABASE_URL", "").strip() or url_as(owner, Role.APP.value),
        environ.get("MANA_RUNNER_DATABASE_URL", "").strip() or url_as(owner, Role.RUNNER.value),
    )


def url_as(url: str, user: str) -> str:
    """Return the address with another user name, its password kept."""
    parts = _parsed(url)
    login, _, host = parts.netloc.rpartition("@")
    _, colon, password = login.partition(":")
    return urlunsplit(parts._replace(netloc=f"{quote(user)}{colon}{password}@{host}"))


def url_to(url: str, database: str) -> str:
    """Return the address of another database on the same server."""
    return urlunsplit(_parsed(url)._replace(path=f"/{quote(database)}"))


def database_of(url: str) -> str:
    """Return the name of the database that an address names."""
    name = unquote(_parsed(url).path.lstrip("/"))
    if not name:
        raise Invalid("the database address names no database")
    return name


def _parsed(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in {"postgresql", "postgres"}:
        raise Invalid("a database address begins with postgresql://")
    return parts
