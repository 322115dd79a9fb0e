"""A hub with people whose missions wait, each with an agent, a grant and five notes to read."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from bench.world import Client, Hub, Person, sign_up
from mana.crypto.envelope import RecordKey
from mana.crypto.grants import seal_grant
from mana.crypto.keys import mission_key
from mana.crypto.primitives import b64
from mana.crypto.runners import RunnerPublicKey
from mana.domain.agents import AGENT_MEMORY, AGENTS
from mana.domain.encoding import Json
from mana.domain.grants import header_from_wire
from mana.domain.missions import MISSIONS
from mana.domain.policy import STANDARD
from mana.modules.notes.manifest import MANIFEST as NOTES
from mana.protocol.messages import (
    ChangeMessage,
    GrantCompletion,
    GrantHeaderAnswer,
    GrantRequest,
    RunnerInfo,
    Signature,
)
from mana.testing.accounts import sealed_change

INPUTS: Final = 5
AGENTS_EACH: Final = 10
_NOTE: Final = next(table for table in NOTES.tables if table.name == "notes")
_CONTENT: Final = "- [ ] call the plumber\n" + "The tap in the kitchen drips since Monday. " * 12


@dataclass
class Crew:
    """One account with its agents and missions."""

    person: Person
    missions: list[str] = field(default_factory=list)


def crew(hub: Hub, missions: int, *, endpoint: str, runner_key: RunnerPublicKey) -> Crew:
    """Make an account with so many granted missions, due once a day."""
    made = Crew(sign_up(hub))
    person = made.person
    client = person.client()
    agents = [f"agent-{uuid.uuid4()}" for _ in range(AGENTS_EACH)]
    changes: list[ChangeMessage] = []
    for agent in agents:
        changes += [
            _change(person, AGENTS, agent, {
                "name": "Nora", "role": "helper", "policy": STANDARD.to_wire(),
                "state": "active", "maxConcurrentMissions": 100,
            }),
            _change(person, AGENT_MEMORY, agent, {"agentId": agent, "content": "Likes tea."}),
        ]  # fmt: skip
    notes: dict[str, list[str]] = {}
    for number in range(missions):
        mission = f"mission-{uuid.uuid4()}"
        made.missions.append(mission)
        notes[mission] = [f"note-{uuid.uuid4()}" for _ in range(INPUTS)]
        changes += [
            _change(person, _NOTE, note, {"title": "House", "content": _CONTENT})
            for note in notes[mission]
        ]
        changes.append(_change(person, MISSIONS, mission, {
            "title": "Review", "objective": "Find tasks.", "state": "active",
            "inputs": [{"module": "notes", "table": "notes", "id": n} for n in notes[mission]],
            "cadence": {"kind": "daily", "atHour": 3, "atMinute": 0},
            "timeZone": "Europe/Berlin", "agentId": agents[number % len(agents)], "runsOn": "hub",
        }))  # fmt: skip
    _push(client, person, changes)
    completions = []
    named = []
    for mission in made.missions:
        header, done = _grant(client, person, mission, notes[mission], endpoint, runner_key)
        named.append(_change(person, MISSIONS, mission, {"grantId": header}, op="update"))
        completions.append((header, done))
    _push(client, person, named)
    for header, done in completions:
        client.call("POST", f"/api/v1/me/ai-mission-grant/{header}/complete", done)
    client.close()
    return made


def fill_missions(person: Person, count: int, *, changes: int) -> None:
    """Make missions with so many changes each, and nothing else."""
    client = person.client()
    names = [f"mission-{uuid.uuid4()}" for _ in range(count)]
    _push(client, person, [
        _change(person, MISSIONS, name, {
            "title": "Review", "objective": "Find tasks.", "state": "active",
            "cadence": {"kind": "daily", "atHour": 3, "atMinute": 0},
            "timeZone": "Europe/Berlin", "agentId": "agent", "runsOn": "hub",
        })
        for name in names
    ])  # fmt: skip
    for number in range(1, changes):
        cadence: Json = {"kind": "daily", "atHour": number, "atMinute": 0}
        _push(client, person, [
            _change(person, MISSIONS, name, {"cadence": cadence}, op="update") for name in names
        ])  # fmt: skip
    client.close()


def crews(
    hub: Hub, accounts: int, missions: int, *, endpoint: str, runner_key: RunnerPublicKey
) -> list[Crew]:
    """Make accounts that share so many missions among them."""
    each = missions // accounts
    with ThreadPoolExecutor(2) as pool:
        return list(
            pool.map(
                lambda _: crew(hub, each, endpoint=endpoint, runner_key=runner_key),
                range(accounts),
            )
        )


def runner_key(client: Client) -> RunnerPublicKey:
    """Return the key that a hub tells for its runner."""
    info = msgspec.json.decode(client.call("GET", "/api/v1/runner"), type=RunnerInfo)
    return RunnerPublicKey.from_pem(info.public_key)


def _change(
    person: Person, table: Any, record: str, values: dict[str, Json], *, op: str = "insert"
) -> ChangeMessage:
    now_ms = time.time_ns() // 1_000_000
    return sealed_change(person.account, table, record, values, now_ms=now_ms, op=op)


def _push(client: Client, person: Person, changes: Sequence[ChangeMessage]) -> None:
    for start in range(0, len(changes), 500):
        status, answer = client.send(
            client.prepared("POST", person.changes_path, person.body(changes[start : start + 500]))
        )
        assert status == 200, answer[:500]
        assert b"refused" not in answer, answer[:500]


def _grant(
    client: Client,
    person: Person,
    mission: str,
    notes: Sequence[str],
    endpoint: str,
    runner: RunnerPublicKey,
) -> tuple[str, GrantCompletion]:
    request = GrantRequest(
        mission_id=mission,
        tables=["notes"],
        record_ids=[f"notes:{note}" for note in notes],
        endpoints=[endpoint],
    )
    raw = client.call("POST", "/api/v1/me/ai-mission-grant", request)
    header = header_from_wire(msgspec.json.decode(raw, type=GrantHeaderAnswer).header)
    key = person.account.personal.space_key

    def granted(name: str) -> dict[str, Json]:
        table, _, record = name.partition(":")
        return {"k": b64(RecordKey.derive(key, table, record).to_bytes()), "e": "s1"}

    support = [
        f"aiMissions:{mission}",
        *(f"{t}:{header.agent_id}" for t in ("agents", "agentMemory")),
    ]
    payload: dict[str, Json] = {
        "records": {name: granted(name) for name in header.record_ids},
        "support": {name: granted(name) for name in support},
        "iterationKey": {"k": b64(mission_key(key, mission)), "e": "m1"},
    }
    sealed = seal_grant(
        header.canonical(),
        mission,
        payload,
        runner=runner.wrap_key(header.suite),
        device=person.account.device_key,
    )
    return header.grant_id, GrantCompletion(
        wrapped_key=b64(sealed.wrapped_key),
        sealed_keys=sealed.sealed_keys,
        signature=Signature(signer=person.account.device_id, value=b64(sealed.signature)),
    )
