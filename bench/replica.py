"""What sync costs the device: merging, applying the state of a big space, opening a list.

Beside the list stands the limit: AES-GCM alone over the same ciphertexts, with keys expanded.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from bench import world
from mana.crypto.envelope import Binding, RecordKey, open_field, parse_envelope, seal_field
from mana.crypto.keys import new_key
from mana.device.replica import Replica
from mana.domain.actors import person
from mana.domain.clock import Stamp
from mana.domain.ids import DeviceId, RecordId
from mana.domain.merge import merge_entries
from mana.domain.records import Entry
from mana.protocol.messages import StateAnswer, StateField, StateRecord

ROUNDS: Final = 5
LIST: Final = 1_000
PAGE: Final = 1_000
SPACE: Final = "5" * 64
ACCOUNT: Final = str(uuid.UUID(int=1))
DEVICE: Final = DeviceId(str(uuid.UUID(int=2)))
NOW_MS: Final = 1_795_000_000_000


def main(records: int) -> None:
    """Measure and print one table."""
    rows = [_merged(records), *asyncio.run(_replica(records))]
    world.table("the device", ("", "ms", "per s", "beside it"), rows)


def _row(name: str, seconds: float, count: int, beside: str = "") -> list[str]:
    return [name, f"{seconds * 1e3:,.1f}", f"{count / seconds:,.0f}", beside]


def _median(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _merged(count: int) -> list[str]:
    """Merge an edit of one field into a record of five, many times."""
    actor = person(ACCOUNT)
    older, newer = (str(Stamp(NOW_MS + plus, 0, DEVICE)) for plus in (0, 1))
    standing = {f"f{n}": Entry("x", older, actor, "user", "c1") for n in range(5)}
    edit = {"f1": Entry("y", newer, actor, "user", "c2")}

    def work() -> None:
        for _ in range(count):
            merge_entries(standing, edit)

    return _row("merge of one edit into a record of five fields", _median(work), count)


async def _replica(count: int) -> list[list[str]]:
    space_key = new_key()
    pages = [_page(space_key, min(PAGE, count - start)) for start in range(0, count, PAGE)]
    with tempfile.TemporaryDirectory(prefix="mana-bench-") as folder:
        replica = Replica(Path(folder) / "replica.db", guarded=lambda _table, _path: False)
        await replica.open()
        try:
            await replica.write(lambda tx: tx.add_space(SPACE, "personal"))
            began = time.perf_counter()
            for number, raw in enumerate(pages):
                answer = msgspec.json.decode(raw, type=StateAnswer)
                page = None if number == len(pages) - 1 else str(number)
                await replica.write(
                    lambda tx, answer=answer, page=page: tx.take_state(  # type: ignore[misc]
                        SPACE, answer.records, head=count, page=page, known=lambda _table: True
                    )
                )
            applied = time.perf_counter() - began
            ids = [one.id for one in msgspec.json.decode(pages[0], type=StateAnswer).records[:LIST]]
            listed, raw_s = [], []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                held = await replica.read(lambda tx: tx.all_held(SPACE, "notes", ids))
                places = [
                    (one.record.id, one.record.entries["title"], RecordKey.derive(
                        space_key, "notes", one.record.id))
                    for one in held.values()
                ]  # fmt: skip
                for record_id, entry, key in places:
                    open_field(key, str(entry.value), binding=_binding(record_id, entry.at))
                listed.append(time.perf_counter() - began)
                sealed = [
                    (key, parse_envelope(str(entry.value)), _binding(record_id, entry.at))
                    for record_id, entry, key in places
                ]
                ready = [(key, e, binding.associated_data()) for key, e, binding in sealed]
                began = time.perf_counter()
                for key, envelope, data in ready:
                    key.aead.open(envelope.iv, envelope.ciphertext, data)
                raw_s.append(time.perf_counter() - began)
        finally:
            await replica.close()
    list_s, limit_s = statistics.median(listed), statistics.median(raw_s)
    beside = f"AES-GCM alone {limit_s * 1e3:.1f} ms, ratio {limit_s / list_s:.2f}"
    return [
        _row(f"{count:,} records of the state, decoded and applied", applied, count),
        _row(f"list of {LIST:,}: read, keys derived, titles opened", list_s, LIST, beside),
    ]


def _binding(record_id: str, at: str) -> Binding:
    wire = person(ACCOUNT).to_wire()
    return Binding(SPACE, "notes", RecordId(record_id), "title", at, wire)


def _page(space_key: bytes, count: int) -> bytes:
    at = str(Stamp(NOW_MS, 0, DEVICE))
    actor = {"kind": "user", "principalId": ACCOUNT}
    records = []
    for _ in range(count):
        record_id = RecordId(str(uuid.uuid4()))
        key = RecordKey.derive(space_key, "notes", record_id)
        title = seal_field(
            key, cls="s", version=1, binding=_binding(record_id, at), value="a title of this length"
        )
        change_id = str(uuid.uuid4())
        fields = {
            path: StateField(value=value, at=at, actor=actor, origin="user", change_id=change_id)
            for path, value in (("title", title), ("content", title * 4))
        }
        records.append(
            StateRecord(
                table="notes",
                id=record_id,
                author_id=ACCOUNT,
                visibility="space",
                seq=1,
                fields=fields,
            )
        )
    return msgspec.json.encode(StateAnswer(records=records, head=count, hub_time=""))
