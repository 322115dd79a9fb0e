"""The engine from the terminal: stops, limits, models, edits, policy and letters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mana.cli.caps import optional_cost, optional_whole
from mana.device.names import FLAGS
from mana.device.views import CapWait, OnChange, RunView, UsageDay
from mana.domain.cadences import Cadence
from mana.domain.errors import Invalid
from mana.domain.policy import AGGRESSIVE, Policy
from mana.domain.tools import TASK
from mana.planning.subagents import may_delegate
from tests.cli.fake_host import NOW_MS
from tests.cli.terminal import Terminal, signed_up, with_proposals

MINUTE_MS = 60_000


def steps_of(terminal: Terminal) -> list[str]:
    """Return the ids of what waits, in the order of their run."""
    return [one["stepId"] for one in terminal.json("inbox")["proposals"]]


def tasks_of(terminal: Terminal) -> list[str]:
    """Return the titles of the tasks."""
    return [one["values"]["title"] for one in terminal.json("task", "list")["tasks"]]


# Missions


def test_a_mission_takes_every_cadence_and_limit() -> None:
    """Cron, on change, missed moments and limits are said by words and read back."""
    terminal = with_proposals()
    said = terminal.json(
        "mission", "edit", "weekly", "--every", "cron 30 7 * * mon-fri", "--if-missed", "all",
        "--tokens-a-day", "5000", "--cost-a-day", "0.25",
    )["mission"]  # fmt: skip
    assert said["cadence"] == {"kind": "cron", "expression": "30 7 * * MON-FRI"}
    assert (said["ifMissed"], said["tokensPerDayMax"], said["costPerDayMax"]) == (
        "all",
        5_000,
        250_000,
    )
    shown = terminal.ok("mission", "show", "weekly")
    assert "5,000 tokens and 0.25 EUR" in shown
    assert "each run, the oldest first" in shown
    said = terminal.json(
        "mission", "edit", "weekly", "--every", "on-change 2h after 10m", "--cost-a-day", "none"
    )["mission"]
    assert said["cadence"]["spacingMinutes"] == 120
    assert said["cadence"]["debounceMinutes"] == 10
    assert (said["tokensPerDayMax"], said["costPerDayMax"]) == (5_000, None)
    for wrong in ("cron 7", "on-change soon", "on-change after"):
        assert terminal.run("mission", "edit", "weekly", "--every", wrong).status == 2
    for wrong in ("on-change 2m", "on-change 2h after 2d"):
        refused = terminal.run("mission", "edit", "weekly", "--every", wrong)
        assert refused.status == 2
        assert 'Write "on-change 30m"' in refused.err
        assert "Minutes" not in refused.err
    assert terminal.device.mission_views[said["missionId"]].cadence == Cadence(
        "onChange", debounce_minutes=10, spacing_minutes=120
    )


@pytest.mark.parametrize("text", ["1,50", "-1", "1.1234567", "", "1e3", "٣", "0x1", "99999999999"])
def test_an_amount_is_never_guessed(text: str) -> None:
    """What could mean two amounts is refused, so that no limit is a hundred times what was meant."""
    with pytest.raises(Invalid):
        optional_cost(text)
    with pytest.raises(Invalid):
        optional_whole(text, what="it", most=10)


def test_amounts_are_exact() -> None:
    """An amount is whole millionths, as typed."""
    assert [optional_cost(text) for text in ("1.50", "0", "0.000001", "none")] == [
        1_500_000,
        0,
        1,
        None,
    ]


def test_the_ledger_says_what_runs_cost_and_why_they_ended() -> None:
    """Costs, retries, reasons and the next try of each run are shown; all of it in JSON."""
    terminal = with_proposals()
    (mission,) = terminal.device.mission_views.values()
    again = RunView(
        "o2", NOW_MS, "scheduled", "queued", "", "", None, 900, cost=12_000, tries=2,
        last_reason="rate-limit", last_reason_words="The model's provider asked to wait.",
        due_ms=NOW_MS + 5 * MINUTE_MS,
    )  # fmt: skip
    stopped = RunView("o1", NOW_MS, "scheduled", "failed", "stopped", "It was stopped.", None, 0)
    terminal.device.set_mission(mission.mission_id, runs=(again, stopped))
    shown = terminal.ok("mission", "show", "weekly")
    line = next(line for line in shown.splitlines() if "waits for its turn" in line)
    assert "The model's provider asked to wait. Tried again in 5 min." in line
    assert line.split()[1:3] == ["on", "time"]
    assert line.split()[7:11] == ["900", "0.01", "EUR", "2"]
    ended = next(line for line in shown.splitlines() if "It was stopped." in line)
    assert ended.split()[1:4] == ["on", "time", "stopped"]
    runs = terminal.json("mission", "show", "weekly")["mission"]["runs"]
    assert (runs[0]["tries"], runs[0]["lastReason"], runs[0]["cost"]) == (2, "rate-limit", 12_000)


def test_no_next_run_is_told_while_all_work_is_stopped() -> None:
    """Neither status nor mission names a moment at which nothing would run; a later one is not due."""
    terminal = with_proposals()
    (mission,) = terminal.device.mission_views.values()
    later = NOW_MS + 30 * MINUTE_MS
    again = RunView(
        "o2", NOW_MS, "manual", "queued", "", "", None, 0, tries=2, last_reason="provider",
        last_reason_words="It could not be reached.", due_ms=NOW_MS + 5 * MINUTE_MS,
    )  # fmt: skip
    ahead = RunView("o3", later, "scheduled", "queued", "", "", None, 0)
    terminal.device.set_mission(mission.mission_id, runs=(ahead, again), next_ms=(later,))
    shown = terminal.ok("mission", "show", "weekly")
    assert [word in shown for word in ("Tried again", "not due yet")] == [True, True]
    terminal.ok("work", "stop")
    shown = terminal.ok("mission", "show", "weekly")
    assert "none, while all work is stopped" in shown
    assert "It could not be reached." in shown
    assert "Tried again" not in shown
    assert "none, while all work is stopped" in terminal.ok("status")
    terminal.ok("work", "go-on")
    assert "while all work is stopped" not in terminal.ok("mission", "show", "weekly")


def test_what_a_mission_waits_for_is_told_in_words() -> None:
    """A used-up cap names its mission and when there is room; a mission on change its next moment."""
    terminal = with_proposals()
    (mission,) = terminal.device.mission_views.values()
    wait = CapWait("mission", "tokens", 500, "The mission's budget is used up.", NOW_MS + MINUTE_MS)
    assert "goes on" in terminal.ok("work")
    terminal.device.set_mission(mission.mission_id, cap_wait=wait)
    shown = terminal.ok("work")
    assert "goes on" not in shown
    assert (
        "“Weekly review” waits. The mission's budget is used up. Some of it is free again" in shown
    )
    assert "The mission's budget is used up" in terminal.ok("mission", "list")
    assert "free again in 1 min" in terminal.ok("mission", "show", "weekly")
    change = OnChange(NOW_MS - MINUTE_MS, None, NOW_MS + 5 * MINUTE_MS)
    terminal.device.set_mission(mission.mission_id, cap_wait=None, on_change=change, next_ms=())
    shown = terminal.ok("mission", "show", "weekly")
    assert "when its input changes, in 5 min at the earliest." in shown
    assert "Somebody last changed one 1 min ago. What agents write does not start it." in shown
    due = replace(change, due_ms=NOW_MS + 3 * MINUTE_MS)
    terminal.device.set_mission(mission.mission_id, on_change=due)
    assert "in 3 min at the earliest" in terminal.ok("mission", "show", "weekly")


def test_what_was_found_in_a_run_and_what_it_cost_stand_on_its_card() -> None:
    """The card says tokens and money of the whole run, and that a text tried to give orders."""
    terminal = with_proposals()
    step = steps_of(terminal)[0]
    known = terminal.device.proposals[step]
    terminal.device.proposals[step] = replace(known, cost=30_000, flags=("marker",))
    shown = terminal.ok("inbox", "show", step)
    assert "the whole run: 412 tokens, 0.03 EUR, rules" in shown
    assert FLAGS["marker"] in shown
    assert "waits for a decision" in shown


def test_sub_agents_are_switched_off_and_on() -> None:
    """The switch changes nothing else of a policy, and stands beside the tools in words."""
    terminal = with_proposals()

    def policy() -> Policy:
        (view,) = terminal.device.agent_views.values()
        assert view.policy is not None
        return view.policy

    before = policy()
    terminal.ok("agent", "edit", "Mira", "--no-sub-agents")
    assert not may_delegate(policy())
    assert policy().by_effect == before.by_effect
    terminal.ok("agent", "edit", "Mira", "--sub-agents")
    assert policy() == before
    terminal.ok("agent", "edit", "Mira", "--policy", "aggressive", "--no-sub-agents")
    assert policy() == Policy(AGGRESSIVE.by_effect, {TASK: "deny"})
    assert "add a task" in terminal.ok("agent", "show", "Mira")


def test_a_mission_is_stopped_and_one_that_failed_too_often_resumed() -> None:
    """`stop` ends the run and not the schedule; `resume` clears failures, and wakes from a pause."""
    terminal = with_proposals()
    (mission,) = terminal.device.mission_views.values()
    going = RunView("o1", NOW_MS, "scheduled", "leased", "", "", None, 0, phase="model", round=2)
    terminal.device.set_mission(mission.mission_id, runs=(going,))
    assert "Asking the model, round 2" in terminal.ok("mission", "show", "weekly")
    stopped = terminal.json("mission", "stop", "weekly")
    after = stopped["mission"]
    assert (after["runs"][0]["reason"], after["state"], stopped["stopped"]) == (
        "stopped",
        "active",
        True,
    )
    assert "nothing to stop" in terminal.ok("mission", "stop", "weekly")
    due = replace(going, state="queued")
    for waits, is_stopped in ((due, False), (replace(due, tries=1), True)):
        terminal.device.set_mission(mission.mission_id, runs=(waits,))
        assert terminal.json("mission", "stop", "weekly")["stopped"] is is_stopped
    terminal.device.set_mission(
        mission.mission_id, hold="errored", failures=5, failure="auth", state="paused",
        failure_words="The provider refused the key.",
    )  # fmt: skip
    assert "5 times in a row. The provider refused the key." in terminal.ok(
        "mission", "show", "weekly"
    )
    after = terminal.json("mission", "resume", "weekly")["mission"]
    assert (after["hold"], after["failures"], after["state"]) == ("", 0, "active")
    terminal.device.set_mission(mission.mission_id, raised_words="Bob raised a limit of a day.")
    shown = terminal.ok("mission", "show", "weekly")
    assert f"Bob raised a limit of a day. mana mission agree {mission.mission_id}" in shown
    assert terminal.json("mission", "agree", "weekly")["mission"]["raisedWords"] == ""
    assert "nothing to agree to" in terminal.ok("mission", "agree", "weekly")
    terminal.device.online = False
    assert terminal.run("mission", "stop", "weekly").status == 6


# All work


def test_all_work_stops_and_goes_on() -> None:
    """While work is stopped nothing can be run, status says so, and the code is the hub's."""
    terminal = with_proposals()
    assert "Let it go on" in terminal.ok("work", "stop")
    refused = terminal.run("mission", "run", "weekly", "--json")
    assert (refused.status, refused.problem["code"]) == (5, "WORK_STOPPED")
    assert "stopped by you" in terminal.ok("work")
    assert "stopped by you" in terminal.ok("status")
    terminal.device.online = False
    assert "The hub does not know it yet" in terminal.ok("work", "show")
    terminal.device.online = True
    assert terminal.json("work", "go-on")["work"]["stoppedAt"] is None
    terminal.ok("mission", "run", "weekly")
    assert "stopped" not in terminal.ok("status")


