"""Statements by name, and the three addresses of one database."""

from __future__ import annotations

import pytest

from mana.domain.errors import Invalid
from mana.hub.db import database_urls
from mana.hub.db.queries import parse_queries
from mana.hub.db.urls import database_of, url_as, url_to

EMBEDDED = "postgresql://postgres@/mana?host=/tmp/mana-x"


def test_parse() -> None:
    """Each statement lies under its name, without the last semicolon."""
    text = "-- Two.\n\n-- name: first\nselect 1;\n\n-- name: second\n-- why\nselect\n  2\n"
    assert dict(parse_queries(text)) == {"first": "select 1", "second": "-- why\nselect\n  2"}


@pytest.mark.parametrize(
    "text",
    [
        "select 1;",
        "-- name: a\nselect 1;\n-- name: a\nselect 2;",
        "-- name: a\n\n-- name: b\nselect 1",
        "-- name: Not-A-Name\nselect 1",
    ],
)
def test_parse_refuses(text: str) -> None:
    """A nameless, repeated, empty or badly named statement is found at load."""
    with pytest.raises(Invalid):
        parse_queries(text)


def test_addresses_derived() -> None:
    """The serving roles use the owner's address under their own names."""
    urls = database_urls({}, embedded=EMBEDDED)
    assert urls.owner == EMBEDDED
    assert urls.app == "postgresql://mana_app@/mana?host=/tmp/mana-x"
    assert urls.runner == "postgresql://mana_runner@/mana?host=/tmp/mana-x"
    assert "mana_app" not in repr(urls)


def test_addresses_given() -> None:
    """A given address wins over the derived and the embedded one."""
    urls = database_urls(
        {
            "MANA_DATABASE_URL": "postgresql://owner:pw@db:5433/mana",
            "MANA_RUNNER_DATABASE_URL": "postgresql://r:x@db/mana",
        },
        embedded=EMBEDDED,
    )
    assert urls.owner == "postgresql://owner:pw@db:5433/mana"
    assert urls.app == "postgresql://mana_app:pw@db:5433/mana"
    assert urls.runner == "postgresql://r:x@db/mana"


def test_address_needed() -> None:
    """No address at all, or one of another kind of server, is refused at once."""
    with pytest.raises(Invalid):
        database_urls({})
    with pytest.raises(Invalid):
        database_urls({"MANA_DATABASE_URL": "mysql://x/y"})


def test_address_parts() -> None:
    """The user and the database change without a loss of the rest."""
    assert url_as("postgresql://db/mana", "mana_app") == "postgresql://mana_app@db/mana"
    assert url_to(EMBEDDED, "a b") == "postgresql://postgres@/a%20b?host=/tmp/mana-x"
    assert database_of(url_to(EMBEDDED, "a b")) == "a b"
    with pytest.raises(Invalid):
        database_of("postgresql://db")
