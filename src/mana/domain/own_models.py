"""Model endpoints of the person's own: what a grant hands to the runner, and how it is read.

The record stands in the user scope (`settings.MODELS`); a grant carries it sealed, beside the keys.
Normative: docs/protocol/engine.md, 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mana.domain.encoding import Json
from mana.domain.errors import Invalid
from mana.domain.ids import require_record_id
from mana.domain.money import COST_PER_DAY_MAX, Price, whole_or_none
from mana.domain.records import View

URL_CHARS_MAX: Final = 500
NAME_CHARS_MAX: Final = 200
KEY_CHARS_MAX: Final = 1_000
CONTEXT_TOKENS_MIN: Final = 1_024
CONTEXT_TOKENS_MAX: Final = 100_000_000
_NEEDED: Final = frozenset({"id", "url", "model", "key"})
_KNOWN: Final = _NEEDED | {"promptPrice", "completionPrice", "contextTokens"}


@dataclass(frozen=True, slots=True)
class OwnModel:
    """An endpoint of a person's own. `price` None: nobody said what it costs."""

    id: str
    url: str = field(repr=False)
    model: str
    key: str = field(default="", repr=False)
    price: Price | None = None
    context_tokens: int | None = None

    def to_wire(self) -> dict[str, Json]:
        """Return the member `model` of what a grant's `sealedKeys` opens to."""
        wire: dict[str, Json] = {
            "id": self.id,
            "url": self.url,
            "model": self.model,
            "key": self.key,
        }
        if self.price is not None:
            wire["promptPrice"] = self.price.prompt
            wire["completionPrice"] = self.price.completion
        if self.context_tokens is not None:
            wire["contextTokens"] = self.context_tokens
        return wire


def own_model_from_wire(value: Json) -> OwnModel:
    """Return the model of a wire form; raise Invalid, which quotes nothing, for any other shape."""
    if not isinstance(value, dict) or not _NEEDED <= set(value) <= _KNOWN:
        raise Invalid("an own model has an id, a url, a model and a key")
    prompt = _whole(value, "promptPrice", 0, COST_PER_DAY_MAX)
    completion = _whole(value, "completionPrice", 0, COST_PER_DAY_MAX)
    if (prompt is None) != (completion is None):
        raise Invalid("an own model has both prices or none")
    return OwnModel(
        id=require_record_id(_text(value, "id", NAME_CHARS_MAX)),
        url=_text(value, "url", URL_CHARS_MAX),
        model=_text(value, "model", NAME_CHARS_MAX),
        key=_text(value, "key", KEY_CHARS_MAX, empty=True),
        price=None if prompt is None or completion is None else Price(prompt, completion),
        context_tokens=_whole(value, "contextTokens", CONTEXT_TOKENS_MIN, CONTEXT_TOKENS_MAX),
    )


def own_model_from_view(view: View) -> OwnModel:
    """Return the model of an opened record of `aiModels`; raise Invalid without address or name.

    One price alone is no price: no cap of costs could hold by it.
    """
    prompt, completion = whole_or_none(view, "promptPrice"), whole_or_none(view, "completionPrice")
    known = prompt is not None and completion is not None
    wire: dict[str, Json] = {
        "id": view.id,
        "url": view.text("url").strip(),
        "model": view.text("model").strip(),
        "key": view.text("key").strip(),
    }
    if known:
        wire |= {"promptPrice": prompt, "completionPrice": completion}
    context = whole_or_none(view, "contextTokens")
    if context is not None:
        wire["contextTokens"] = context
    return own_model_from_wire(wire)


def _text(value: dict[str, Json], name: str, chars_max: int, *, empty: bool = False) -> str:
    found = value[name]
    if not isinstance(found, str) or len(found) > chars_max or not (found or empty):
        raise Invalid(f"the {name} of an own model is text of at most {chars_max} characters")
    return found


def _whole(value: dict[str, Json], name: str, low: int, high: int) -> int | None:
    found = value.get(name)
    if found is None and name not in value:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        raise Invalid(f"the {name} of an own model is a whole number from {low} to {high}")
    return found