def test_another_hub_is_named_before_it_is_taken() -> None:
    """Where the hub calls itself another, `work` says both names and what to type, and only that."""
    terminal = signed_up()
    terminal.device.work = replace(terminal.device.work, hub_known="1" * 64, hub_said="2" * 64)
    shown = terminal.ok("work")
    assert f"mana work accept-hub {'2' * 16}" in shown
    assert "1" * 16 in shown
    assert terminal.run("work", "accept-hub", "3" * 16).status == 2
    assert "from now on" in terminal.ok("work", "accept-hub", "2" * 16)
    assert "accept-hub" not in terminal.ok("work")
    terminal.device.work = replace(terminal.device.work, hub_said="", hub_unnamed=True)
    shown = terminal.ok("work")
    assert "does not say its name" in shown
    assert "accept-hub" not in shown


def test_who_raises_a_limit_that_another_granted_is_told() -> None:
    """It holds once the grantor grants again, who reads why of a grant that works as it is."""
    terminal = with_proposals()
    terminal.ok("mission", "edit", "weekly", "--tokens-a-day", "5000")
    terminal.ok("grant", "give", "weekly", "--yes")
    (mission,) = terminal.device.mission_views.values()
    given = mission.grant
    assert given is not None
    raising = ("mission", "edit", "weekly", "--tokens-a-day")
    assert "grants again" not in terminal.ok(*raising, "6000")
    terminal.device.set_mission(mission.mission_id, grant=replace(given, own=False))
    assert "grants again" in terminal.ok(*raising, "none")
    assert "grants again" not in terminal.ok(*raising, "7000")
    lower = "Bo raised a limit of a day since."
    terminal.device.set_mission(mission.mission_id, grant=replace(given, stale_reason=lower))
    shown = terminal.ok("mission", "show", "weekly")
    assert lower in shown
    assert "no longer fits" not in shown
    agreed = terminal.ok("mission", "agree", "weekly")
    assert f"mana grant give {mission.mission_id}" in agreed


