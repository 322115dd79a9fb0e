"""What an agent can ask for itself: a change of its own memory, which a person decides on.

The agent that calls sees no memory but its own (`planning.dispatch`), so no id is a parameter.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from mana.domain.agents import AGENT_MEMORY
from mana.domain.errors import Invalid, NotFound, TooLarge
from mana.domain.records import Records, View
from mana.domain.tools import PROPOSE_MEMORY, Call, Outcome, Tool

MEMORY_MAX: Final = 8_000
APPEND_MAX: Final = 2_000
REASON_MAX: Final = 500
_QUOTED_MAX: Final = 200


class ProposeMemory(Call, frozen=True):
    """Parameters of `propose_memory`: `content` replaces the memory, `append` adds a line."""

    reason: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=REASON_MAX,
            description="What you learned, and from which input.",
        ),
    ]
    content: (
        Annotated[
            str, Meta(min_length=1, max_length=MEMORY_MAX, description="The whole memory, new.")
        ]
        | None
    ) = None
    append: (
        Annotated[
            str, Meta(min_length=1, max_length=APPEND_MAX, description="Text to add at its end.")
        ]
        | None
    ) = None


def propose_memory(call: ProposeMemory, records: Records) -> Outcome:
    """Plan to change the memory of the agent that calls; the same text again changes nothing."""
    if (call.content is None) == (call.append is None):
        raise Invalid("propose_memory takes either content or append")
    view = _own(records)
    old = view.text("content").rstrip()
    new = call.content if call.content is not None else f"{old}\n{call.append}".lstrip("\n")
    if len(new) > MEMORY_MAX:
        raise TooLarge(f"a memory holds at most {MEMORY_MAX} characters")
    if new == view.text("content"):
        return Outcome("The memory says so already.")
    return Outcome("The memory is changed.", None, (records.edit(view, {"content": new}),))


def _own(records: Records) -> View:
    """Return the one memory that the caller can see; raise NotFound where it has none."""
    found = records.all(AGENT_MEMORY)
    if len(found) != 1:
        raise NotFound("the agent's own memory cannot be read here")
    return found[0]


def _sentence(call: ProposeMemory, records: Records) -> str:
    if call.append is None:
        return "Replace what the agent remembers"
    words = " ".join(call.append.split())
    short = words if len(words) <= _QUOTED_MAX else words[: _QUOTED_MAX - 1] + "…"
    return f"Remember “{short}”"


PROPOSE_MEMORY_TOOL: Final = Tool(
    name=PROPOSE_MEMORY,
    module="agents",
    effect="write",
    description=(
        "Propose a change of your own memory, which you are given at the start of each run: what "
        "will help in later runs, in few words. The person decides."
    ),
    call=ProposeMemory,
    run=propose_memory,
    sentence=_sentence,
    always_asks=True,
    words="change its own memory",
)
