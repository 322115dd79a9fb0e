"""The audit's chain: a hub that drops, changes or swaps a reading is found out here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.crypto.signatures import AUDIT_START
from mana.device.audit import (
    BrokenChain,
    Chain,
    follow,
    model_words,
    record_words,
    row_hash,
    sentence,
)
from mana.device.consent import consent_lines
from mana.device.hub_client import HubClient
from mana.device.views import Cited, ModelView
from mana.models import rules
from mana.protocol.messages import AuditAnswer, AuditRow
from mana.testing.postgres import Database
from tests.device.household import Household, household, operations, planned_mission


def rows(count: int) -> list[AuditRow]:
    """Return an honest chain, oldest first."""
    found: list[AuditRow] = []
    previous = AUDIT_START
    for seq in range(1, count + 1):
        row = AuditRow(
            seq=seq,
            mission_id="m",
            iteration_id=None,
            grant_id="g",
            table_name="notes",
            record_id=f"n{seq}",
            status="ok",
            reason=None,
            endpoint="rules:offline",
            runner_key_id="k",
            ts="2026-11-21T05:23:00.123Z",
            previous=previous,
            hash="",
        )
        row = msgspec.structs.replace(row, hash=row_hash(row))
        previous = row.hash
        found.append(row)
    return found


def head(chain: list[AuditRow]) -> dict[str, Any]:
    return {"head_seq": len(chain), "head_hash": chain[-1].hash if chain else AUDIT_START}


@given(st.integers(0, 12), st.integers(0, 12))
def test_honest_chain_is_followed_in_any_pieces(count: int, cut: int) -> None:
    """Walking a chain at once or in two pieces ends at the same head."""
    chain = rows(count)
    cut = min(cut, count)
    first = follow(Chain(), chain[:cut], **head(chain[:cut]))
    assert follow(first, chain[cut:], **head(chain)) == follow(Chain(), chain, **head(chain))


@given(st.integers(2, 10), st.integers(0, 9), st.sampled_from(("drop", "change", "swap", "cut")))
def test_any_tampering_breaks_the_chain(count: int, at: int, how: str) -> None:
    """A row that is missing, changed, swapped or cut off at the end is noticed."""
    chain = rows(count)
    at = min(at, count - 1)
    broken = list(chain)
    if how == "drop":
        del broken[at]
    elif how == "change":
        broken[at] = msgspec.structs.replace(broken[at], record_id="other")
    elif how == "swap":
        broken[at], broken[at - 1] = broken[at - 1], broken[at]
    else:
        broken = broken[:-1]
    with pytest.raises(BrokenChain):
        follow(Chain(), broken, **head(chain))


def test_shorter_chain_than_before_is_noticed() -> None:
    """A hub that rebuilt a shorter chain contradicts what was walked."""
    chain = rows(4)
    walked = follow(Chain(), chain, **head(chain))
    with pytest.raises(BrokenChain):
        follow(walked, [], **head(chain[:2]))


def test_refused_reading_says_so() -> None:
    """A reading that did not happen is not told as one."""
    row = msgspec.structs.replace(rows(1)[0], status="scope-violation", reason="scope-mismatch")
    words = sentence(row, what="“Diary”", mission="Review", clock="07:00:00", models={})
    assert (
        words
        == "The runner was kept from “Diary” for “Review”, 07:00:00. The grant does not name it."
    )


@pytest.mark.parametrize(
    ("table", "known", "words"),
    [
        ("notes", {"title": "Diary"}, "“Diary” for “Weekly review”"),
        ("notes", {}, "a note that is no longer here for “Weekly review”"),
        ("tasks", {"is_here": True}, "a task without a title for “Weekly review”"),
        ("agents", {"agent": "Mira"}, "the agent Mira for “Weekly review”"),
        ("agentMemory", {"agent": "Mira"}, "the memory of Mira for “Weekly review”"),
        ("agents", {}, "an agent that is no longer here for “Weekly review”"),
        ("aiMissions", {}, "the mission “Weekly review”"),
        ("aiMissions", {"mission": ""}, "a mission that is no longer here"),
        ("aiIterations", {}, "an earlier run of “Weekly review”"),
        ("aiSteps", {}, "a step of an earlier run of “Weekly review”"),
    ],
)
def test_readings_say_what_was_read(table: str, known: dict[str, Any], words: str) -> None:
    """What was read is named as a person calls it, the model once, and the place where it is."""
    told: dict[str, Any] = {"title": "", "agent": "", "is_here": False, "mission": "Weekly review"}
    told |= known
    row = msgspec.structs.replace(rows(1)[0], table_name=table)
    what = record_words(table, **told)
    said = sentence(row, what=what, mission=told["mission"], clock="07:00:00", models={})
    assert said == (
        f"The runner read {words}, 07:00:00, to plan with rules (offline), on the hub's own machine."
    )


@pytest.mark.parametrize(
    ("address", "model", "words"),
    [
        ("rules:offline", "rules (offline)", "rules (offline), on the hub's own machine"),
        ("http://127.0.0.1:11434", "small", "small, on the hub's own machine"),
        ("https://models.example", "large", "large, at https://models.example"),
        ("https://models.example", "", "the model at https://models.example"),
        ("not an address", "", "the model at not an address"),
    ],
)
def test_readings_name_the_model_once(address: str, model: str, words: str) -> None:
    """A reading says which model got the text and on which machine, neither of them twice."""
    assert model_words(address, model) == words


LOCAL = "http://127.0.0.1:11434"
ALL = f"https://models.example {LOCAL} https://other.example"
TO_ALL = (
    "to plan with the model at https://models.example or {local}, on the hub's own machine or the "
    "model at https://other.example"
)


@pytest.mark.parametrize(
    ("places", "models", "words"),
    [
        (LOCAL, {}, "to plan with the model on the hub's own machine"),
        (LOCAL, {LOCAL: "small"}, "and gave it to small, on the hub's own machine"),
        (ALL, {"https://elsewhere.example": "x"}, TO_ALL.replace("{local},", "the model")),
        (
            ALL,
            {LOCAL: "small"},
            TO_ALL.format(local="small") + ", and gave it to small, on the hub's own machine",
        ),
    ],
)
def test_readings_tell_whom_they_were_for_and_who_got_them(
    places: str, models: dict[str, str], words: str
) -> None:
    """A reading names every model that it was meant for, and says of none that it got it before a
    run tells that it answered.
    """
    row = msgspec.structs.replace(rows(1)[0], endpoint=places)
    assert sentence(row, what="“Diary”", mission="Review", clock="07:00:00", models=models) == (
        f"The runner read “Diary” for “Review”, 07:00:00, {words}."
    )


def test_the_consent_names_the_model_once() -> None:
    """The consent's line about the model has its name once, and what it is."""
    shown = ModelView(rules.ENDPOINT, rules.NAME, rules.DESCRIPTION, True)
    lines = consent_lines(
        mission_title="Weekly review",
        agent_name="Mira",
        records=[Cited("notes", "n1", "Diary")],
        fingerprint="ab",
        models=[shown],
        days=30,
        mode="standard",
        new_runner=False,
    )
    assert lines[1].startswith("It is read for Mira by the runner of your hub.")
    (line,) = (line for line in lines if rules.NAME in line)
    assert line == (
        "The text is given to the model rules (offline), on the hub's own machine: finds action "
        "items and dates; not a language model; text stays on the machine where they run."
    )


