"""A member who is put out in the middle of an answer: it is whole, or it is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mana.hub.sync import store
from mana.protocol.messages import PullAnswer, StateAnswer
from mana.testing.postgres import Database
from mana.testing.spaces import removing
from tests.runner.world import now_ms
from tests.tenancy.household import SHARED_TASK, Household, household

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


def removed_in_between(made: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Bob be removed right after the hub has read where the log ends for him."""
    real: Any = store._head

    async def head_then_removal(*args: Any) -> Any:
        found = await real(*args)
        monkeypatch.setattr(store, "_head", real)
        ada, bob, vic = (made.people[name].account for name in ("ada", "bob", "vic"))
        await made.take("ada", removing(made.space, ada, bob, [ada, vic], now_ms=now_ms()))
        return found

    monkeypatch.setattr(store, "_head", head_then_removal)


async def test_a_pull_skips_nothing_when_membership_moves(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull that was under way when its reader was removed moves no cursor past changes that it
    does not bring: who joins again later goes on from there (S1, S9)."""
    async with household(database, tmp_path) as made:
        path = f"/api/v1/spaces/{made.space.space_id}/changes"
        before = (await made.people["bob"].call("GET", path)).json()
        removed_in_between(made, monkeypatch)
        answer = await made.people["bob"].call("GET", path)
        if answer.status_code == 200:
            page = msgspec.json.decode(answer.content, type=PullAnswer)
            assert page.cursor == before["cursor"]
            assert len(page.changes) == len(before["changes"]) > 0
        else:
            assert answer.status_code == 404
        assert (await made.people["bob"].call("GET", path)).status_code == 404


@pytest.mark.parametrize("what", ["records", f"records/tasks/{SHARED_TASK}"])
async def test_a_state_is_whole_when_membership_moves(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A page of the state that was under way when its reader was removed is not read as the end
    of an empty space, nor a record as gone (S9)."""
    async with household(database, tmp_path) as made:
        path = f"/api/v1/spaces/{made.space.space_id}/{what}"
        before = (await made.people["bob"].call("GET", path)).json()
        removed_in_between(made, monkeypatch)
        answer = await made.people["bob"].call("GET", path)
        if answer.status_code == 200:
            state = msgspec.json.decode(answer.content, type=StateAnswer)
            assert len(state.records) == len(before["records"]) > 0
        else:
            assert answer.status_code == 404
