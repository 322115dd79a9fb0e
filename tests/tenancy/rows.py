"""Rows in every table, made from the catalogue, and who may touch which: declared once, here.

Five people: Ada owns a shared space, Bob is a member of it, Vic a viewer; Rem was a member once;
Out has nothing to do with it. Each has a personal space besides. In every table stand rows of
each of them, in each space where the table knows spaces. What is tested is row-level security
alone: the privileges of a table are a wall of their own (`schema.sql` shows them).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import asyncpg

Row: TypeAlias = Mapping[str, Any]
May: TypeAlias = Callable[[Row, str], bool]
"""Whether an account may do something with a row."""


def account(digit: str) -> str:
    return f"00000000-0000-4000-8000-{digit * 12}"


PEOPLE: Final = {
    name: account(digit)
    for name, digit in zip(("ada", "bob", "vic", "rem", "out"), "abcde", strict=True)
}
ADA, BOB, VIC, REM, OUT = PEOPLE.values()
SHARED: Final = "f" * 64
ROLES: Final = {ADA: "owner", BOB: "member", VIC: "viewer"}
MEMBERS: Final = {SHARED: tuple(ROLES), **{who[-1] * 64: (who,) for who in PEOPLE.values()}}
"""By space its members."""


@dataclass(frozen=True)
class Rule:
    """Who sees, adds, changes and removes a row. Where nothing else is said: who sees it."""

    reads: May
    inserts: May | None = None
    updates: May | None = None
    deletes: May | None = None
    runner: May | None = None
    """Who the runner sees it for, where that differs."""


def nobody(_row: Row, _who: str) -> bool:
    return False


def everybody(_row: Row, _who: str) -> bool:
    return True


def own(row: Row, who: str) -> bool:
    return bool(row["account_id"] == who)


def in_space(row: Row, who: str) -> bool:
    return who in MEMBERS[row["space_id"]]


def shown(row: Row, who: str) -> bool:
    """A member sees what is shared, and of what is private only their own."""
    return in_space(row, who) and (row["visibility"] == "space" or row["author_id"] == who)


def logged(row: Row, who: str) -> bool:
    """Of the log a member sees what they wrote, and what is shown and hidden by nobody else."""
    record = (row["space_id"], row["table_name"], row["record_id"])
    is_hidden = HIDDEN.get(record, who) != who
    return in_space(row, who) and (row["user_id"] == who or (shown(row, who) and not is_hidden))


def in_own_space(row: Row, who: str) -> bool:
    return own(row, who) and in_space(row, who)


def manages(row: Row, who: str) -> bool:
    return in_space(row, who) and role_in(row["space_id"], who) == "owner"


def role_in(space: str, who: str) -> str:
    return ROLES[who] if space == SHARED else "owner"


def companions(row: Row, who: str) -> bool:
    return any(who in some and row["account_id"] in some for some in MEMBERS.values())


RULES: Final[Mapping[str, Rule]] = {
    "mana.accounts": Rule(own),
    # Written for who goes while they are still a member; read by who went, and by nobody else.
    "mana.departures": Rule(
        own,
        inserts=lambda row, who: (
            in_space(row, who) and row["account_id"] in MEMBERS[row["space_id"]]
        ),
        updates=nobody,
        deletes=in_own_space,
        runner=nobody,
    ),
    "mana.devices": Rule(companions, own, own, own),
    "mana.factor_challenges": Rule(own, runner=nobody),
    # An insert needs the private record that it hides, and there is none by these names.
    "mana.hidden_records": Rule(
        in_space,
        inserts=nobody,
        updates=nobody,
        deletes=lambda row, who: in_space(row, who) and row["author_id"] == who,
    ),
    "mana.invitations": Rule(
        lambda row, who: manages(row, who) or own(row, who),
        inserts=manages,
        updates=manages,
        deletes=manages,
        runner=nobody,
    ),
    "mana.invites": Rule(own, runner=nobody),
    "mana.links": Rule(own, runner=nobody),
    # How many letters went to an address: it belongs to no account.
    "mana.letter_places": Rule(nobody),
    "mana.login_attempts": Rule(nobody),
    "mana.membership_entries": Rule(in_space),
    "mana.memberships": Rule(in_space),
    "mana.records": Rule(shown),
    "mana.refresh_tokens": Rule(own, runner=nobody),
    "mana.resets": Rule(own, runner=nobody),
    "mana.second_factors": Rule(own, runner=nobody),
    "mana.security_events": Rule(own, runner=nobody),
    "mana.sessions": Rule(own),
    "mana.space_heads": Rule(in_space),
    "mana.space_keys": Rule(own, inserts=in_own_space, updates=in_own_space, runner=nobody),
    "mana.spaces": Rule(in_space),
    # The log is append-only for row-level security too.
    "mana.sync_changes": Rule(
        logged,
        inserts=lambda row, who: shown(row, who) and row["user_id"] == who,
        updates=nobody,
        deletes=nobody,
    ),
    "mana.vault_statements": Rule(own, runner=nobody),
    "mana.letters": Rule(own),
    # Whose turn it is: the runner finds it across accounts.
    "mana_ai.account_work": Rule(own, runner=everybody),
    "mana_ai.agent_snapshots": Rule(in_space),
    "mana_ai.audit_heads": Rule(own),
    "mana_ai.decrypt_audit": Rule(own),
    "mana_ai.grants": Rule(in_space, deletes=in_own_space),
    "mana_ai.mission_snapshots": Rule(in_space),
    # Door (a) of the design: the runner finds and leases what is due, across accounts.
    "mana_ai.occurrences": Rule(in_space, runner=everybody),
    "mana_ai.spend": Rule(
        lambda row, who: own(row, who) or in_space(row, who),
        inserts=own,
        updates=own,
        deletes=nobody,
    ),
    # What somebody stopped: the runner looks for what it works on, whoever's it is.
    "mana_ai.stops": Rule(in_space, runner=everybody),
    # What is as old as these rows is not asked for any more, but is not 400 days old.
    "mana_ai.token_usage": Rule(
        lambda row, who: own(row, who) or in_space(row, who),
        inserts=in_own_space,
        updates=own,
        deletes=nobody,
    ),
    "mana_ai.watched": Rule(in_space),
}
HUBS_OWN: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "mana.migrations": {"mana_app": frozenset(), "mana_runner": frozenset()},
    "mana_ai.hub_limits": {
        "mana_app": frozenset({"select", "update"}),
        "mana_runner": frozenset({"select"}),
    },
    "mana_ai.hub_spend": {
        "mana_app": frozenset({"select"}),
        "mana_runner": frozenset({"select", "insert", "update", "delete"}),
    },
}
"""Tables without any person's row, and what each serving role may do with them."""