@dataclass
class Liar:
    """A hub that rebuilt its audit without the newest reading, hashes and all."""

    real: Any

    async def __call__(self, client: HubClient, **options: Any) -> AuditAnswer:
        answer: AuditAnswer = await self.real(client, **options)
        kept = [row for row in answer.rows if row.seq < answer.head_seq]
        return AuditAnswer(
            rows=kept, head_seq=kept[0].seq, head_hash=kept[0].hash, more=answer.more
        )


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


@pytest.mark.anyio
@pytest.mark.postgres
async def test_removed_reading_contradicts_the_run_that_was_signed_over_it(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even a new device, which remembers nothing, sees that the hub removed a reading."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    await ada.run_now(mission)
    await home.tick()
    await ada.sync_now()
    lie = Liar(HubClient.audit)
    monkeypatch.setattr(HubClient, "audit", lambda self, **options: lie(self, **options))
    access = await ada.data_access()
    assert not access.chain_ok
    assert "the runner signed into a run" in access.chain_words
    monkeypatch.undo()
    honest = await ada.data_access()
    said = " ".join(one.sentence for one in honest.readings)
    assert "the agent Mira for “" in said
    assert "the memory of Mira for “" in said
    assert "The runner read the mission “" in said
    assert "rules:offline" not in said
    assert honest.chain_ok
    assert honest.chain_words.startswith("Complete since ")
    remembered = await operations(ada).trust.settings()
    assert remembered["seq"] == honest.entries
    monkeypatch.setattr(HubClient, "audit", lambda self, **options: lie(self, **options))
    again = await ada.data_access()
    assert not again.chain_ok
    assert again.entries == honest.entries
    home.places[0].wire.is_cut = True
    monkeypatch.undo()
    offline = await ada.data_access()
    assert (offline.chain_ok, offline.readings) == (False, ())
