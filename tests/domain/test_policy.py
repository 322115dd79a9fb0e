"""Policy: the strictest of agent, space and floor decides, over every effect and preset."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.errors import Invalid
from mana.domain.manifest import ModuleManifest
from mana.domain.policy import (
    AGGRESSIVE,
    CAUTIOUS,
    DECISIONS,
    EFFECTS,
    PRESETS,
    STANDARD,
    Policy,
    SpacePolicy,
    decide,
    is_too_often,
    policy_from_wire,
    preset_of,
)
from mana.domain.records import Records
from mana.domain.tools import Call, Outcome, Tool
from mana.registry.catalogue import BUILT_IN, build_catalogue

LIFTED = SpacePolicy(frozenset({"tool"}))
A, P, D = "auto", "propose", "deny"
MOODS = (("standard", "cautious", "aggressive"), ("as it is", "lifted"), ("clean", "tainted"))
#                            standard                  cautious                  aggressive
#                            as it is     lifted       as it is     lifted       as it is     lifted
#                            clean  taint clean  taint clean  taint clean  taint clean  taint clean  taint
TABLE: dict[str, tuple[str, ...]] = {
    "list_notes":            (A,    A,    A,    A,     A,    A,    A,    A,     A,    A,    A,    A),
    "list_tasks":            (A,    A,    A,    A,     A,    A,    A,    A,     A,    A,    A,    A),
    "get_task_stats":        (A,    A,    A,    A,     A,    A,    A,    A,     A,    A,    A,    A),
    "create_note":           (P,    P,    P,    P,     P,    P,    P,    P,     A,    A,    A,    A),
    "append_to_note":        (P,    P,    P,    P,     P,    P,    P,    P,     A,    A,    A,    A),
    "add_tag_to_note":       (P,    P,    P,    P,     P,    P,    P,    P,     A,    A,    A,    A),
    "create_task":           (P,    P,    P,    P,     P,    P,    P,    P,     A,    A,    A,    A),
    "complete_task":         (P,    P,    P,    P,     P,    P,    P,    P,     A,    A,    A,    A),
    "complete_tasks_by_title": (P,  P,    P,    P,     P,    P,    P,    P,     A,    A,    A,    A),
    "update_note":           (P,    P,    P,    P,     D,    D,    D,    D,     P,    P,    P,    P),
    "send_mail":             (P,    P,    P,    P,     D,    D,    D,    D,     P,    P,    P,    P),
    "propose_memory":        (P,    P,    P,    P,     P,    P,    P,    P,     P,    P,    P,    P),
}  # fmt: skip
# The same for an agent to whom the person allowed everything, so that only floors are left:
FLOORS: dict[str, tuple[str, ...]] = {
    "list_notes":            (A,    A,    A,    A),
    "create_task":           (A,    A,    A,    A),
    "update_note":           (P,    P,    A,    A),
    "send_mail":             (P,    P,    A,    P),
    "propose_memory":        (P,    P,    P,    P),
}  # fmt: skip


class Nothing(Call, frozen=True):
    """A call without parameters."""


def sends_nothing(call: Call, records: Records) -> Outcome:
    """Do nothing."""
    return Outcome("sent")


SEND_MAIL = Tool("send_mail", "post", "external", "Send.", Nothing, sends_nothing, lambda c, r: "")
CATALOGUE = build_catalogue((*BUILT_IN, ModuleManifest("post", "Post", "x", (), (SEND_MAIL,))))


def decided(tool: str, agent: Policy | None, lifted: str, context: str) -> str:
    """Return what a tool of the catalogue gets."""
    declared = CATALOGUE.tool(tool)
    return decide(
        tool,
        declared.effect,
        agent=agent,
        space=SpacePolicy(frozenset({tool}) if lifted == "lifted" else frozenset()),
        tainted=context == "tainted",
        always_asks=declared.always_asks,
    )


def test_the_table_names_every_tool() -> None:
    """A tool that is not in the table has no decision that anybody has looked at."""
    assert set(TABLE) == {tool.name for tool in CATALOGUE.tools}
    assert {CATALOGUE.tool(name).effect for name in FLOORS} == set(EFFECTS)


@pytest.mark.parametrize("tool", sorted(TABLE))
def test_every_tool_is_decided_as_the_table_says(tool: str) -> None:
    """Tool by preset, by what the space lifted, by what is in the context: nothing else decides."""
    got = [
        decided(tool, PRESETS[preset], lifted, context)
        for preset, lifted, context in itertools.product(*MOODS)
    ]
    assert tuple(got) == TABLE[tool]


@pytest.mark.parametrize("tool", sorted(FLOORS))
def test_floors_hold_for_an_agent_that_may_do_everything(tool: str) -> None:
    """What an agent's policy allows ends at the floor, which a space lifts where it may be lifted."""
    everything = Policy(dict.fromkeys(EFFECTS, "auto"), {tool: "auto"})
    got = [
        decided(tool, everything, lifted, context)
        for lifted, context in itertools.product(*MOODS[1:])
    ]
    assert tuple(got) == FLOORS[tool]