# Columns in which an account stands, and what else must stand in a column for the row to be one.
ACCOUNTS: Final = frozenset({"account_id", "user_id", "author_id", "created_by"})
FIXED: Final[Mapping[str, Mapping[str, Any]]] = {
    "mana.accounts": {"mode": "standard", "role": "member"},
    "mana_ai.decrypt_audit": {"status": "ok"},
    "mana_ai.grants": {
        "state": "pending",
        "wrapped_key": None,
        "sealed_keys": None,
        "ended_at": None,
        "revoker": None,
        "revocation": None,
    },
    "mana.letters": {"waiting": False, "due_at": None, "code": None, "code_due_at": None},
    "mana_ai.occurrences": {"kind": "manual", "state": "queued"},
    "mana_ai.mission_snapshots": {"hold": None, "if_missed": "once"},
    "mana_ai.spend": {"scope": "agent"},
    "mana_ai.token_usage": {"purpose": "plan"},
    "mana.invitations": {"role": "member"},
    "mana.links": {"state": "waiting", "wrapped": None, "certificate": None},
    "mana.second_factors": {"kind": "totp", "state": "pending"},
    "mana.sync_changes": {"op": "insert", "origin": "user"},
    "mana.space_keys": {"kind": "p"},
}

_COLUMNS: Final = """
select n.nspname || '.' || c.relname as table_name, a.attname as name,
       format_type(a.atttypid, a.atttypmod) as type, a.attgenerated <> '' as generated,
       exists (select from pg_constraint k
                where k.conrelid = c.oid and k.contype = 'p' and a.attnum = any (k.conkey)) as key
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
 where c.relkind in ('r', 'p') and n.nspname not in ('pg_catalog', 'information_schema')
   and n.nspname !~ '^pg_(toast|temp)'
 order by 1, a.attnum
"""


