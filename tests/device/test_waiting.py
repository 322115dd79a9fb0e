"""What a mission waits for is told as the hub and this device work: a change, or room under a cap."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mana.device.run_ledger import MissionMarks
from mana.device.views import OnChange, RunView
from mana.device.waiting import HOUR_MS, cap_wait, on_change
from mana.domain.cadences import Cadence
from mana.domain.clock import iso_ms
from mana.planning.budget import budget_reason
from mana.protocol.messages import UsageLine

MINUTE_MS = 60_000
NOW_MS = 1_790_000_000_000
HOUR = NOW_MS // HOUR_MS * HOUR_MS
CADENCE = Cadence("onChange", debounce_minutes=5, spacing_minutes=60)
RUN = RunView("o1", NOW_MS - 2 * HOUR_MS, "change", "done", "", "", None, 0)
IDS = {"mission": "m", "agent": "a", "account": "p"}


def test_nothing_waits_and_the_last_run_is_not_long_past() -> None:
    """What the hub has not queued does not wait; a change now would wait for the spacing."""
    ran = replace(RUN, started_ms=NOW_MS - 20 * MINUTE_MS)
    changes = [NOW_MS - 9 * HOUR_MS, NOW_MS - 30 * MINUTE_MS]
    found = on_change(CADENCE, changes=changes, runs=[ran], here=None, since_ms=0, now_ms=NOW_MS)
    assert found == OnChange(changes[-1], None, NOW_MS + 40 * MINUTE_MS)
    long_past = replace(ran, started_ms=NOW_MS - 2 * HOUR_MS)
    found = on_change(CADENCE, changes=[], runs=[long_past], here=None, since_ms=0, now_ms=NOW_MS)
    assert found == OnChange(None, None, None)


def test_what_the_hub_has_queued_says_when_it_runs() -> None:
    """The moment of the hub's own ledger is told, whatever this device would reckon."""
    due_ms = NOW_MS + 3 * MINUTE_MS
    queued = replace(RUN, state="queued", due_ms=due_ms)
    ran = replace(RUN, started_ms=NOW_MS - MINUTE_MS)
    found = on_change(
        CADENCE, changes=[NOW_MS], runs=[queued, ran], here=None, since_ms=0, now_ms=NOW_MS
    )
    assert found == OnChange(NOW_MS, due_ms, None)


def test_on_this_device_a_change_waits_as_its_runner_counts() -> None:
    """Changes later than the last run wait for their rest, and for the spacing where it is longer."""
    changes = [NOW_MS - 3 * HOUR_MS, NOW_MS - MINUTE_MS]
    since_ms = NOW_MS - 2 * HOUR_MS
    found = on_change(
        CADENCE, changes=changes, runs=[], here=MissionMarks(), since_ms=since_ms, now_ms=NOW_MS
    )
    assert found.due_ms == NOW_MS + 4 * MINUTE_MS
    ran = replace(RUN, started_ms=NOW_MS - 10 * MINUTE_MS)
    found = on_change(
        CADENCE, changes=changes, runs=[ran], here=MissionMarks(), since_ms=since_ms, now_ms=NOW_MS
    )
    assert found.due_ms == NOW_MS + 50 * MINUTE_MS


def line(scope: str, name: str, ago: int, tokens: int = 10) -> UsageLine:
    """Return what was used in the hour so many before the current one."""
    return UsageLine(iso_ms(HOUR - ago * HOUR_MS), scope, name, tokens, 0, 1)


@pytest.mark.parametrize("scope", ["mission", "agent", "account"])
def test_a_used_up_cap_is_named_with_when_there_is_room(scope: str) -> None:
    """The oldest hour of the day that counts leaves it; others' use, and older, is not looked at."""
    skipped = replace(RUN, state="skipped", reason=budget_reason(0, 500, scope, "tokens"))  # type: ignore[arg-type]
    later = replace(RUN, state="queued", scheduled_ms=NOW_MS + HOUR_MS)
    used = [
        line(scope, IDS[scope], 25),
        line(scope, IDS[scope], 24, tokens=0),
        line(scope, IDS[scope], 20),
        line(scope, IDS[scope], 1),
        line(scope, "another", 24),
    ]
    found = cap_wait(
        [later, skipped],
        caps={(scope, "tokens"): 500},
        ids=IDS,
        used=used,
        currency="EUR",
        now_ms=NOW_MS,
    )
    assert found is not None
    assert found.room_ms == HOUR + 5 * HOUR_MS
    assert (found.scope, found.unit, found.cap) == (scope, "tokens", 500)
    assert "500 tokens a day is used up" in found.words


def test_a_cap_that_is_another_by_now_holds_nobody() -> None:
    """Once the person raised a cap, or the mission ran, it does not wait for the old one."""
    skipped = replace(RUN, state="skipped", reason=budget_reason(3, 500, "mission", "cost"))
    used = [line("mission", "m", 1)]

    def waits(*runs: RunView, cap: int | None = 500) -> bool:
        caps = {("mission", "cost"): cap}
        return (
            cap_wait(runs, caps=caps, ids=IDS, used=used, currency="EUR", now_ms=NOW_MS) is not None
        )

    assert waits(skipped)
    assert waits(replace(RUN, state="missed"), skipped)
    assert not waits(skipped, cap=None)
    assert not waits(skipped, cap=600)
    assert not waits(RUN, skipped)
    assert not waits(replace(RUN, state="leased"), skipped)
    assert not waits(replace(skipped, reason="budget:offline"))


def test_a_cap_of_nothing_has_no_room_ever() -> None:
    """A cap of 0 is not told to be free again; the operator's has no hours that are known here."""
    for scope, cap in (("mission", 0), ("hub", 900)):
        skipped = replace(RUN, state="skipped", reason=budget_reason(0, cap, scope, "tokens"))  # type: ignore[arg-type]
        found = cap_wait(
            [skipped],
            caps={("mission", "tokens"): 0},
            ids=IDS,
            used=[line("mission", "m", 1)],
            currency="EUR",
            now_ms=NOW_MS,
        )
        assert found is not None
        assert found.room_ms is None
