"""How values look: the filters and functions that templates may use, and nothing else.

Whatever a person or a model wrote passes through escaping; only words of the page are trusted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from itertools import groupby
from typing import Final
from zoneinfo import available_timezones

from jinja2 import Environment
from markupsafe import Markup, escape

from mana.device import names
from mana.device.diffs import OUTGOING
from mana.device.security import RecoveryKit
from mana.device.sessions import TotpSetup
from mana.device.views import (
    Bucket,
    Cited,
    FieldDiff,
    ModelView,
    Proposal,
    ToolParameter,
)
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.money import amount_words
from mana.domain.records import View
from mana.domain.tools import TASK
from mana.web import words
from mana.web.accepting import rate_words, trend_words, week_bars
from mana.web.amounts import amount_field
from mana.web.deciding import reason_words, shown
from mana.web.icons import icon
from mana.web.visits import now_ms
from mana.web.words import counted, t

HUES: Final = 12
LINE_MAX: Final = 80
_PARTS: Final = re.compile(r"(“[^”]*”|\b\d{4}-\d\d-\d\d\b)")
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")
_PARAMETERS: Final = {
    "append": "To add at its end",
    "reason": "Because",
    "titleMatch": "Whose title holds",
}
_MARK: Final = re.compile(r"(?:(?P<head>#{1,6})|[-*+]|\d{1,3}[.)])\s+(?P<words>.*)")
_INNER_CAPITAL: Final = re.compile(r"(?<=[a-z])[A-Z]")
_SPACE_TYPES: Final = {
    "personal": "Personal",
    "brand": "Brand",
    "club": "Club",
    "family": "Family",
    "team": "Team",
    "practice": "Practice",
}
_ROLES: Final = {"owner": "owner", "admin": "admin", "member": "member", "viewer": "viewer"}
_ROLE_WORDS: Final = {
    "owner": "does all, also closes it",
    "admin": "writes, invites, removes",
    "member": "reads and writes",
    "viewer": "reads only",
}
_TROUBLES: Final = {
    "CLOCK_AHEAD": "This machine’s clock is ahead of the hub’s.",
    "DEVICE_REVOKED": "Another device of yours revoked this one.",
    "DEVICE_UNKNOWN": "The hub does not know this device any more. Sign out, and sign in again.",
    "FORBIDDEN": "The hub does not let this device in.",
    "HUB_BEHIND": "The hub was set back to an older state. Nothing is sent; ask whoever"
    " runs it, then read the space anew on its page.",
    "HUB_DISTRUSTED": "What the hub says does not fit what this device has checked. It is not"
    " believed; ask whoever runs it.",
    "INTERNAL": "Something went wrong inside Mana.",
    "NOT_FOUND": "The hub does not know it.",
    "RATE_LIMITED": "Too much at once; it goes on by itself.",
    "REPLICA_BROKEN": "The local database cannot be read or written.",
    "SESSION_ENDED": "The hub asks you to sign in again.",
    "STORAGE_FULL": "The disk of this machine is full.",
    "TWO_FACTOR_REQUIRED": "The hub asks for your second factor. See Security.",
    "UNAVAILABLE": "The hub does not answer at the moment.",
    "VAULT_MOVED": "Another device changed your keys. Nothing is sent until this one has them;"
    " see Security.",
}
_EVENTS: Final = {
    "sign-up": "The account was made",
    "log-in": "Signed in",
    "second-factor": "Second factor",
    "recover": "Signed in by the recovery code",
    "reset": "Signed in by a token of the operator",
    "password": "The password was changed",
    "recovery": "The recovery code was changed",
    "mode": "The mode was switched",
    "master": "The master key was changed",
    "identity": "The identity was changed",
    "grants": "Grants were switched on or off",
    "factor-added": "A second factor was added",
    "factor-removed": "A second factor was removed",
    "session-ended": "A session was ended",
    "device-added": "A device was added",
    "device-revoked": "A device was revoked",
    "link": "A new device asked to be let in",
}


def equip(templates: Environment) -> None:
    """Give templates what they may use."""
    templates.globals |= {
        "t": t,
        "counted": counted,
        "icon": icon,
        "clock": words.clock,
        "clocks": words.clocks,
        "is_clock_here": words.is_clock_here,
        "iso": words.iso,
        "exact": words.exact,
        "zones": zones,
        "path_of": path,
        "OUTGOING": OUTGOING,
        "TASK": TASK,
    }
    templates.tests["overdue"] = is_overdue
    templates.filters |= {
        "when": when,
        "left": lambda ms: words.left(ms, now_ms()),
        "told": told,
        "upper_first": upper_first,
        "first_sentence": lambda text: text.partition(". ")[0].rstrip(".") + ".",
        "described": described,
        "in_order": in_order,
        "without_ids": without_ids,
        "named_first": named_first,
        "hue": hue,
        "initial": initial,
        "field": field_words,
        "parameter": parameter_words,
        "shown": shown,
        "reject_reason": reason_words,
        "table": partial(_named, names.TABLES),
        "effect": partial(_named, names.EFFECTS),
        "decision": partial(_named, names.DECISIONS),
        "state": partial(_named, names.STATES),
        "space_type": partial(_named, _SPACE_TYPES),
        "role": partial(_named, _ROLES),
        "role_words": partial(_named, _ROLE_WORDS),
        "trouble": lambda code: t(_TROUBLES.get(code, "It is not synced at the moment.")),
        "event": partial(_named, _EVENTS),
        "moment": moment,
        "day": lambda iso: words.day_name(words.local(parse_iso_ms(iso)).date()),
        "qr": qr,
        "fours": fours,
        "json": lambda found: json.dumps(found),
        "value": value,
        "title": title,
        "tool": lambda name: escape(names.tool_words(name)),
        "flag": partial(_named, names.FLAGS),
        "line": line,
        "days": days,
        "by_iteration": by_iteration,
        "due": due,
        "week_bars": week_bars,
        "rate": rate_words,
        "trend": trend_words,
        "amount": amount_words,
        "amount_field": amount_field,
        "marked_up": marked_up,
    }


def _named(known: Mapping[str, str], name: str) -> Markup:
    """Return what a name of the wire is called; one that is not known is shown, escaped."""
    found = known.get(name)
    return escape(name) if found is None else t(found)


def when(ms: int | None) -> Markup:
    """Return a moment in words, the exact one on hover."""
    if ms is None:
        return t("never")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        words.iso(ms), words.exact(ms), words.ago(ms, now_ms())
    )


def moment(iso: str | None) -> Markup:
    """Return a moment of the wire (ISO) in words, the exact one on hover."""
    return when(None if iso is None else parse_iso_ms(iso))


def qr(found: RecoveryKit | TotpSetup) -> Markup:
    """Return the QR code of a recovery kit or an authenticator, drawn on this device."""
    drawn = found.qr_svg
    return Markup(drawn if isinstance(drawn, str) else drawn())  # noqa: S704 - our own drawing


def fours(text: str) -> str:
    """Return a secret in groups of four, as people type it."""
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def told(sentence: str) -> Markup:
    """Return a sentence with what it names in bold, and days outside names in words."""
    parts = []
    for part in _PARTS.split(sentence):
        if _DAY.fullmatch(part):
            parts.append(due(part))
        elif len(part) > 2 and part[0] == "“" and part[-1] == "”":
            parts.append(Markup("<strong>{}</strong>").format(part[1:-1]))
        else:
            parts.append(escape(part))
    return Markup("").join(parts)


def field_words(name: str) -> Markup:
    """Return what a field is called."""
    return _named(names.FIELDS, name)


def parameter_words(parameter: ToolParameter) -> Markup:
    """Return what a parameter of a tool is called; the module's own name, if no other is known."""
    if parameter.kind == "record":
        return t("{kind}", kind=upper_first(str(_named(names.TABLES, parameter.table))))
    named = _PARAMETERS.get(parameter.name) or names.FIELDS.get(parameter.name)
    if named is not None:
        return t(named)
    spaced = _INNER_CAPITAL.sub(lambda found: f" {found[0].lower()}", parameter.name)
    return escape(upper_first(spaced))