@dataclass(frozen=True)
class Column:
    """One column as the catalogue has it."""

    name: str
    type: str
    generated: bool
    key: bool


async def tables(connection: asyncpg.Connection) -> dict[str, list[Column]]:
    """Return every table of the database that is not PostgreSQL's own, with its columns."""
    found: dict[str, list[Column]] = {}
    for row in await connection.fetch(_COLUMNS):
        column = Column(row["name"], row["type"], row["generated"], row["key"])
        found.setdefault(row["table_name"], []).append(column)
    return found


def rows_for(table: str, columns: list[Column]) -> list[dict[str, Any]]:
    """Return rows of everybody, everywhere the table can hold one."""
    names = {column.name for column in columns}
    found = []
    for number, (who, space, visibility) in enumerate(_places(table, names)):
        row = {column.name: _value(column, number) for column in columns if not column.generated}
        row |= dict.fromkeys(ACCOUNTS & names, who)
        row |= {"space_id": space} if "space_id" in names else {}
        row |= {"visibility": visibility} if "visibility" in names else {}
        row |= {"members": list(MEMBERS[space])} if "members" in names else {}
        if table == "mana.memberships":
            row["role"] = role_in(space, who)
        found.append({**row, **FIXED.get(table, {})})
    return found


def _places(table: str, names: set[str]) -> Iterator[tuple[str, str, str]]:
    for space, members in MEMBERS.items():
        if "space_id" not in names and space == SHARED:
            continue
        for who in PEOPLE.values():
            is_shared_out = "space_id" in names and ACCOUNTS & names
            if who != members[0] and not is_shared_out:
                continue  # one row of the space, or of the account, is all there can be
            if table == "mana.memberships" and who not in members:
                continue
            for visibility in ("space", "private") if "visibility" in names else ("",):
                yield who, space, visibility


HIDDEN: Final = {
    (space, f"table_name-{number}", f"record_id-{number}"): who
    for number, (who, space, _) in enumerate(
        _places("mana.hidden_records", {"space_id", "author_id"})
    )
}
"""By record who hides it: some of the log's records are among these."""


def _value(column: Column, number: int) -> Any:
    made: dict[str, Any] = {
        "text": f"{column.name}-{number}",
        "text[]": [],
        "json": {},
        "jsonb": {},
        "boolean": False,
        "integer": number + 1,
        "bigint": number + 1,
        "bytea": f"\\x{number:04x}",
        "timestamp with time zone": "2026-11-21T05:00:00+00:00",
    }
    return made[column.type]


async def seed(owner: asyncpg.Connection, found: Mapping[str, list[Column]]) -> None:
    """Fill every table, and let row-level security alone decide from then on."""
    for schema in ("mana", "mana_ai"):
        await owner.execute(
            f"grant select, insert, update, delete on all tables in schema {schema}"
            " to mana_app, mana_runner"
        )
    await owner.execute("set session_replication_role = replica")
    for table, columns in found.items():
        if table not in HUBS_OWN:
            for row in rows_for(table, columns):
                await owner.execute(insertion(table, columns), json.dumps(row))
    await owner.execute("set session_replication_role = origin")


def insertion(table: str, columns: list[Column]) -> str:
    """Return the statement that adds one row, given as JSON."""
    names = ", ".join(column.name for column in columns if not column.generated)
    return (
        f"insert into {table} ({names}) overriding system value"
        f" select {names} from jsonb_populate_record(null::{table}, $1)"
    )
