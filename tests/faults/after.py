"""What must be true of an engine once everything is at rest, whatever happened before."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mana.crypto.authority import Authority, authority_of
from mana.crypto.envelope import Binding, RecordKey, open_field
from mana.crypto.keys import mission_key
from mana.device.audit import Chain, follow
from mana.device.authority import verify_run
from mana.domain.cadences import cadence_from_wire, next_due
from mana.domain.clock import iso_ms
from mana.domain.ids import MissionId, iteration_id
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.occurrences import MISSED_KEPT_MAX
from mana.protocol.messages import StateRecord
from mana.protocol.replication import Held, apply_state
from mana.testing.postgres import connected
from tests.faults.engine import CLOCKED, LATE_TURNS, STEADY, Party
from tests.runner.bank import HUBS_SUMS, SUMS
from tests.runner.world import World

STOPS = """
select o.mission_id, o.state, o.reason, o.kind from mana_ai.stops s
  left join mana_ai.occurrences o using (occurrence_id)
"""
ENDS = ("done", "skipped", "failed", "missed")


async def check(made: Party) -> Counter[str]:
    """Check everything; return how often occurrences came to each end."""
    async with connected(made.database.owner_url) as owner:

        async def table(name: str) -> list[dict[str, Any]]:
            return [dict(row) for row in await owner.fetch(f"select * from {name} order by 1")]

        rows = await table("mana_ai.occurrences")
        moves = await table("watch.moves")
        usage = await table("mana_ai.token_usage")
        missions = await table("mana_ai.mission_snapshots")
        readings, calls = await table("watch.readings"), await table("watch.calls")
        changes, breaches = await table("watch.changes"), await table("watch.breaches")
        logged = await owner.fetch(
            "select record_id, count(*) as number from mana.sync_changes"
            " where table_name = 'aiIterations' group by 1"
        )
        for query in (SUMS, HUBS_SUMS, LATE_TURNS):
            assert await owner.fetchval(query) == 0, query
        stops = [tuple(row) for row in await owner.fetch(STOPS)]
        assert stops == []
    assert breaches == []
    assert made.late_turns == 0
    ends(made, rows)
    alone(rows, moves)
    settled(made, rows, usage)
    for mission in missions:
        if mission["mission_id"] in CLOCKED:
            mine = [row for row in rows if key_of(row) == key_of(mission)]
            complete(mission, mine, is_whole=key_of(mission) not in made.resumed)
    heard(changes, moves)
    names = {row["occurrence_id"]: named_of(row) for row in rows}
    paid = Counter(names.get(row["occurrence_id"], "") for row in usage)
    iterations: dict[str, Held] = {}
    for here in made.worlds.values():
        iterations |= await obeyed(made, here, paid)
    once(rows, iterations, {row["record_id"]: row["number"] for row in logged})
    for here in made.worlds.values():
        await whole(here)
    noted(rows, moves, readings, calls)
    made.odd.update(
        f"{row['mission_id']} {row['reason']}" for row in rows if row["state"] == "failed"
    )
    return Counter(f"{row['state']}({(row['reason'] or '').partition(':')[0]})" for row in rows)


def key_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return whose mission a row is of, and which."""
    return row["space_id"], row["mission_id"]


def complete(mission: dict[str, Any], rows: list[dict[str, Any]], *, is_whole: bool) -> None:
    """Every moment of a clock is in the ledger once, and the next one waits.

    `is_whole` False: the mission was held for a while, which leaves moments out. Of those that were
    missed the ledger keeps a number.
    """
    ended = sorted(ms_of(row["scheduled_for"]) for row in rows if row["state"] in ENDS)
    waiting = [ms_of(row["scheduled_for"]) for row in rows if row["state"] == "queued"]
    assert mission["hold"] is None, mission
    assert waiting == [ms_of(mission["next_run_at"])], (mission, waiting)
    assert ended, mission
    assert ended[-1] < waiting[0]
    missed = sorted(ms_of(row["scheduled_for"]) for row in rows if row["state"] == "missed")
    kept_from = missed[0] if len(missed) >= MISSED_KEPT_MAX else 0
    cadence, zone = cadence_from_wire(json.loads(mission["cadence"])), mission["time_zone"]
    anchor_ms, moments = mission["anchor_ms"], list[int]()
    at = next_due(cadence, zone, anchor_ms=anchor_ms, after_ms=anchor_ms)
    while at is not None and at < waiting[0]:
        moments.append(at)
        at = next_due(cadence, zone, anchor_ms=anchor_ms, after_ms=at)
    assert set(ended) <= set(moments), mission
    if is_whole:
        left_out = [one for one in moments if one > kept_from and one not in set(ended)]
        assert left_out == [], (mission, left_out)


