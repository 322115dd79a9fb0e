"""A mission as the sentence of its form: what was typed, what is wrong, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from litestar.datastructures import FormMultiDict

from mana.domain.cadences import (
    DEBOUNCE_MINUTES,
    MANUAL,
    SPACING_MINUTES,
    Cadence,
    CadenceKind,
    cadence_from_wire,
    next_due,
)
from mana.domain.cadences import (
    zone as zone_of,
)
from mana.domain.encoding import Json
from mana.domain.missions import IF_MISSED, RUNS_ON_HUB, IfMissed
from mana.domain.money import TOKENS_PER_DAY_MAX
from mana.web.amounts import amount_field
from mana.web.forms import Typed
from mana.web.words import t

if TYPE_CHECKING:
    from mana.device.missions import MissionEdit
    from mana.device.views import MissionView

RUNS_HERE: Final = "device"
TIMES_SHOWN: Final = 3
_BLANK: Final[Mapping[str, str]] = {
    "title": "",
    "agent_id": "",
    "objective": "",
    "cadence": "weekly",
    "every_minutes": "60",
    "day_of_week": "0",
    "at": "10:00",
    "expression": "",
    "debounce_minutes": str(DEBOUNCE_MINUTES),
    "spacing_minutes": str(SPACING_MINUTES),
    "zone": "",
    "runs_on": RUNS_ON_HUB,
    "if_missed": "once",
    "tokens": "",
    "cost": "",
    "concept": "",
}
_NUMBERS: Final[Mapping[str, tuple[tuple[str, str, int, int], ...]]] = {
    "interval": (("every_minutes", "everyMinutes", 1, 527_040),),
    "weekly": (("day_of_week", "dayOfWeek", 0, 6),),
    "onChange": (
        ("debounce_minutes", "debounceMinutes", 1, 24 * 60),
        ("spacing_minutes", "spacingMinutes", 5, 527_040),
    ),
}
"""By cadence the fields that hold its numbers, with their members and bounds."""


@dataclass(slots=True)
class Sentence:
    """The form's fields as texts, and the keys of the inputs that are ticked.

    `again`: it was typed by the person and is not saved; so nothing but them changes it.
    """

    typed: Typed
    picked: frozenset[str]
    again: bool = False

    def read(self) -> MissionEdit:
        """Return what the mission shall be; check `typed.faults` before using it."""
        typed = self.typed
        title = typed.text("title", t("Give the mission a name."))
        agent_id = typed.text("agent_id", t("Choose who shall do it."))
        objective = typed.text("objective", t("Say what shall be done."))
        cadence = self.cadence()
        fields: MissionEdit = {
            "title": title,
            "objective": objective,
            "agent_id": agent_id,
            "concept": typed.values["concept"],
            "cadence": cadence or MANUAL,
            "if_missed": self._if_missed(),
            "tokens_per_day_max": typed.whole("tokens", 0, TOKENS_PER_DAY_MAX, needed=False),
            "cost_per_day_max": typed.amount("cost"),
        }
        where = self.zone()
        if where:
            fields["zone"] = where
        return fields

    def cadence(self) -> Cadence | None:
        """Return when it shall run; None where that cannot be told, with the fault."""
        typed, kind = self.typed, self.typed.values["cadence"]
        wire: dict[str, Json] = {"kind": kind}
        for name, member, low, high in _NUMBERS.get(kind, ()):
            wire[member] = typed.whole(name, low, high)
        if kind in ("daily", "weekly"):
            wire["atHour"], wire["atMinute"] = self._clock() or (None, None)
        if kind == "cron":
            wire["expression"] = typed.values["expression"]
        if None in wire.values():
            return None
        field = "expression" if kind == "cron" else "cadence"
        return typed.checked(field, lambda: cadence_from_wire(wire))

    def zone(self) -> str:
        """Return the zone of its clock; empty for the person's own, or for a fault."""
        where = self.typed.text("zone")
        if where and self.typed.checked("zone", lambda: zone_of(where)) is None:
            return ""
        return where

    def next_times(self, zone: str, now_ms: int) -> tuple[int, ...]:
        """Return the next moments at which it would run; none where no clock says when."""
        cadence, where = self.cadence(), self.zone() or zone
        found: list[int] = []
        at_ms: int | None = now_ms
        while cadence is not None and at_ms is not None and len(found) < TIMES_SHOWN:
            at_ms = next_due(cadence, where, anchor_ms=now_ms, after_ms=at_ms)
            if at_ms is not None:
                found.append(at_ms)
        return tuple(found)

    @property
    def place(self) -> str:
        """Return where it shall run: on the hub, or here."""
        return RUNS_HERE if self.typed.values["runs_on"] == RUNS_HERE else RUNS_ON_HUB

    def _clock(self) -> tuple[int, int] | None:
        hour, _, minute = self.typed.values["at"].strip().partition(":")
        minute = minute[:2]
        if not (hour + minute).isascii() or not hour.isdigit() or not minute.isdigit():
            self.typed.faults["at"] = t("A time is hours and minutes, such as 10:00.")
            return None
        if int(hour) > 23 or int(minute) > 59:
            self.typed.faults["at"] = t("There is no such time of day.")
            return None
        return int(hour), int(minute)

    def _if_missed(self) -> IfMissed:
        chosen = self.typed.values["if_missed"]
        return cast("IfMissed", chosen) if chosen in IF_MISSED else "once"


def blank(zone: str, agent_id: str) -> Sentence:
    """Return the sentence of a mission that is not there yet."""
    return Sentence(Typed({**_BLANK, "zone": zone, "agent_id": agent_id}), frozenset())


def of_mission(mission: MissionView) -> Sentence:
    """Return the sentence of a mission as it stands."""
    cadence = mission.cadence
    values = {
        **_BLANK,
        "title": mission.title,
        "agent_id": mission.agent_id,
        "objective": mission.objective,
        "cadence": cadence.kind,
        "zone": mission.zone,
        "runs_on": RUNS_ON_HUB if mission.runs_on == RUNS_ON_HUB else RUNS_HERE,
        "if_missed": mission.if_missed,
        "tokens": _digits(mission.tokens_per_day_max),
        "cost": amount_field(mission.cost_per_day_max),
        "concept": mission.concept,
        **_of_cadence(cadence),
    }
    return Sentence(Typed(values), frozenset(ref.key for ref in mission.inputs))


def of_form(form: FormMultiDict) -> Sentence:
    """Return the sentence as it was typed; nothing is judged yet."""
    ticked = frozenset(str(one) for one in form.getall("input", []))
    return Sentence(Typed.of(form, tuple(_BLANK)), ticked, again=True)


def _of_cadence(cadence: Cadence) -> dict[str, str]:
    shown: dict[CadenceKind, dict[str, str]] = {
        "interval": {"every_minutes": str(cadence.every_minutes)},
        "cron": {"expression": cadence.expression},
        "onChange": {
            "debounce_minutes": str(cadence.debounce_minutes),
            "spacing_minutes": str(cadence.spacing_minutes),
        },
    }
    if cadence.kind in ("daily", "weekly"):
        clock = f"{cadence.at_hour:02d}:{cadence.at_minute:02d}"
        return {"at": clock, "day_of_week": str(cadence.day_of_week)}
    return shown.get(cadence.kind, {})


def _digits(number: int | None) -> str:
    return "" if number is None else str(number)
