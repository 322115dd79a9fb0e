"""Policy: the strictest of agent, space and floor decides, over every effect and preset."""

from __future__ import annotations

import itertools

import pytest

from mana.domain.errors import Invalid
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
    policy_from_wire,
    preset_of,
)

LIFTED = SpacePolicy(frozenset({"tool"}))
TABLE = {
    ("standard", "read"): "auto",
    ("standard", "write"): "propose",
    ("standard", "destructive"): "propose",
    ("standard", "external"): "propose",
    ("cautious", "read"): "auto",
    ("cautious", "write"): "propose",
    ("cautious", "destructive"): "deny",
    ("cautious", "external"): "deny",
    ("aggressive", "read"): "auto",
    ("aggressive", "write"): "auto",
    ("aggressive", "destructive"): "propose",
    ("aggressive", "external"): "propose",
}


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("effect", EFFECTS)
def test_presets_decide_as_the_design_says(preset: str, effect: str) -> None:
    """Each preset gives each effect the decision that is written down, tainted or not."""
    for tainted in (False, True):
        got = decide(
            "tool",
            effect,
            agent=PRESETS[preset],
            space=SpacePolicy(),
            tainted=tainted,
        )
        assert got == TABLE[preset, effect]


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