def test_limits_of_all_work_are_set_and_taken_away() -> None:
    """A limit that is not named stays; `none` takes it away; nothing named is no command."""
    terminal = signed_up()
    terminal.ok("work", "caps", "--tokens-a-day", "100000", "--cost-a-day", "2.00")
    now = terminal.json("work", "caps", "--tokens-a-day", "none")["work"]
    assert (now["tokensPerDayMax"], now["costPerDayMax"]) == (None, 2_000_000)
    assert terminal.run("work", "caps").status == 2
    terminal.device.work = replace(terminal.device.work, hub_stopped=True, hub_cost_per_day_max=1)
    shown = terminal.ok("work")
    assert "stopped by whoever runs it" in shown
    assert "0.000001 EUR" in shown
    terminal.device.online = False
    assert terminal.run("work", "caps", "--cost-a-day", "1").status == 6


def test_use_is_shown_by_day_and_by_name() -> None:
    """Each scope is added up by itself; anything used shows in the bars; nothing is said twice."""
    terminal = signed_up()
    assert "Nothing was used." in terminal.ok("usage")
    lines = (("account", "a", "", 3), ("agent", "m", "Mira", 2), ("agent", "x", "", 1))
    terminal.device.days = (
        UsageDay("2026-11-20", "account", "a", "", 1, 0, 1),
        *(
            UsageDay("2026-11-21", scope, ident, name, tokens * 1_000_000, 0, 1)
            for scope, ident, name, tokens in lines
        ),
    )
    by_day = [line.split() for line in terminal.ok("usage", "--days", "3").splitlines()[1:]]
    assert [line[:2] for line in by_day] == [
        ["2026-11-19", "0"],
        ["2026-11-20", "1"],
        ["2026-11-21", "3,000,000"],
    ]
    assert [len(line[-1]) for line in by_day[1:]] == [1, 30]
    by_agent = [line.split() for line in terminal.ok("usage", "--by", "agent").splitlines()[1:]]
    assert [line[:2] for line in by_agent] == [["Mira", "2,000,000"], ["x", "1,000,000"]]
    terminal.device.online = False
    assert "only what this device used" in terminal.ok("usage")
    assert terminal.run("usage", "--days", "93").status == 2


