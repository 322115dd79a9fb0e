"""Reasons in plain words: what a code of the hub or a gate means to the person.

Pure. A code that is not listed is shown as it is, rather than hidden.
"""

from __future__ import annotations

from typing import Final

from mana.domain.money import amount_words
from mana.planning.budget import BudgetRefusal, read_budget_reason

CURRENCY: Final = "USD"
NEEDS_HUB: Final = "budget:offline"
"""Under a cap the hub could not be asked, and nothing was reserved for this device."""
SCOPES: Final = {
    "mission": "The mission's",
    "agent": "The agent's",
    "account": "Your",
    "hub": "The hub's",
}
SKIPPED: Final = {
    "mission-not-active": "The mission is not active.",
    "agent-missing": "The agent is gone, so nothing may happen in its name.",
    "agent-paused": "The agent is paused.",
    "agent-archived": "The agent is archived.",
    "no-grant": "Nothing is granted, so the hub cannot read what the mission needs.",
    "not-configured": "The hub's runner is not set up for grants.",
    "expired": "The grant has expired.",
    "revoked": "The grant was revoked.",
    "wrap-rejected": "The grant was made for another runner key.",
    "malformed": "The grant cannot be read.",
    "signature-rejected": (
        "A signature does not hold: that of the grant, or of your word on your account's work."
    ),
    "scope-mismatch": "The grant is not for what the mission now looks at, or for another model.",
    "set-back": (
        "The hub's database is older than what its runner saw: it was put back. Nothing was "
        "opened. Ask whoever runs the hub."
    ),
    "key-rotated": "Keys were changed since the grant was made.",
    "not-a-member": "Whoever granted this may no longer write in the space.",
    "concurrency": "The agent is at work on as many missions as it may.",
    "budget": "Today's budget is used up.",
    NEEDS_HUB: (
        "There is a cap, and the hub cannot be reached: nothing is spent on this device beyond "
        "what is reserved for it."
    ),
    "no-price": "There is a cap of costs, and nobody said what the model costs.",
    "stopped": "All work was stopped.",
    "superseded": "A later run took its place.",
}
UNREAD: Final = {
    "malformed": "It, or the key to it, cannot be read.",
    "scope-mismatch": "The grant does not name it.",
}
"""Why one record was not read, where that is something else than why a run did not begin."""
FAILED: Final = {
    "crash": "It stopped half-way three times.",
    "model": "The model gave no answer.",
    "provider": "The model's endpoint could not be reached, or failed.",
    "rate-limit": "The model's endpoint takes no more calls for now.",
    "auth": "The model's endpoint does not take the key.",
    "guardrail": "It went beyond what a run may do.",
    "no-model": "None of the models that it may use answered.",
    "refused-reply": "The model's answer could not be used.",
    "inputs": "The inputs hold more text than one run may read.",
    "internal": "Something went wrong inside Mana.",
    "timeout": "It took too long and was stopped.",
    "stopped": "It was stopped.",
}
HELD: Final = {
    "no-grant": "Waits for your grant.",
    "expired": "Waits: the grant has expired.",
    "revoked": "Waits: the grant was revoked.",
    "malformed": "Waits: this version cannot read the mission.",
    "errored": "Waits: it failed several times in a row.",
    "agent-paused": "Waits: the agent is paused.",
    "agent-archived": "Waits: the agent is archived.",
    "agent-missing": "Waits: the agent is gone.",
    "mission-not-active": "",
}
REFUSED_CHANGES: Final = {
    "clock-ahead": "This machine's clock is too far ahead.",
    "stale-key": "It was sealed with a key that has been replaced; send it again.",
    "guard-failed": "Another device was first.",
    "group-refused": "It belongs to a change that was refused.",
    "audit-missing": "A change of the space's policy came without its record.",
    "immutable": "It stands for good and cannot be changed.",
    "fixed-field": "It changes what is fixed once it was written.",
    "role": "Your role in the space does not let you write.",
    "module-refused": "The space does not take records of this module.",
    "unknown-table": "The hub does not know this kind of record; it may be older than this device.",
    "unknown-path": "The hub does not know this field; it may be older than this device.",
    "cadence-refused": "The hub does not run missions at such times.",
    "change-too-large": "It is larger than the hub takes in one piece.",
    "reseal-outdated": "The record was changed elsewhere first.",
    "unconfirmed": "The hub says that it took it, and does not show it.",
    "hidden": "Its author keeps the record to themselves now.",
    "plaintext-refused": "It would have left this device unsealed, so the hub did not take it.",
    "bad-envelope": "Its seal is not one that the hub knows; this device may be older than the hub.",
    "forged-actor": "It says that somebody else made it.",
    "forged-device": "It says that another device made it.",
    "signature-missing": "It decides something, and is not signed.",
    "signature-rejected": "It decides something, and its signature does not hold.",
    "flip-outdated": "The record was changed elsewhere first.",
    "not-a-member": "The account is not in this space any more.",
    "id-taken": "Another member has used its id, again and again.",
    "guard-missing": "It does not say what stood before it.",
    "bad-value": "The hub does not take it in this form.",
}
"""By a code of docs/protocol/sync.md, 4 and 8, why a change is parked."""
REFUSED_CALLS: Final = {
    "TOOL_NOT_OFFERED": "it asked for a tool that it does not have",
    "TOOL_DENIED": "its policy denies this",
    "DUPLICATE_CALL": "it asked for the same thing twice",
    "PLAN_STEP_LIMIT": "a plan has at most 25 steps",
    "CALLS_PER_ROUND": "it asked for too many tools at once",
    "INPUT_SIZE_LIMIT": "it would have read more than a run may",
    "TABLE_FORBIDDEN": "agents may not change this",
    "BAD_REQUEST": "what it asked for had a wrong form",
    "NOT_FOUND": "what it named is not among what it may read",
    "NEEDS_APPROVAL": "it is yours to decide",
    "CHANGE_FORBIDDEN": "it would have changed what this call may not",
    "FIELD_UNREADABLE": "what it would build on cannot be read here",
    "EMPTY_TEXT": "a text that it needs was empty",
    "RATE_LIMIT": "it asked for this too often within a minute",
    "EXTERNAL_LIMIT": "a run sends out only so much",
    "DUPLICATE_DESTRUCTIVE": "it had asked to replace or delete the same before",
    "TOOL_FAILED": "the tool broke down over it",
    "SUB_AGENT_LIMIT": "a run has only so many sub-agents",
    "SUB_AGENT_FAILED": "the sub-agent came to no end",
}


