"""The consent in plain words: who would read what, where it goes, how long, how to end it.

Pure. Every sentence says a fact that the device has checked or knows; nothing is promised on
the hub's behalf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mana.device.opened import shortened
from mana.device.views import Cited, ModelView
from mana.device.words import CURRENCY, kind_words
from mana.domain.grants import GrantCaps
from mana.domain.money import cap_words

TITLES_MAX: Final = 12


def consent_lines(
    *,
    mission_title: str,
    agent_name: str,
    records: Sequence[Cited],
    fingerprint: str,
    models: Sequence[ModelView],
    days: int,
    mode: str,
    new_runner: bool,
    successor: bool = False,
    shared: bool = False,
    caps: GrantCaps | None = None,
    currency: str = CURRENCY,
) -> tuple[str, ...]:
    """Return the sentences of a consent, in the order in which a person reads them."""
    life = "1 day" if days == 1 else f"{days} days"
    they_are = "It is" if len(records) == 1 else "They are"
    lines = [
        f"“{shortened(mission_title)}” may read {_counted(records)}: {_titles(records)}.",
        (
            f"{they_are} read for {shortened(agent_name)} by the runner of your hub. Its fingerprint is "
            f"{fingerprint}."
        ),
    ]
    if new_runner:
        lines.append(
            "This is not the runner of your earlier grants. Ask whoever runs the hub before you "
            "go on."
        )
    if successor:
        lines.append(
            "The runner has a new key since your earlier grants; the key before it signed this one."
        )
    lines += [_model_line(model) for model in models]
    lines += [
        (
            "It reads nothing else, and changes nothing: what it wants to change comes to your inbox, "
            "or is decided on your device by the agent's policy."
        ),
        f"This ends by itself after {life}. A record that you add later is not included.",
        "Every reading is written down before it happens, and you see it under Data access.",
        "You can end it at any moment with Revoke; then the next reading is refused.",
    ]
    if shared:
        lines.append("What it writes about them, every member of this space can read.")
    if caps is not None:
        lines.append(_caps_line(caps, currency))
    if mode == "standard":
        lines.append(
            "Your account is in standard mode: whoever runs the hub and holds its key could read "
            "your data even without this. Only zero-knowledge mode would withstand them."
        )
    else:
        lines.append(
            "Your account is in zero-knowledge mode, and you have allowed grants under Security. "
            "With this one, the keys of exactly these records leave your devices for the runner: "
            "whoever runs the hub could read them, and what the runner writes, until it ends. "
            "Everything else stays out of their reach."
        )
    return tuple(lines)


def _caps_line(caps: GrantCaps, currency: str) -> str:
    """Return what the person pays at most, whatever other members set."""
    parts = [
        f"{whose} {words}"
        for whose, tokens, cost in (
            ("the mission", caps.mission_tokens, caps.mission_cost),
            ("its agent", caps.agent_tokens, caps.agent_cost),
        )
        if (words := cap_words(tokens, cost, currency))
    ]
    if not parts:
        return (
            "It runs on your account, and neither the mission nor its agent has a limit of a day: "
            "only the limits of your account hold."
        )
    return (
        f"It runs on your account, with these limits of a day: {', '.join(parts)}. Other members "
        "can lower them; a higher one holds only when you grant again."
    )


def _model_line(model: ModelView) -> str:
    if model.key_goes_along is not None:
        return _own_line(model)
    where = "on the hub's own machine" if model.local else f"at {model.endpoint}"
    name = model.model or model.endpoint
    # A description begins with the model's name, which stands in the sentence already.
    said = model.description.strip().removeprefix(f"{name}:").strip().rstrip(".")
    text = f"The text is given to the model {name}, {where}"
    return f"{text}: {said}." if said else f"{text}."


def _own_line(model: ModelView) -> str:
    """Return where the text goes with a model of the person's own, and what goes along."""
    text = f"The text is given to your own model {model.model}, at {model.endpoint}."
    if not model.key_goes_along:
        return f"{text} Its address leaves your devices for the runner."
    return (
        f"{text} Its key leaves your devices with this grant: the runner of your hub calls the model "
        "with it until the grant ends."
    )


def _counted(records: Sequence[Cited]) -> str:
    """Return `3 notes and 5 tasks`."""
    counts: dict[str, int] = {}
    for record in records:
        counts[record.table] = counts.get(record.table, 0) + 1
    parts = [f"{count} {kind_words(table, count)}" for table, count in counts.items()]
    if len(parts) < 2:
        return "".join(parts) or "nothing"
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def _titles(records: Sequence[Cited]) -> str:
    shown = [f"“{shortened(record.title) or 'untitled'}”" for record in records[:TITLES_MAX]]
    more = len(records) - len(shown)
    return ", ".join(shown) + (f" and {more} more, listed here" if more > 0 else "")