# Models and agents


def test_a_key_is_never_an_argument_and_never_shown() -> None:
    """It comes from a prompt, a variable or standard input, and stays unless another is given."""
    terminal = signed_up()
    add = ("model", "add", "Kitchen", "--url", "https://models.example/v1", "--model", "large")
    assert terminal.run(*add, "--key").err.startswith("mana: this needs a secret")
    assert terminal.run(*add, "--key", "sk-1").status == 2
    made = terminal.run(*add, "--key", "--json", stdin="sk-1\n")
    assert (made.status, "sk-1" in made.out + made.err) == (0, False)
    ident = made.document["model"]["modelId"]
    keys = terminal.device.own_keys
    assert keys == {ident: "sk-1"}
    terminal.ok("model", "edit", "kitchen", "--label", "Box", "--prompt-price", "2.5")
    assert keys == {ident: "sk-1"}
    terminal.hidden = lambda question: "sk-2"
    terminal.ok("model", "edit", "box", "--key")
    assert keys == {ident: "sk-2"}
    terminal.environ["MANA_MODEL_KEY"] = "sk-3"
    terminal.ok("model", "edit", ident[:8], "--key")
    assert keys == {ident: "sk-3"}
    assert "sk-" not in terminal.ok("model", "list") + terminal.ok("model", "list", "--json")
    terminal.ok("model", "edit", "box", "--no-key")
    assert keys == {ident: ""}
    assert terminal.run("model", "edit", "box", "--key", "--no-key").status == 2
    assert terminal.run("model", "remove", "box").status == 2
    terminal.ok("model", "remove", "box", "--yes")
    assert terminal.json("model", "list")["models"] == []


