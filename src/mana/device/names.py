"""What the codes of records, runs and tools are called: the words of the page and the terminal.

A code that is not listed is shown as it is, rather than hidden. Why something ended or waits is in
`words.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from mana.domain.tools import TASK
from mana.registry.catalogue import load_catalogue

FIELDS: Final[Mapping[str, str]] = {
    "title": "Title",
    "content": "Text",
    "description": "Notes",
    "dueDate": "Due",
    "priority": "Priority",
    "isCompleted": "Done",
    "completedAt": "Completed",
    "isPinned": "Pinned",
    "isArchived": "Archived",
    "color": "Colour",
    "deletedAt": "Deleted",
}
TABLES: Final[Mapping[str, str]] = {
    "notes": "note",
    "tasks": "task",
    "aiMissions": "mission",
    "agents": "agent",
    "agentMemory": "memory",
}
EFFECTS: Final[Mapping[str, str]] = {
    "read": "Read",
    "write": "Add and change",
    "destructive": "Replace or delete",
    "external": "Send out",
}
DECISIONS: Final[Mapping[str, str]] = {
    "auto": "by itself",
    "propose": "asks first",
    "deny": "never",
}
STATES: Final[Mapping[str, str]] = {
    "staged": "waits for a decision",
    "planned": "runs by itself",
    "executing": "running",
    "approved": "approved",
    "rejected": "rejected",
    "skipped": "skipped",
    "failed": "failed",
    "expired": "expired",
    "done": "done",
    "reverted": "reverted",
    "changed": "changed since by you",
    "proposed": "waits for a decision",
    "refused": "refused",
    "active": "active",
    "paused": "paused",
    "archived": "archived",
    "queued": "waits for its turn",
    "leased": "at work",
    "missed": "missed",
    "revoked": "revoked",
    "stale": "no longer fits",
    "unverified": "not verified",
    "open": "open",
    "accepted": "accepted",
    "joined": "joined",
    "withdrawn": "withdrawn",
}
"""Of steps, lines of the timeline, missions, agents, runs, grants and invitations."""
RUN_STATES: Final[Mapping[str, str]] = {
    "queued": "Waits for its turn",
    "leased": "At work",
    "done": "Done",
    "skipped": "Did not run",
    "failed": "Failed",
    "missed": "Missed",
}
KINDS: Final[Mapping[str, str]] = {
    "scheduled": "on time",
    "manual": "by hand",
    "change": "after a change",
}
PHASES: Final[Mapping[str, str]] = {
    "queued": "Waiting for its turn",
    "after_lease": "Checking what it may",
    "after_audit": "Writing down what it will read",
    "after_open": "Opening what you granted",
    "inputs": "Reading its inputs",
    "prompt": "Reading its inputs",
    "model": "Asking the model",
    "tools": "Trying out what the model asked for",
    "sub-agent": "Working on a part of it by itself",
    "compaction": "Summing up what it has read so far",
    "after_model": "Sealing what it found",
    "before_commit": "Sealing what it found",
    "after_commit": "Sealing what it found",
    "done": "Sealing what it found",
}
REJECTED: Final[Mapping[str, str]] = {
    "not-now": "Not now",
    "not-needed": "Not needed",
    "wrong": "Wrong",
    "too-much": "Too much",
    "style": "Not how I would put it",
    "other": "Something else",
}
"""Why a proposal is rejected, in the order in which it is offered."""
FLAGS: Final[Mapping[str, str]] = {
    "marker": "Something in this run reads like an instruction that was slipped into a text. The model"
    " was told that it is none; look closely at what it proposes.",
    "context-full": "It ended early: it had more to read than its model can read at once.",
    "length": "A reply of its model was cut off at its longest, so something may be missing.",
    "content-filter": "The provider of its model held back a part of a reply.",
}
"""What is to be known of a run, by the flag of its plan."""
_SUB_AGENTS: Final = "give parts of its work to sub-agents"


def called(names: Mapping[str, str], code: str) -> str:
    """Return what a code is called, the code itself where nothing is known of it."""
    return names.get(code, code)


def tool_words(name: str) -> str:
    """Return what a tool does, as it follows “may”; of one that is not known its name."""
    return _tools().get(name) or name.replace("_", " ")


@cache
def _tools() -> Mapping[str, str]:
    return {TASK: _SUB_AGENTS, **{one.name: one.words for one in load_catalogue().tools}}
