"""What a person decides on, as forms carry it: the edit of a call, and what a page has shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Final

import msgspec
from litestar.datastructures import FormMultiDict
from markupsafe import Markup

from mana.device.names import REJECTED
from mana.device.views import EditForm, Fault, Proposal, ToolParameter
from mana.domain.encoding import Json
from mana.web.visits import text_of
from mana.web.words import t

REASONS: Final = tuple(REJECTED.items())
"""By code of a reason for a rejection what its chip says, in the order of the chips."""
FIELD: Final = "p-"
"""What the name of each field of an edit begins with."""
_SHOWN_LETTERS: Final = 24


def shown(proposal: Proposal) -> str:
    """Return a mark of what a page shows of a proposal, which its form sends back.

    It changes with everything that the change consists of, so that a page that was open for long
    approves nothing that it did not show.
    """
    said = msgspec.json.encode((proposal.tool, proposal.sentence, proposal.diffs))
    return hashlib.sha256(said).hexdigest()[:_SHOWN_LETTERS]


def reason_words(code: str) -> Markup:
    """Return what the reason of a rejection is called."""
    return t(REJECTED.get(code, "No reason chosen"))


def is_still_shown(form: FormMultiDict, proposal: Proposal) -> bool:
    """Say whether a form comes from a page that shows a proposal as it is now."""
    return text_of(form, "shown") in ("", shown(proposal))


def typed_in(form: FormMultiDict, asked: EditForm) -> dict[str, str]:
    """Return what was typed into the form of an edit, by parameter."""
    return {one.name: text_of(form, f"{FIELD}{one.name}") for one in asked.parameters}


def typed_of(asked: EditForm) -> dict[str, str]:
    """Return what stands in the form of an edit before anybody typed."""
    return {one.name: _as_typed(one) for one in asked.parameters}


def arguments_of(typed: dict[str, str], asked: EditForm) -> dict[str, Json]:
    """Return the arguments that were typed; what cannot be read stays text, and is refused."""
    return {
        one.name: _read(one, typed[one.name])
        for one in asked.parameters
        if one.required or typed[one.name] != ""
    }


def fault_words(parameter: ToolParameter | None, fault: Fault) -> Markup:
    """Return what is wrong with an argument, and what would be right."""
    if parameter is None:
        return t("{reason}.", reason=fault.reason.strip().rstrip(".").capitalize())
    if "missing required" in fault.reason:
        return t("This is needed.")
    low, high = _number(parameter.low), _number(parameter.high)
    if parameter.kind == "day":
        return t("Give a day, or nothing.") if not parameter.required else t("Give a day.")
    if parameter.kind in ("whole", "number") and low and high:
        return t("Give a number from {low} to {high}.", low=low, high=high)
    if parameter.kind in ("whole", "number"):
        return t("Give a number.")
    if parameter.kind in ("choice", "yes-no"):
        return t("Choose one of those that are offered.")
    if parameter.length_max and "length" in fault.reason and "<=" in fault.reason:
        return t("At most {n} characters.", n=f"{parameter.length_max:,}")
    if "length" in fault.reason:
        return t("Say something here.")
    return t("{reason}.", reason=fault.reason.strip().rstrip("."))


def faults_by_name(asked: EditForm, faults: Sequence[Fault]) -> dict[str, Markup]:
    """Return what is wrong in words, by parameter; under the empty name what fits none."""
    known = {one.name: one for one in asked.parameters}
    found: dict[str, Markup] = {}
    for fault in faults:
        first = fault.path.partition(".")[0].partition("[")[0]
        name = first if first in known else ""
        found.setdefault(name, fault_words(known.get(name), fault))
    return found


def _number(bound: float | None) -> str:
    return "" if bound is None else f"{bound:g}"


def _as_typed(parameter: ToolParameter) -> str:
    value = parameter.value
    if value is None:
        return ""
    if parameter.kind == "yes-no":
        return "yes" if value is True else "no"
    if parameter.kind == "list" and isinstance(value, list):
        return "\n".join(str(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(parameter: ToolParameter, typed: str) -> Json:
    if parameter.kind == "yes-no":
        return {"yes": True, "no": False}.get(typed, typed)
    if parameter.kind == "list":
        return [line.strip() for line in typed.split("\n") if line.strip()]
    if parameter.kind in ("whole", "number", "other"):
        try:
            read: Json = json.loads(typed)
        except ValueError:
            return typed
        return read
    return typed