def test_an_agent_is_given_a_model_and_limits() -> None:
    """A model is named as it is listed or by its label; empty text and `none` clear."""
    terminal = signed_up()
    terminal.ok(
        "model", "add", "Kitchen", "--url", "https://models.example", "--model", "large"
    )  # fmt: skip
    ident = terminal.json("model", "list")["models"][0]["modelId"]
    made = terminal.json(
        "agent", "create", "Mira", "--model", "kitchen", "--cost-a-day", "1.50", "--at-once", "3",
        "--memory", "Nuts.",
    )["agent"]  # fmt: skip
    assert (made["model"], made["costPerDayMax"], made["concurrentMax"]) == (
        f"own:{ident}",
        1_500_000,
        3,
    )
    shown = terminal.ok("agent", "show", "mira")
    assert "at most 1.50 EUR" in shown
    assert "3 missions" in shown
    assert terminal.json("agent", "edit", "mira", "--model", "big")["agent"]["model"] == "big"
    assert terminal.run("agent", "edit", "mira", "--model", "bigger").status == 3
    cleared = terminal.json(
        "agent", "edit", "mira", "--model", "", "--memory", "", "--cost-a-day", "none"
    )["agent"]
    assert (cleared["model"], cleared["memory"], cleared["costPerDayMax"]) == ("", "", None)


# Deciding


def test_an_edit_is_shown_before_it_is_done() -> None:
    """The first try shows what the change comes to and does nothing; the same again does it."""
    terminal = with_proposals()
    step = steps_of(terminal)[0]
    change = ("approve", step, "--set", "title=Ring on Monday", "--set", "dueDate=tomorrow")
    first = terminal.run(*change, "--json")
    assert (first.status, first.out, first.problem["code"]) == (5, "", "EDIT_UNSEEN")
    assert first.problem["detail"]["proposal"]["params"]["dueDate"] == "2026-11-22"
    assert tasks_of(terminal) == []
    done = terminal.json(*change)["proposal"]
    assert (done["state"], done["edited"]) == ("approved", True)
    assert tasks_of(terminal) == ["Ring on Monday"]
    assert "Monday” (You changed it before you approved it)\n" in terminal.ok("timeline")
    terminal.device.proposals[step] = replace(terminal.device.proposals[step], feedback="Good.")
    assert "Monday” (Good, changed before it was approved)\n" in terminal.ok("timeline")


def test_a_preview_writes_nothing() -> None:
    """`--preview` shows what would happen, with what is wrong of it, and decides nothing."""
    terminal = with_proposals()
    one, other = steps_of(terminal)
    shown = terminal.ok("approve", one, "--set", "title=Ring", "--preview")
    assert "+ Title: Ring" in shown
    assert "Proposed was: Add task “Call the dentist”" in shown
    assert "Cannot be so: title: " in terminal.ok("approve", one, "--set", "title=", "--preview")
    assert len(terminal.json("approve", one, other, "--preview")["proposals"]) == 2
    assert "sync" not in terminal.json("approve", one, "--preview")
    assert tasks_of(terminal) == []
    assert len(steps_of(terminal)) == 2


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--set", "nope=1"), "PARAMETER_UNKNOWN"),
        (("--unset", "nope"), "PARAMETER_UNKNOWN"),
        (("--set", "title"), "VALUE_MISREAD"),
        (("--set", "dueDate=someday"), "UNKNOWN_DAY"),
    ],
)
def test_what_cannot_be_set_is_said(options: tuple[str, ...], code: str) -> None:
    """A name or value that the proposal does not have is an error with a code, and changes nothing."""
    terminal = with_proposals()
    printed = terminal.run("approve", steps_of(terminal)[0], *options, "--json")
    assert (printed.status, printed.problem["code"]) == (2, code)
    assert len(steps_of(terminal)) == 2


