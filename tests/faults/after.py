"""What must be true of an engine once everything is at rest, whatever happened before."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from mana.crypto.authority import Authority, authority_of
from mana.device.audit import Chain, follow
from mana.device.authority import verify_run
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.domain.ids import MissionId, iteration_id
from mana.domain.iterations import ITERATIONS, STEPS
from mana.protocol.messages import AuditRow, StateRecord
from mana.protocol.replication import Held, apply_state
from mana.testing.postgres import connected
from tests.faults.engine import LATE_TURNS, STEADY, Party
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
        rows = [dict(row) for row in await owner.fetch("select * from mana_ai.occurrences")]
        moves = [
            dict(row) for row in await owner.fetch("select * from watch.moves order by number")
        ]
        usage = [dict(row) for row in await owner.fetch("select * from mana_ai.token_usage")]
        breaches = [tuple(row) for row in await owner.fetch("select * from watch.breaches")]
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
    iterations: dict[str, Held] = {}
    for here in made.worlds.values():
        iterations |= await obeyed(made, here)
    once(rows, iterations, {row["record_id"]: row["number"] for row in logged})
    audit: list[AuditRow] = []
    for here in made.worlds.values():
        audit += await whole(here)
    noted(rows, moves, usage, audit)
    return Counter(f"{row['state']}({(row['reason'] or '').partition(':')[0]})" for row in rows)


def ends(made: Party, rows: list[dict[str, Any]]) -> None:
    """Every occurrence is at one end, or waits for a moment of the schedule; none was lost."""
    for row in rows:
        waits = row["state"] == "queued" and row["kind"] == "scheduled" and not row["tries"]
        assert waits or row["state"] in ENDS, row
        assert row["lease_until"] is None, row
        assert (row["finished_at"] is None) == waits, row
    there = Counter((row["space_id"], row["mission_id"]) for row in rows if row["kind"] == "manual")
    for (space, mission), number in made.queued.items():
        if mission in STEADY:
            assert there[space, mission] == number, (mission, there[space, mission], number)


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


async def obeyed(made: Party, here: World) -> dict[str, Held]:
    """Return the iterations of somebody; each, with all of its steps, is what a device obeys."""
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
        found[record] = one
        named |= {str(name) for name in ids}
    assert named == {record for table, record in held if table == STEPS.name}
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


async def whole(here: World) -> list[AuditRow]:
    """Return the audit of somebody, oldest first, after its chain was followed to the head."""
    newest = await here.audit("?limit=1000")
    rows = list(newest.rows)
    while rows and rows[-1].seq > 1:
        rows += (await here.audit(f"?limit=1000&before={rows[-1].seq}")).rows
    rows.reverse()
    if rows:
        follow(Chain(), rows, head_seq=newest.head_seq, head_hash=newest.head_hash)
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    return rows


def noted(
    rows: list[dict[str, Any]],
    moves: list[dict[str, Any]],
    usage: list[dict[str, Any]],
    audit: list[AuditRow],
) -> None:
    """Each reading was noted while its run held the lease, and before a word left for a model."""
    names = {row["occurrence_id"]: named_of(row) for row in rows}
    noted: dict[str, list[AuditRow]] = defaultdict(list)
    for one in audit:
        noted[str(one.iteration_id)].append(one)
    leases: dict[str, list[tuple[float, str]]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for move in moves:
        if move["occurrence_id"] in names:
            name = names[move["occurrence_id"]]
            leases[name].append((move["at"].timestamp() * 1_000, str(move["state"])))
            counts[name] += move["state"] == "leased"
    for name, lines in noted.items():
        if name not in leases:
            continue  # its occurrence was called off while it waited
        missions = sum(line.table_name == "aiMissions" for line in lines)
        assert missions <= counts[name], (name, missions, counts[name])
        times = [at for at, _ in leases[name]]
        for line in lines:
            # The audit's moments are whole milliseconds.
            place = bisect_right(times, parse_iso_ms(line.ts) + 1) - 1
            assert place >= 0, line
            assert leases[name][place][1] == "leased" or times[place] >= parse_iso_ms(line.ts) - 1
    ok = {name: min(parse_iso_ms(line.ts) for line in lines) for name, lines in noted.items()}
    for row in usage:
        known = names.get(row["occurrence_id"])
        if known is not None:
            assert ok[known] <= row["ts"].timestamp() * 1_000, row
    for row in rows:
        if row["state"] == "done":
            tables = {line.table_name for line in noted[names[row["occurrence_id"]]]}
            assert {"aiMissions", "agents", "notes"} <= tables, row
