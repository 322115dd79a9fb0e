"""A form that is shown again: what was typed into it, and what is wrong with it, by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from litestar.datastructures import FormMultiDict
from markupsafe import Markup

from mana.domain.errors import Invalid
from mana.web.amounts import amount_of
from mana.web.visits import text_of
from mana.web.words import t

T = TypeVar("T")
_GROUPING: Final = str.maketrans("", "", ", \u00a0\u202f")
"""What people put between the thousands of a number."""
NOT_ACCEPTED: Final = 422


@dataclass(slots=True)
class Typed:
    """Texts by field, and by field what is wrong; `problem`: what is wrong with the whole."""

    values: Mapping[str, str]
    faults: dict[str, Markup] = field(default_factory=dict)

    @classmethod
    def of(cls, form: FormMultiDict, names: tuple[str, ...]) -> Typed:
        """Return what was typed into the named fields."""
        return cls({name: text_of(form, name) for name in names})

    def text(self, name: str, missing: Markup | None = None) -> str:
        """Return a text without blanks around it; `missing` is the fault of an empty one."""
        typed = self.values[name].strip()
        if not typed and missing is not None:
            self.faults[name] = missing
        return typed

    def whole(self, name: str, low: int, high: int, *, needed: bool = True) -> int | None:
        """Return a whole number, None for a fault, or for nothing where none is needed."""
        typed = self.values[name].translate(_GROUPING)
        if not typed and not needed:
            return None
        if typed.isascii() and typed.isdigit() and len(typed) < 20 and low <= int(typed) <= high:
            return int(typed)
        self.faults[name] = t(
            "A whole number from {low} to {high} is needed here.", low=f"{low:,}", high=f"{high:,}"
        )
        return None

    def amount(self, name: str) -> int | None:
        """Return an amount in millionths of the currency, None for nothing or a fault."""
        return self.checked(name, lambda: amount_of(self.values[name]))

    def checked(self, name: str, check: Callable[[], T]) -> T | None:
        """Return what a check returns; what it finds wrong is the fault of the field."""
        try:
            return check()
        except Invalid as error:
            text = error.message[:1].upper() + error.message[1:]
            self.faults[name] = Markup("{}.").format(text)
            return None