def test_several_are_decided_together() -> None:
    """Steps of one run are approved all or none, and rejected with a reason's code."""
    terminal = with_proposals()
    one, other = steps_of(terminal)
    terminal.device.stands_in_the_way = other
    failed = terminal.run("approve", one, other, "--json")
    assert failed.problem["detail"]["stepId"] == other
    assert tasks_of(terminal) == []
    terminal.device.stands_in_the_way = ""
    assert len(terminal.json("approve", one[:10] + one[-2:], one, other)["proposals"]) == 2
    assert sorted(tasks_of(terminal)) == ["Call the dentist", "Water the plants"]
    terminal.ok("mission", "run", "weekly")
    two = steps_of(terminal)
    both = terminal.json("reject", *two, "--because", "not-now", "--reason", "In May.")
    assert {step["rejectReason"] for step in both["proposals"]} == {"not-now"}
    assert "Not now (2): “In May.”" in terminal.ok("mission", "show", "weekly")
    assert terminal.run("reject", *two, "--because", "bored").status == 2
    assert terminal.run("approve", *two, "--set", "title=x").status == 2


def test_a_run_is_commented_on() -> None:
    """What is said of a run stands on the timeline, and can be taken back."""
    terminal = with_proposals()
    run = terminal.json("timeline")["timeline"][0]["iterationId"]
    terminal.ok("inbox", "comment", run[:8], "Fewer, please.")
    assert "You said: Fewer, please." in terminal.ok("timeline")
    terminal.ok("inbox", "comment", run, "")
    assert "You said" not in terminal.ok("timeline")
    assert terminal.run("inbox", "comment", "ffffffff", "x").status == 3


# A space's policy, and letters


def test_a_tool_is_lifted_only_with_a_yes() -> None:
    """Without a yes nothing is lifted; who manages nothing is refused; both are kept on record."""
    terminal = signed_up()
    lift = ("space", "policy", "lift", "personal", "update_note")
    assert terminal.run(*lift).status == 2
    assert "Agents ask before every such tool" in terminal.ok("space", "policy", "show", "personal")
    lifted = terminal.json(*lift, "--yes")["spacePolicy"]
    assert [one["tool"] for one in lifted["lifted"]] == ["update_note"]
    terminal.ok("space", "policy", "unlift", "personal", "update_note")
    now = terminal.json("space", "policy", "show", "personal")["spacePolicy"]
    assert [one["action"] for one in now["history"]] == ["removed", "added"]
    terminal.device.policy_is_mine = False
    refused = terminal.run(*lift, "--yes")
    assert (refused.status, "MANAGERS_ONLY" in refused.err) == (4, True)


def test_letters_are_on_only_when_the_address_is_confirmed() -> None:
    """An address alone sends nothing; its code switches letters on, and it can be forgotten."""
    terminal = signed_up()
    assert terminal.json("letters", "address", "ada@example.org")["letters"]["enabled"] is False
    assert terminal.run("letters", "confirm").status == 4
    terminal.environ["MANA_LETTERS_CODE"] = "0000"
    assert terminal.run("letters", "confirm").status == 2
    terminal.environ["MANA_LETTERS_CODE"] = "12345678"
    assert terminal.json("letters", "confirm")["letters"]["enabled"] is True
    assert terminal.json("letters", "off")["letters"]["address"] == "ada@example.org"
    assert terminal.json("letters", "off", "--forget")["letters"]["address"] == ""
    terminal.device.online = False
    assert terminal.run("letters").status == 6
