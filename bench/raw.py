"""The raw limit: the same rows into the same tables, under the same role and row-level security.

One transaction for each batch, in the shape of a push: bind the tenant, lock the head, insert
into the log and upsert the records by `unnest`, move the head, notify, commit. The arguments are
made beforehand; nothing is validated, merged, signed or answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
import msgspec

from bench.world import Person
from mana.hub.db.pool import SERVER_SETTINGS
from mana.protocol.messages import ChangeMessage

_LOCK: Final = "select seq from mana.space_heads where space_id = $1 for update"
_APPEND: Final = """
insert into mana.sync_changes (space_id, seq, change_id, app_id, table_name, record_id, user_id,
  author_id, visibility, op, data, field_meta, client_id, created_at, schema_version, actor, origin)
select $1, $2 + c.number, c.change_id, c.app_id, c.table_name, c.record_id, $3, $3, 'space', c.op,
  c.data::json, c.field_meta::json, $4, $5, 1, $6::text::json, 'user'
  from unnest($7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
    $13::text[]) with ordinality
    as c (change_id, app_id, table_name, record_id, op, data, field_meta, number)
"""
_UPSERT: Final = """
insert into mana.records as r (space_id, table_name, record_id, author_id, visibility, fields,
  proofs, seq, deleted)
select $1, c.table_name, c.record_id, $2, 'space', c.fields::json, '{}', $3, false
  from unnest($4::text[], $5::text[], $6::text[]) as c (table_name, record_id, fields)
    on conflict (space_id, table_name, record_id) do update
   set fields = excluded.fields, seq = excluded.seq
"""
_ADVANCE: Final = "update mana.space_heads set seq = $2 where space_id = $1"
_NOTIFY: Final = "select pg_notify('mana_live', $1)"


class Rows:
    """The arguments of one batch."""

    def __init__(self, person: Person, changes: Sequence[ChangeMessage]) -> None:
        self.count = len(changes)
        self._log = [
            [change.change_id for change in changes],
            ["todo" if change.table == "tasks" else "notes" for change in changes],
            [change.table for change in changes],
            [change.id for change in changes],
            [change.op for change in changes],
            [_json({p: w.value for p, w in change.fields.items()}) for change in changes],
            [_json({p: w.at for p, w in change.fields.items()}) for change in changes],
        ]
        self._actor = _json(changes[0].actor)
        records: dict[tuple[str, str], dict[str, Any]] = {}
        for change in changes:
            kept = records.setdefault((change.table, change.id), {})
            for path, write in change.fields.items():
                kept[path] = {
                    "value": write.value,
                    "at": write.at,
                    "actor": change.actor,
                    "origin": change.origin,
                    "changeId": change.change_id,
                }
        self._records = [
            [ref[0] for ref in records],
            [ref[1] for ref in records],
            [_json(fields) for fields in records.values()],
        ]
        self._person = person

    async def write(self, connection: Any) -> None:
        """Run the transaction."""
        person = self._person
        account, space = person.account.account_id, person.space
        await connection.execute(
            f"begin; set local app.current_user_id = '{account}';"
            f" set local app.current_space = '{space}'"
        )
        head = await connection.fetchval(_LOCK, space)
        now = datetime.now(UTC)
        await connection.execute(
            _APPEND, space, head, account, person.account.device_id, now, self._actor, *self._log
        )
        head += self.count
        await connection.execute(_UPSERT, space, account, head, *self._records)
        await connection.execute(_ADVANCE, space, head)
        await connection.execute(_NOTIFY, f"{space}:{head}")
        await connection.execute("commit")


async def run(url: str, work: Sequence[Sequence[Rows]]) -> list[float]:
    """Write each list of batches on a connection of its own; return every transaction's seconds."""
    connections = [
        await asyncpg.connect(url, server_settings=SERVER_SETTINGS) for _ in range(len(work))
    ]
    taken: list[float] = []

    async def one(connection: Any, batches: Sequence[Rows]) -> None:
        for batch in batches:
            began = time.perf_counter()
            await batch.write(connection)
            taken.append(time.perf_counter() - began)

    await asyncio.gather(*(one(c, b) for c, b in zip(connections, work, strict=True)))
    for connection in connections:
        await connection.close()
    return taken


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