@pytest.mark.parametrize("tool", sorted(TABLE))
def test_a_tool_that_is_denied_is_denied_everywhere(tool: str) -> None:
    """No preset, opt-in or context softens a denial, nor the lack of an agent."""
    for preset, lifted, context in itertools.product(*MOODS):
        denied = Policy(PRESETS[preset].by_effect, {tool: "deny"})
        assert decided(tool, denied, lifted, context) == "deny"
        assert decided(tool, None, lifted, context) == "deny"


@given(st.lists(st.integers(0, 200_000), max_size=80), st.integers(0, 200_000))
def test_thirty_calls_fit_into_a_minute(moments: list[int], now_ms: int) -> None:
    """The call after the thirtieth within a minute is too many; older ones do not count."""
    recent = [moment for moment in moments if moment > now_ms - 60_000]
    assert is_too_often(moments, now_ms) == (len(recent) >= 30)


def test_the_rate_s_own_cases() -> None:
    """29 calls leave room, 30 do not, 100 old ones do, and a clock set back makes no room."""
    assert not is_too_often([0] * 29, 0)
    assert is_too_often([0] * 30, 59_999)
    assert not is_too_often([0] * 100, 60_000)
    assert is_too_often([10_000_000] * 30, 0)


def test_nothing_destructive_or_external_runs_by_itself_without_the_space() -> None:
    """An agent that may do everything still proposes what cannot be taken back."""
    everything = Policy(dict.fromkeys(EFFECTS, "auto"), {"tool": "auto"})
    for effect in ("destructive", "external"):
        assert (
            decide("tool", effect, agent=everything, space=SpacePolicy(), tainted=False)
            == "propose"
        )


def test_a_tainted_context_never_sends_by_itself() -> None:
    """Once record text is in the context, an external call is proposed whatever was lifted."""
    everything = Policy(dict.fromkeys(EFFECTS, "auto"))
    assert decide("tool", "external", agent=everything, space=LIFTED, tainted=True) == "propose"
    assert decide("tool", "external", agent=everything, space=LIFTED, tainted=False) == "auto"
    assert decide("tool", "destructive", agent=everything, space=LIFTED, tainted=True) == "auto"


def test_a_missing_agent_may_do_nothing() -> None:
    """A deleted agent means deny, not a permissive default."""
    for effect in EFFECTS:
        assert decide("tool", effect, agent=None, space=LIFTED, tainted=False) == "deny"


def test_an_effect_that_a_policy_does_not_list_is_denied() -> None:
    """A policy that lost a line does not become permissive."""
    assert decide("tool", "write", agent=Policy({}), space=LIFTED, tainted=False) == "deny"


def test_a_tool_entry_beats_the_default_in_both_directions() -> None:
    """What the person set for one tool counts for that tool, within the floor."""
    for listed, effect in itertools.product(DECISIONS, ("read", "write")):
        agent = Policy(STANDARD.by_effect, {"tool": listed})
        assert decide("tool", effect, agent=agent, space=SpacePolicy(), tainted=True) == listed  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [STANDARD, CAUTIOUS, AGGRESSIVE])
def test_policies_survive_the_wire(policy: Policy) -> None:
    """A stored policy is read back as it was, and its preset recognised."""
    assert policy_from_wire(policy.to_wire()) == policy
    assert PRESETS[preset_of(policy) or ""] == policy


@pytest.mark.parametrize(
    "wire",
    [
        None,
        [],
        {"tools": {"x": "allow"}},
        {"defaultsByEffect": {"admin": "auto"}},
        {"defaultForAi": "auto"},
        {"tools": ["x"]},
    ],
)
def test_a_malformed_policy_is_no_policy(wire: object) -> None:
    """An unreadable policy is refused, so that its agent may do nothing."""
    with pytest.raises(Invalid):
        policy_from_wire(wire)  # type: ignore[arg-type]