def in_order(fields: Sequence[FieldDiff]) -> list[FieldDiff]:
    """Return the fields of a change in the order in which a person reads them."""
    rank = {name: at for at, name in enumerate(names.FIELDS)}
    return sorted(fields, key=lambda one: (rank.get(one.name, len(rank)), one.name))


def without_ids(text: str, cited: Sequence[Cited]) -> str:
    """Return a model's reason with ids of inputs taken out or replaced by their titles."""
    for one in cited:
        key = f"{one.table}:{one.record_id}"
        text = text.replace(f" ({key})", "").replace(key, f"“{one.title}”")
    return text


def named_first(cited: Sequence[Cited], text: str) -> tuple[list[Cited], list[Cited]]:
    """Return the inputs that a reason names, and the others; all, where it names none.

    A reason names an input by its title in quotes; a model may also write its id.
    """

    def is_named(one: Cited) -> bool:
        title = " ".join(one.title.split())
        return one.record_id in text or (bool(title) and f"“{title}”" in text)

    named = [one for one in cited if is_named(one)]
    if not named:
        return list(cited), []
    return named, [one for one in cited if one not in named]


def upper_first(text: str) -> str:
    """Return a text with its first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def described(model: ModelView) -> str:
    """Return what a model is, as a sentence beside its name."""
    text = upper_first(model.description.removeprefix(f"{model.model}:").strip())
    return text if not text or text[-1] in ".!?" else f"{text}."


def hue(agent_id: str) -> int:
    """Return the number of an agent's hue, the same on every device."""
    return hashlib.sha256(agent_id.encode()).digest()[0] % HUES