def ms_of(moment: datetime) -> int:
    """Return whole milliseconds of a moment of the database."""
    return round(moment.timestamp() * 1_000)


def heard(changes: list[dict[str, Any]], moves: list[dict[str, Any]]) -> None:
    """After every change of what a mission waits for a run of it began."""
    newest: dict[str, int] = {}
    for move in moves:
        if move["kind"] == "change" and move["state"] == "leased":
            newest[move["space_id"]] = move["number"]
    for change in changes:
        assert newest.get(change["space_id"], 0) > change["number"], change


def ends(made: Party, rows: list[dict[str, Any]]) -> None:
    """Every occurrence is at one end, or waits for a moment of the schedule; none was lost."""
    for row in rows:
        waits = row["state"] == "queued" and row["kind"] == "scheduled" and not row["tries"]
        assert waits or row["state"] in ENDS, row
        assert row["lease_until"] is None, row
        assert (row["finished_at"] is None) == waits, row
    assert made.asked <= {row["occurrence_id"] for row in rows}
    there = Counter(
        key_of(row)
        for row in rows
        if row["kind"] == "manual" and row["occurrence_id"] not in made.asked
    )
    for key, number in made.queued.items():
        # By hand too: where the answer was lost, nobody knows its number.
        assert key[1] not in STEADY or there[key] >= number, (key, there[key], number)


def alone(rows: list[dict[str, Any]], moves: list[dict[str, Any]]) -> None:
    """Who works on an occurrence has a number of his own, and an end is for ever."""
    for move in moves:
        old, new = move["old_state"], move["state"]
        assert old not in ENDS or (old == "missed" and new is None), move
        if new is None:
            assert old in ("queued", "missed"), move
        elif new == "leased":
            assert move["fence"] == (move["old_fence"] or 0) + 1, move
        elif old is not None:
            assert move["fence"] == move["old_fence"], move
            assert old == "leased" or new == "missed", move
    assert len({row["occurrence_id"] for row in rows}) == len(rows)


def settled(made: Party, rows: list[dict[str, Any]], usage: list[dict[str, Any]]) -> None:
    """Every call that was made was reserved; what is not settled counts what was reserved."""
    calls: Counter[tuple[str, str]] = Counter()
    spent: Counter[str] = Counter()
    for row in usage:
        calls[row["space_id"], row["mission_id"]] += 1
        spent[row["occurrence_id"]] += row["spent"]
        if row["settled_at"] is None:
            assert (row["spent"], row["cost"]) == (row["reserved"], row["reserved_cost"]), row
        assert row["spent"] >= 0, row
        assert row["cost"] >= 0, row
    spaces = {name: here.ada.space for name, here in made.worlds.items()}
    for title, number in made.model.asked.items():
        who, _, mission = title.partition("/")
        assert number <= calls[spaces[who], mission], (title, number)
    for row in rows:
        if row["state"] in ENDS:
            assert row["tokens"] == spent[row["occurrence_id"]], row


async def obeyed(made: Party, here: World, paid: Mapping[str, int]) -> dict[str, Held]:
    """Return the iterations of somebody; each, with all of its steps, is what a device obeys.

    `paid`: by iteration the calls in the ledger. What a run tells of its calls is there.
    """
    held: dict[tuple[str, str], Held] = {}
    page = None
    while True:
        state = await here.ada.state(page)
        held |= {(one.table, one.id): _held(one) for one in state.records}
        page = state.next
        if page is None:
            break
    account = here.ada.account
    authority: Authority = authority_of(
        account.personal.space_id, [account.personal.new.first], [account.certificate]
    )
    found: dict[str, Held] = {}
    named: set[str] = set()
    for (table, record), one in held.items():
        if table != ITERATIONS.name:
            continue
        entries = one.record.entries
        ids, proof = entries["stepIds"].value, entries["proof"].value
        assert isinstance(ids, list)
        assert isinstance(proof, dict)
        steps = [held[STEPS.name, str(name)] for name in ids]
        header = made.headers[str(proof["grantId"])]
        runner = made.keys[header.runner_key_id]
        verify_run(authority, one, steps, header=header, runner=runner)
        told = opened(here, one)
        if told["missionId"] == "net-0":
            assert 0 < told["usage"]["modelCalls"] <= paid.get(record, 0), told
        found[record] = one
        named |= {str(name) for name in ids}
    assert named == {record for table, record in held if table == STEPS.name}
    return found