KINDS: Final = {
    "notes": ("note", "notes"),
    "tasks": ("task", "tasks"),
    "agentMemory": ("memory of an agent", "memories of agents"),
}


def kind_words(table: str, count: int = 1) -> str:
    """Return what a record of a table is called, or several."""
    one, many = KINDS.get(table, (f"record of {table}", f"records of {table}"))
    return one if count == 1 else many


def reason_words(state: str, reason: str, *, currency: str = CURRENCY) -> str:
    """Return why an occurrence ended as it did; empty where there is nothing to say."""
    if not reason:
        return "It was due while nothing could run." if state == "missed" else ""
    budget = read_budget_reason(reason)
    if budget is not None:
        return budget_words(budget, currency)
    known = (FAILED, SKIPPED) if state == "failed" else (SKIPPED, FAILED)
    return known[0].get(reason) or known[1].get(reason) or f"Reason: {reason}."


def unread_words(reason: str) -> str:
    """Return why the runner did not read a record."""
    return UNREAD.get(reason) or reason_words("skipped", reason)


def budget_words(refused: BudgetRefusal, currency: str = CURRENCY) -> str:
    """Return whose cap stopped a run, and what was left of it."""
    whose = SCOPES[refused.scope]
    cap = amount(refused.cap, refused.unit, currency)
    if refused.cap == 0:
        return f"{whose} budget is {cap}, so nothing runs under it."
    if refused.left == 0:
        return f"{whose} budget of {cap} a day is used up."
    left = amount(refused.left, refused.unit, currency)
    return f"{whose} budget of {cap} a day has {left} left, too little for one call."


def amount(count: int, unit: str, currency: str = CURRENCY) -> str:
    """Return tokens or millionths of the currency as people read them."""
    if unit == "cost":
        return amount_words(count, currency)
    return "1 token" if count == 1 else f"{count:,} tokens"


def spent_words(
    tokens: int, unconfirmed_tokens: int, cost: int, unconfirmed_cost: int, currency: str = CURRENCY
) -> str:
    """Return what was used, and how much of it is a worst case; empty where nothing was."""
    if not tokens and not cost:
        return ""
    used = amount(tokens, "tokens")
    if cost:
        used += f", {amount_words(cost, currency)}"
    if unconfirmed_tokens <= 0:
        return used
    if unconfirmed_tokens >= tokens:
        return f"at most {used}: the model never said"
    unsaid = f"{unconfirmed_tokens:,}"
    if unconfirmed_cost:
        unsaid = (
            f"{amount(unconfirmed_tokens, 'tokens')}, {amount_words(unconfirmed_cost, currency)}"
        )
    return f"{used}, of which {unsaid} at most: the model never said"


def errored_words(failures: int, failure: str) -> str:
    """Return why a mission waits that failed too often in a row."""
    why = reason_words("failed", failure)
    return (
        f"Waits: it failed {failures} times in a row. {why} Resume it when that is mended.".replace(
            "  ", " "
        )
    )


def hold_words(hold: str) -> str:
    """Return why a mission waits; empty if it does not."""
    if not hold:
        return ""
    words = HELD.get(hold)
    return f"Waits: {hold}." if words is None else words


def refused_call_words(code: str, message: str) -> str:
    """Return why a model's call did not happen."""
    return REFUSED_CALLS.get(code) or message or code


def refused_change_words(code: str) -> str:
    """Return why the hub did not take a change; the code is shown beside it."""
    return REFUSED_CHANGES.get(code, REFUSED_CHANGES["bad-value"])