def initial(name: str) -> str:
    """Return what stands in an avatar that has no picture."""
    return name.strip()[:1].upper() or "·"


def value(found: Json) -> Markup:
    """Return a field's value as people read it."""
    if found is None or found == "":
        return Markup('<span class="quiet">{}</span>').format(t("nothing"))
    if isinstance(found, bool):
        return t("yes") if found else t("no")
    if isinstance(found, list):
        return Markup(", ").join(escape(str(item)) for item in found)
    if isinstance(found, str) and _DAY.fullmatch(found):
        return due(found)
    return escape(str(found))


def marked_up(text: str) -> list[tuple[str, list[str]]]:
    """Return a text in Markdown as blocks: (`head`, `list` or `text`, its lines), all unescaped.

    Only headings and lists are known; what else is written stands as it was typed.
    """
    blocks: list[tuple[str, list[str]]] = []
    follows = False
    for typed in text.splitlines():
        found = _MARK.fullmatch(typed.strip())
        kind = "text" if found is None else "head" if found["head"] else "list"
        words = typed.rstrip() if found is None else found["words"]
        if not words.strip():
            follows = False
            continue
        if follows and kind != "head" and blocks[-1][0] == kind:
            blocks[-1][1].append(words)
        else:
            blocks.append((kind, [words]))
        follows = True
    return blocks


def title(view: View) -> str:
    """Return what a record is called: its title, or the start of its text."""
    named = view.text("title").strip() or line(view.text("content"))
    return named or str(t("Untitled"))


def line(text: str) -> str:
    """Return the first line of a text, shortened."""
    first = text.strip().partition("\n")[0].strip()
    return first if len(first) <= LINE_MAX else first[: LINE_MAX - 1] + "…"


def due(text: str) -> Markup:
    """Return a day in words, the full date on hover."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return escape(text)
    today = words.local(now_ms()).date()
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        text, words.day_name(day), words.day_words(day, today)
    )


def is_overdue(view: View) -> bool:
    """Say whether an open task's day has passed."""
    due_on = view.text("dueDate")
    done = view.values.get("isCompleted") is True
    return bool(due_on) and not done and due_on < words.local(now_ms()).date().isoformat()


def days(buckets: Sequence[Bucket]) -> list[tuple[Markup, list[Bucket]]]:
    """Return buckets under the headings of their days, in their order."""
    now = now_ms()
    found = groupby(buckets, key=lambda bucket: words.local(bucket.at_ms).date())
    return [
        (words.heading(group[0].at_ms, now), group)
        for group in (list(members) for _, members in found)
    ]


def by_iteration(proposals: Sequence[Proposal]) -> list[list[Proposal]]:
    """Return proposals as the plans they belong to, each in one group."""
    groups: dict[str, list[Proposal]] = {}
    for proposal in proposals:
        groups.setdefault(proposal.iteration_id, []).append(proposal)
    return list(groups.values())


def path(table: str, record_id: str) -> str:
    """Return the page of a record, empty if it has none."""
    if table in ("notes", "tasks", "agents"):
        return f"/{table}/{record_id}"
    return f"/missions/{record_id}" if table == "aiMissions" else ""


def zones() -> list[str]:
    """Return the names of time zones to choose from."""
    return sorted(name for name in available_timezones() if "/" in name or name == "UTC")