def opened(here: World, iteration: Held) -> dict[str, Any]:
    """Open an iteration as its person's device does."""
    record = iteration.record
    mission = str(record.entries["missionId"].value)
    key = RecordKey.derive(mission_key(here.space.space_key, mission), ITERATIONS.name, record.id)
    found: dict[str, Any] = {}
    for path, entry in record.entries.items():
        found[path] = entry.value
        if ITERATIONS.field_at(path).sealed:
            binding = Binding(
                here.space.space_id,
                ITERATIONS.name,
                record.id,
                path,
                entry.at,
                entry.actor.to_wire(),
            )
            found[path] = open_field(key, str(entry.value), binding=binding)
    return found


def _held(record: StateRecord) -> Held:
    return apply_state(None, record, guarded=lambda _table, _path: False)


def once(
    rows: list[dict[str, Any]], iterations: Mapping[str, Held], logged: Mapping[str, int]
) -> None:
    """What is done has its own iteration, written once; nothing else has one."""
    done = {row["iteration_id"] for row in rows if row["state"] == "done"}
    assert done == {named_of(row) for row in rows if row["state"] == "done"}
    assert len(done) == sum(row["state"] == "done" for row in rows)
    assert all(row["iteration_id"] is None for row in rows if row["state"] != "done")
    assert set(iterations) == done
    assert dict(logged) == dict.fromkeys(done, 1)


def named_of(row: Mapping[str, Any]) -> str:
    """Return the iteration that an occurrence would have."""
    moment = iso_ms(round(row["scheduled_for"].timestamp() * 1_000))
    return str(iteration_id(MissionId(row["mission_id"]), moment))


async def whole(here: World) -> None:
    """Follow the audit of somebody, oldest first, to its head."""
    newest = await here.audit("?limit=1000")
    rows = list(newest.rows)
    while rows and rows[-1].seq > 1:
        rows += (await here.audit(f"?limit=1000&before={rows[-1].seq}")).rows
    rows.reverse()
    if rows:
        follow(Chain(), rows, head_seq=newest.head_seq, head_hash=newest.head_hash)
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))


def noted(
    rows: list[dict[str, Any]],
    moves: list[dict[str, Any]],
    readings: list[dict[str, Any]],
    calls: list[dict[str, Any]],
) -> None:
    """Each reading was noted while its run held the lease, and before a word left for a model."""
    names = {row["occurrence_id"]: named_of(row) for row in rows}
    read: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in readings:
        read[str(one["iteration_id"])].append(one)
    leases: dict[str, list[tuple[int, str]]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for move in moves:
        if move["occurrence_id"] in names:
            name = names[move["occurrence_id"]]
            leases[name].append((move["number"], str(move["state"])))
            counts[name] += move["state"] == "leased"
    for name, lines in read.items():
        if name not in leases:
            continue  # its occurrence was called off while it waited
        missions = sum(line["table_name"] == "aiMissions" for line in lines)
        assert missions <= counts[name], (name, missions, counts[name])
        numbers = [number for number, _ in leases[name]]
        for line in lines:
            place = bisect_right(numbers, line["number"]) - 1
            assert place >= 0, line
            assert leases[name][place][1] == "leased", line
    for call in calls:
        known = names.get(call["occurrence_id"])
        if known is not None:
            assert min(line["number"] for line in read[known]) < call["number"], call
    for row in rows:
        if row["state"] == "done":
            tables = {line["table_name"] for line in read[names[row["occurrence_id"]]]}
            assert {"aiMissions", "agents", "notes"} <= tables, row
