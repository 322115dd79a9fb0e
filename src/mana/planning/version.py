"""The version of the prompt: the hash of every template from which a model is told anything.

It is kept on each iteration, so that a change of behaviour can be told from a change of words.
"""

from __future__ import annotations

from typing import Final

from mana.domain.encoding import length_prefixed, sha256
from mana.planning import compaction, prompt, reminders, subagents

PROMPT_VERSION: Final = sha256(
    length_prefixed(
        "mana-prompt:v2",
        *prompt.TEMPLATES,
        *reminders.TEMPLATES,
        *compaction.TEMPLATES,
        *subagents.TEMPLATES,
    )
).hex()
