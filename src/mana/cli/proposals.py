"""Proposals and changes in words: who, what exactly would change, why, and how far it reaches."""

from __future__ import annotations

import json

from mana.cli.caps import used_words
from mana.cli.output import Block, Facts, Line
from mana.cli.text import agent_words, one_line, when
from mana.device import names
from mana.device.names import called
from mana.device.views import FieldDiff, Proposal, RecordDiff
from mana.domain.encoding import Json


def proposal_blocks(one: Proposal, currency: str, *, now_ms: int) -> list[Block]:
    """Return a proposal in the order in which a person decides on it."""
    who = agent_words(one.agent_name, one.agent_avatar)
    blocks: list[Block] = [
        Line(one_line(one.sentence), "title"),
        Facts(
            [
                ("Id", one.step_id),
                ("From", f"{who}, “{one_line(one.mission_title, 80)}”"),
                ("When", when(one.planned_ms, now_ms=now_ms)),
                ("State", called(names.STATES, one.state)),
            ]
        ),
    ]
    if not one.verified:
        blocks.append("Not verified by this device, so it cannot be approved here.")
    if one.moved:
        blocks.append("What it would change has moved since it was planned; this is how it is now.")
    for fault in one.faults:
        blocks.append(f"Cannot be so: {one_line(f'{fault.path}: {fault.reason}'.lstrip(': '))}")
    blocks += diff_blocks(one.diffs)
    if one.proposed is not None:
        blocks += ["", Line(f"As you want it. Proposed was: {one_line(one.proposed.sentence)}")]
    blocks += [names.FLAGS[flag] for flag in one.flags if flag in names.FLAGS]
    cost = f"the whole run: {used_words(one.tokens, one.cost or 0, currency)}"
    if one.cost == 0:
        cost += ", free"
    if one.model:
        cost += f", {one_line(one.model)}"
    expires = when(one.expires_ms, now_ms=now_ms) if one.expires_ms is not None else ""
    blocks += [
        "",
        Facts(
            [
                ("Why", one.rationale),
                ("Read", "\n".join(one_line(cited.title) for cited in one.cited)),
                ("Reach", one.reach),
                ("Cost", cost),
                ("Expires", expires),
                ("Rejected", called(names.REJECTED, one.reject_reason)),
                ("Answer", one.feedback),
                ("Note", one.note),
                ("Trouble", one.trouble),
            ]
        ),
    ]
    return blocks


def diff_blocks(diffs: tuple[RecordDiff, ...]) -> list[Block]:
    """Return what changes in each record: `-` before, `+` after, by field."""
    blocks: list[Block] = []
    for diff in diffs:
        verb = {"insert": "New", "delete": "Deleted"}.get(diff.op, "Changed")
        title = one_line(diff.title, 80) or diff.record_id
        blocks += ["", Line(f"{verb} {called(names.TABLES, diff.table)}: {title}")]
        for field in diff.fields:
            blocks += _field_blocks(field)
    return blocks


def _field_blocks(field: FieldDiff) -> list[Block]:
    named = called(names.FIELDS, field.name)
    if field.words:
        return [Line(f"    {named}:", "quiet"), *_word_blocks(field.words)]
    blocks: list[Block] = []
    if field.before is not None:
        blocks.append(Line(f"  - {named}: {value_words(field.before)}", "gone"))
    if field.after is not None:
        blocks.append(Line(f"  + {named}: {value_words(field.after)}", "new"))
    return blocks


def _word_blocks(words: tuple[tuple[str, str], ...]) -> list[Block]:
    """Return a word difference as lines; all that goes and comes is shown in full."""
    marks = {"gone": ("  - ", "gone"), "new": ("  + ", "new"), "same": ("    ", "quiet")}
    blocks: list[Block] = []
    for kind, text in words:
        lead, mark = marks.get(kind, marks["same"])
        shown = _excerpt(text) if kind == "same" else text
        lines = [line for line in shown.split("\n") if line.strip()]
        blocks += [Line(lead + line, mark) for line in lines]
    return blocks


def _excerpt(text: str) -> str:
    """Return the ends of unchanged text, which the reader needs only for its place."""
    return text if len(text) <= 160 else f"{text[:70].rstrip()} […] {text[-70:].lstrip()}"


def value_words(value: Json) -> str:
    """Return a value of a field, its further lines set in."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("\n", "\n    ")
