"""The demo account's first records: an agent, three notes, five tasks and one mission.

The notes hold action items and dates, so that a run has something to find, with any model.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from mana.device.operations import Operations
from mana.domain.cadences import Cadence
from mana.domain.encoding import Json
from mana.domain.missions import InputRef

WEEKLY: Final = Cadence("weekly", day_of_week=0, at_hour=10, at_minute=0)
AGENT_NAME: Final = "Mira"
MISSION_TITLE: Final = "Weekly review"
ROLE: Final = "Keeps an eye on notes and tasks, and prepares the week."
PERSONA: Final = (
    "You are calm, exact and brief. You propose few things, each with a reason, and you never "
    "propose what is already there."
)
OBJECTIVE: Final = (
    "Look through the linked notes and tasks. Find what was promised or is due and has no task "
    "yet, and what is overdue. Propose tasks with their due day, and sum up the week."
)
CONCEPT: Final = "Every Sunday I want to know what the week left open, without rereading it all."


@dataclass(frozen=True, slots=True)
class Seeded:
    """What the seeds made."""

    agent_id: str
    mission_id: str
    note_ids: tuple[str, ...]
    task_ids: tuple[str, ...]


def notes_of(today: str) -> tuple[dict[str, Json], ...]:
    """Return the demo's notes; two of them hold action items with days."""
    day = date.fromisoformat(today)
    soon, later = day + timedelta(days=4), day + timedelta(days=9)
    return (
        {
            "title": "Call with the landlord",
            "content": (
                "The heating is to be repaired before winter.\n\n"
                f"- [ ] Send photos of the radiator by {soon.isoformat()}\n"
                "- [ ] Ask the neighbours whether theirs works\n"
                f"- TODO: confirm the appointment on {later.isoformat()}\n"
            ),
        },
        {
            "title": "Choir weekend",
            "content": (
                "We meet at the lake house, everyone brings something.\n\n"
                f"- [ ] Book the train until {soon.isoformat()}\n"
                "- [ ] Print the new scores\n"
                "The rehearsal starts at nine.\n"
            ),
        },
        {
            "title": "Ideas for the garden",
            "content": "Less lawn, more herbs. A bench under the pear tree would be good.",
        },
    )


def tasks_of(today: str) -> tuple[dict[str, Json], ...]:
    """Return the demo's tasks: one overdue, one due soon, the rest undated."""
    day = date.fromisoformat(today)
    return (
        {"title": "Hand in the tax form", "dueDate": (day - timedelta(days=3)).isoformat()},
        {"title": "Call the dentist", "dueDate": (day + timedelta(days=2)).isoformat()},
        {"title": "Return the library books"},
        {"title": "Find a present for Jonas"},
        {"title": "Oil the bicycle chain"},
    )


async def plant(operations: Operations, *, zone: str) -> Seeded:
    """Write the demo's records; the mission is not granted, that is the person's to do."""
    records = operations.records
    await records.write_settings({"displayName": "Demo", "timeZone": zone})
    today = operations.opened.today(zone)
    # The last one written is shown first, so they are written back to front.
    notes = [await records.create("notes", values) for values in reversed(notes_of(today))][::-1]
    tasks = [await records.create("tasks", values) for values in reversed(tasks_of(today))][::-1]
    agent_id = await operations.agents.create(
        AGENT_NAME,
        role=ROLE,
        avatar="M",
        system_prompt=PERSONA,
        preset="standard",
        tokens_per_day_max=50_000,
    )
    inputs = [InputRef("notes", "notes", note) for note in notes[:2]]
    inputs += [InputRef("todo", "tasks", task) for task in tasks[:3]]
    mission_id = await operations.missions.create(
        MISSION_TITLE,
        OBJECTIVE,
        agent_id=agent_id,
        inputs=inputs,
        cadence=WEEKLY,
        zone=zone,
        concept=CONCEPT,
    )
    return Seeded(agent_id, mission_id, tuple(notes), tuple(tasks))
