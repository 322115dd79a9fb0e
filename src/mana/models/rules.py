"""The offline model: fixed rules that find action items and dates. Not a language model.

It stands behind the same port and sees only what any model would see: the messages and the
tools of the request. So the main job needs no account anywhere, and the same notes always give
the same plan. It understands nothing; it matches words, in English.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from mana.domain.encoding import Json
from mana.planning.ports import FunctionCall, Message, ModelReply, ModelRequest, Usage

ENDPOINT: Final = "rules:offline"
NAME: Final = "rules (offline)"
DESCRIPTION: Final = (
    "rules (offline): finds action items and dates; not a language model; "
    "text stays on the machine where they run"
)
WRITES_PER_ROUND_MAX: Final = 8
WRITES_MAX: Final = 20
_TITLE_MAX: Final = 120
_EXTRACT_MAX: Final = 160
_NAMED_MAX: Final = 300
_OPEN_AGAIN: Final = ("failed", "expired")

_DATA: Final = re.compile(r'<data id="([^"]*)" title="([^"]*)">\n(.*?)\n</data>', re.DOTALL)
_TODAY: Final = re.compile(r"^Now: \S+ · Today: (\d{4}-\d\d-\d\d)", re.MULTILINE)
_MARKS: Final = re.compile(r"[*_`~]+|\((?:urgent|important|asap)\)", re.IGNORECASE)
_STATES: Final = re.compile(
    r"(?:not|never|be|have|admit|believe|consider|feel|know|say|see|think|understand|wait)\b",
    re.IGNORECASE,
)
_SELF: Final = re.compile(r"^Your name: .*$", re.MULTILINE)
_PAST_STEP: Final = re.compile(r"^- \[(\w+)\] (\w+): (.*)$", re.MULTILINE)
_QUOTED: Final = re.compile(r"“([^”]*)”")
_TASK_LINE: Final = re.compile(
    r"^\[(open|completed)\] (.*?)(?: — .*?)?(?: \(due: (\d{4}-\d\d-\d\d)\))?$", re.DOTALL
)
_BOX_OPEN: Final = re.compile(r"^\s*(?:[-*+]|\d+[.)])?\s*\[\s?\]\s+(.+)$")
_BOX_DONE: Final = re.compile(r"^\s*(?:[-*+]|\d+[.)])?\s*\[[xX]\]\s+(.+)$")
_MARKED: Final = re.compile(
    r"^\s*(?:[-*+]\s+)?(?:TODO|To-do|To do|Action|Action item|Follow-up|Next step|Remember|Reminder|Don['’]t forget)\s*:\s*(.+)$",
    re.IGNORECASE,
)
_DONE: Final = re.compile(
    r"^\s*(?:[-*+]\s+)?(?:DONE|Finished|Completed)\s*:\s*(.+)$", re.IGNORECASE
)
_DUTY: Final = re.compile(
    r"\b(?:(?:I|we|you)\s+)?(?:must|need to|needs to|have to|has to|should not forget to|"
    r"remember to|don['’]t forget to|make sure to)\s+(?P<what>[^.!?;]+)",
    re.IGNORECASE,
)
_VERBS: Final = (
    "answer|arrange|ask|book|bring|buy|call|cancel|check|clean|collect|confirm|contact|email|"
    "finish|fix|invite|mail|order|organise|organize|pay|phone|pick up|plan|post|prepare|print|"
    "register|remind|renew|repair|reply|reserve|return|review|ring|schedule|send|sign|submit|"
    "update|visit|write"
)
_COMMAND: Final = re.compile(
    rf"^(?:[-*+]\s+)?(?:please\s+)?(?P<what>(?:{_VERBS})\b(?!\s*[:–]|\s(?:of|with|about|was|were|is)\b).+)$",
    re.I,
)
_SENTENCES: Final = re.compile(r"(?<=[.!?;])\s+")
_NEGATED: Final = re.compile(r"\b(?:not|never|no longer)\s*$", re.IGNORECASE)

_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS: Final = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH: Final = "|".join(f"{name}|{name[:3]}" for name in _MONTHS)
_LEAD: Final = (
    r"(?:\s*[,(–-]?\s*\b(?:(?:due|until|till|before|by|on|for|this|next|no later than)\s+)+|\s+|\()"
)
_ISO_DAY: Final = re.compile(rf"{_LEAD}(\d{{4}}-\d\d-\d\d)\)?", re.IGNORECASE)
_DAY_MONTH: Final = re.compile(
    rf"{_LEAD}(?:the\s+)?(\d{{1,2}})(?:st|nd|rd|th)?\.?\s+(?:of\s+)?({_MONTH})\b\.?(?:\s+(\d{{4}}))?\)?",
    re.IGNORECASE,
)
_MONTH_DAY: Final = re.compile(
    rf"{_LEAD}({_MONTH})\b\.?\s+(\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(\d{{4}}))?\b\)?", re.IGNORECASE
)
_DOTTED: Final = re.compile(rf"{_LEAD}(\d{{1,2}})\.(\d{{1,2}})\.(\d{{4}})?\)?")
_WEEKDAY: Final = re.compile(
    rf"\s*[,(–-]?\s*\b(?:(?:due|until|till|before|by|on|this|next|no later than)\s+)+"
    rf"({'|'.join(_DAYS)})\b\)?",
    re.IGNORECASE,
)
_NEAR: Final = re.compile(
    rf"(?:{_LEAD})?\b(today|tonight|tomorrow|end of (?:the )?week|next week)\b(?!['’])"
    rf"(?:\s+(?:morning|noon|afternoon|evening|night))?\)?",
    re.IGNORECASE,
)
_WANTS_SUMMARY: Final = re.compile(
    r"\b(summar\w+|digest|overview|briefing|recap\w*)\b", re.IGNORECASE
)
_URGENT: Final = re.compile(r"\b(urgent\w*|asap|immediately|important)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Block:
    """A record of the prompt: its table and id, title and text."""

    key: str
    title: str
    content: str

    @property
    def table(self) -> str:
        """Return the table of the record."""
        return self.key.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Item:
    """An action item that was found: its title, due day or none, and where it stands."""

    title: str
    due: str | None
    urgent: bool
    source: Block


@dataclass(frozen=True, slots=True)
class Known:
    """A task that exists: from the inputs, or from `list_tasks`."""

    id: str
    title: str
    due: str | None
    completed: bool


class Rules:
    """The offline model. It keeps nothing between calls."""

    @property
    def endpoint(self) -> str:
        """Return the name that grants hold; text goes nowhere."""
        return ENDPOINT

    @property
    def name(self) -> str:
        """Return the model's name."""
        return NAME

    @property
    def local(self) -> bool:
        """Say that text stays on this machine."""
        return True

    @property
    def metered(self) -> bool:
        """Say that it costs nothing."""
        return False

    @property
    def description(self) -> str:
        """Return what this is, honestly."""
        return DESCRIPTION

    async def complete(self, request: ModelRequest) -> ModelReply:
        """Return the next calls, or the summary when nothing is left to propose."""
        return answer(request)


def answer(request: ModelRequest) -> ModelReply:
    """Return the reply to a request, a pure function of it. It costs no tokens."""
    reading = _Reading(request)
    calls = reading.next_calls()
    if calls:
        return ModelReply("", calls, "calls", Usage())
    return ModelReply(reading.summary(), (), "stop", Usage())


class _Reading:
    """One request, read: what stands in it, and what follows from it."""

    def __init__(self, request: ModelRequest) -> None:
        self.offered = _offered(request.tools)
        frame = next((m.content for m in request.messages if m.role == "user"), "")
        match = _TODAY.search(frame)
        self.today = _day(match[1]) if match else None
        blocks = [
            Block(html.unescape(key), html.unescape(title), html.unescape(content))
            for key, title, content in _DATA.findall(frame)
        ]
        past = [block for block in blocks if block.table == "iteration"]
        self.blocks = [block for block in blocks if block.table != "iteration"]
        self.notes = [block for block in self.blocks if block.table != "tasks"]
        self.settled = {
            (tool, _key(quoted))
            for block in past
            for status, tool, sentence in _PAST_STEP.findall(block.content)
            if status not in _OPEN_AGAIN
            for quoted in _QUOTED.findall(sentence)[:1]
        }
        self.goal = _SELF.sub("", frame.partition("\n## Linked inputs\n")[0])
        self.made = [call for message in request.messages for call in message.calls]
        self.accepted = {
            message.call_id
            for message in request.messages
            if message.role == "tool" and _is_success(message)
        }
        self.known = [*_known_inputs(self.blocks), *_known_listed(request.messages)]

    def next_calls(self) -> tuple[FunctionCall, ...]:
        """Return the calls of this round: first a look at the tasks, then what is to be done."""
        number = len(self.made)
        if not self.made and "list_tasks" in self.offered:
            arguments: Json = {"filter": "all", "limit": 200}
            return (FunctionCall(f"rules-{number}", "list_tasks", arguments),)
        done = {(call.name, _key(_subject(call))) for call in self.made}
        wanted = [call for call in self._writes() if (call[0], _key(call[1])) not in done]
        room = WRITES_MAX - sum(call.name != "list_tasks" for call in self.made)
        return tuple(
            FunctionCall(f"rules-{number + offset}", name, arguments)
            for offset, (name, _, arguments) in enumerate(
                wanted[: max(0, min(room, WRITES_PER_ROUND_MAX))]
            )
        )

    def _writes(self) -> Iterator[tuple[str, str, Json]]:
        """Give every write that the inputs call for: tool, subject, arguments."""
        if "create_task" in self.offered:
            for item in self.new_items():
                yield "create_task", item.title, _create(item)
        if "complete_task" in self.offered:
            for known, block in self.finished():
                reason = f"{_named(block)} says that it is done."
                arguments: Json = {"taskId": known.id, "rationale": reason}
                yield "complete_task", known.id, arguments
        if "create_note" in self.offered and _WANTS_SUMMARY.search(self.goal) and self.blocks:
            title = f"Summary of {self.today.isoformat()}" if self.today else "Summary"
            if ("create_note", _key(title)) not in self.settled:
                text = f"# {title}\n\n{self._digest()}"
                reason = "The mission asks for a summary; it rests on all linked inputs."
                yield (
                    "create_note",
                    title,
                    {"title": title, "content": text[:8_000], "rationale": reason},
                )

    def new_items(self) -> list[Item]:
        """Return action items that are no task yet, and were not proposed before."""
        taken = {_key(known.title) for known in self.known}
        found: list[Item] = []
        for block in self.notes:
            for item in _items(block, self.today):
                key = _key(item.title)
                if key and key not in taken and ("create_task", key) not in self.settled:
                    taken.add(key)
                    found.append(item)
        return found

    def finished(self) -> list[tuple[Known, Block]]:
        """Return open tasks that a note marks as done, with the note."""
        still_open = {_key(known.title): known for known in self.known if not known.completed}
        found: dict[str, tuple[Known, Block]] = {}
        for block in self.notes:
            for line in _lines(block):
                match = _BOX_DONE.match(line) or _DONE.match(line)
                known = still_open.get(_key(_plain_title(match[1]))) if match else None
                if known and ("complete_task", _key(known.title)) not in self.settled:
                    found.setdefault(known.id, (known, block))
        return list(found.values())

    def summary(self) -> str:
        """Return what was planned, and what is late or undated, in the inputs' own words."""
        counts = {
            name: sum(call.name == name and call.id in self.accepted for call in self.made)
            for name in ("create_task", "complete_task", "create_note")
        }
        words = {
            "create_task": "new task",
            "complete_task": "task to complete",
            "create_note": "new note",
        }
        planned = [_counted(count, words[name]) for name, count in counts.items() if count]
        late = len(self._late())
        parts = [
            f"Read {_counted(len(self.blocks), 'input')}",
            f"suggests {_joined(planned) or 'nothing new'}",
            *([f"{_counted(late, 'task')} {'is' if late == 1 else 'are'} overdue"] if late else []),
        ]
        head = f"{'; '.join(parts)}."
        digest = self._digest()
        return f"{head}\n\n{digest}" if digest else head

    def _digest(self) -> str:
        """Return tasks that are late or without a day, and the first sentence of each note."""
        undated = [known.title for known in self._still_open() if not known.due]
        lines = _listed("Overdue", [f"{k.title} (since {k.due})" for k in self._late()])
        lines += _listed("Without a day", undated)
        lines += _listed(
            "Notes", [f"{b.title}: {x}" if (x := _extract(b)) else b.title for b in self.notes]
        )
        return "\n".join(lines)

    def _still_open(self) -> list[Known]:
        """Return the open tasks, each once."""
        return list({known.id: known for known in self.known if not known.completed}.values())

    def _late(self) -> list[Known]:
        """Return the open tasks whose day has passed."""
        if self.today is None:
            return []
        day = self.today.isoformat()
        return [known for known in self._still_open() if known.due and known.due < day]


def _offered(tools: Sequence[dict[str, Json]]) -> frozenset[str]:
    """Return the names of the tools of a request."""
    names: set[str] = set()
    for tool in tools:
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str):
            names.add(name)
    return frozenset(names)


def _create(item: Item) -> Json:
    """Return the arguments of `create_task` for an item."""
    arguments: dict[str, Json] = {"title": item.title}
    if item.due:
        arguments["dueDate"] = item.due
    if item.urgent:
        arguments["priority"] = "high"
    reason = f"{_named(item.source)} names it as something to do."
    return {**arguments, "rationale": reason}


def _named(source: Block) -> str:
    """Return an input as a person knows it: its title in quotes, never its id."""
    return f"“{source.title[:_NAMED_MAX]}”" if source.title else "An input without a title"


def _subject(call: FunctionCall) -> str:
    """Return what a call is about: the title of a new record, or the id of an old one."""
    arguments = call.arguments if isinstance(call.arguments, dict) else {}
    subject = arguments.get("title") or arguments.get("taskId")
    return subject if isinstance(subject, str) else ""


def _is_success(message: Message) -> bool:
    """Say whether the answer to a call was a success."""
    try:
        answered = json.loads(message.content)
    except (ValueError, RecursionError):
        return False
    return isinstance(answered, dict) and answered.get("success") is True


def _known_inputs(blocks: Sequence[Block]) -> list[Known]:
    """Return the tasks among the inputs."""
    found: list[Known] = []
    for block in blocks:
        match = _TASK_LINE.match(block.content) if block.table == "tasks" else None
        if match:
            task_id = block.key.partition(":")[2]
            found.append(Known(task_id, block.title or match[2], match[3], match[1] == "completed"))
    return found


def _known_listed(messages: Sequence[Message]) -> list[Known]:
    """Return the tasks that `list_tasks` answered with."""
    found: list[Known] = []
    for message in messages:
        if message.role != "tool":
            continue
        try:
            answered = json.loads(message.content)
        except (ValueError, RecursionError):
            continue
        data = answered.get("data") if isinstance(answered, dict) else None
        tasks = data.get("tasks") if isinstance(data, dict) else None
        for task in tasks if isinstance(tasks, list) else []:
            if isinstance(task, dict) and isinstance(task.get("taskId"), str):
                due = task.get("dueDate")
                found.append(
                    Known(
                        task["taskId"],
                        str(task.get("title", "")),
                        due if isinstance(due, str) else None,
                        task.get("isCompleted") is True,
                    )
                )
    return found


def _items(block: Block, today: date | None) -> Iterator[Item]:
    """Give the action items of a record's text, line by line."""
    for line in _lines(block):
        if _BOX_DONE.match(line) or _DONE.match(line):
            continue
        marked = _BOX_OPEN.match(line) or _MARKED.match(line)
        if marked:
            yield from _item(marked[1], block, today)
            continue
        for sentence in _SENTENCES.split(line):
            command = _COMMAND.match(sentence)
            duty = None if command else _DUTY.search(sentence)
            if command:
                yield from _item(command["what"], block, today)
            elif duty and not (
                _NEGATED.search(sentence[: duty.start()]) or _STATES.match(duty["what"])
            ):
                yield from _item(duty["what"], block, today)


def _lines(block: Block) -> list[str]:
    """Return the lines of a text without empty ones, each with single spaces.

    The patterns rely on it: long runs of spaces would make them slow.
    """
    lines = (" ".join(line.split()) for line in block.content.splitlines())
    return [line for line in lines if line]


def _item(words: str, block: Block, today: date | None) -> Iterator[Item]:
    """Give the item of these words, unless nothing is left beside its day."""
    text, due = _take_day(words, today)
    title = _plain_title(text)
    if len(title) >= 3:
        yield Item(title, due, bool(_URGENT.search(words)), block)


def _plain_title(words: str) -> str:
    """Return words as a title: one line, no marks at the ends, a capital at the start."""
    title = " ".join(_MARKS.sub("", words).split()).strip(" .,;:!?-–—")
    if title.count("(") != title.count(")"):
        title = title.replace("(", "").replace(")", "").strip()
    if len(title) > _TITLE_MAX:
        title = title[:_TITLE_MAX].rsplit(" ", 1)[0] + "…"
    return title[:1].upper() + title[1:]


def _take_day(words: str, today: date | None) -> tuple[str, str | None]:
    """Return words without the day they name, and that day; both unchanged if there is none."""
    padded = f" {' '.join(words.split())}"
    for pattern, read in _READERS:
        for match in pattern.finditer(padded):
            day = read(match, today)
            if day is not None:
                rest = f"{padded[: match.start()]} {padded[match.end() :]}"
                return " ".join(rest.split()), day.isoformat()
    return words, None


def _day(text: str) -> date | None:
    """Return the day of `YYYY-MM-DD`, None if there is none."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _month(name: str) -> int:
    """Return the number of a month's name."""
    return 1 + next(i for i, month in enumerate(_MONTHS) if month.startswith(name.lower()[:3]))


def _soonest(today: date | None, year: str | None, month: int, day: int) -> date | None:
    """Return the day of that year, or of the next such day from today on."""
    years = [int(year)] if year else [today.year, today.year + 1] if today else []
    for candidate in years:
        try:
            found = date(candidate, month, day)
        except ValueError:
            continue
        if year or today is None or found >= today:
            return found
    return None


def _weekday(today: date | None, name: str) -> date | None:
    """Return the next such day, today included."""
    if today is None:
        return None
    return today + timedelta(days=(_DAYS.index(name.lower()) - today.weekday()) % 7)


def _near(today: date | None, words: str) -> date | None:
    """Return the day of `today`, `tomorrow` and the like; a week ends on Friday."""
    if today is None:
        return None
    name = words.lower()
    if name in ("today", "tonight"):
        return today
    if name == "tomorrow":
        return today + timedelta(days=1)
    friday = today + timedelta(days=(4 - today.weekday()) % 7)
    return friday + timedelta(days=7) if name == "next week" else friday


def _key(title: str) -> str:
    """Return a title as it is compared: letters and digits, lower case."""
    return " ".join(re.findall(r"\w+", title.casefold()))


def _extract(block: Block) -> str:
    """Return the first sentence of a text that is no heading and no list."""
    for text in _lines(block):
        if not text.startswith(("#", "-", "*", "+", "[", ">")):
            sentence = _SENTENCES.split(text)[0]
            short = sentence[: _EXTRACT_MAX - 1] + "…"
            return sentence if len(sentence) <= _EXTRACT_MAX else short
    return ""


def _counted(count: int, noun: str) -> str:
    head, space, tail = noun.partition(" to ")
    return f"{count} {head}{'' if count == 1 else 's'}{space}{tail}"


def _joined(parts: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _listed(heading: str, lines: Sequence[str]) -> list[str]:
    """Return a short list under a heading, or nothing."""
    if not lines:
        return []
    more = [f"- and {len(lines) - 10} more"] if len(lines) > 10 else []
    return [f"{heading}:", *(f"- {line}" for line in lines[:10]), *more]


_Reader = Callable[[re.Match[str], date | None], date | None]
_READERS: Final[tuple[tuple[re.Pattern[str], _Reader], ...]] = (
    (_ISO_DAY, lambda match, today: _day(match[1])),
    (_DOTTED, lambda match, today: _soonest(today, match[3], int(match[2]), int(match[1]))),
    (_DAY_MONTH, lambda match, today: _soonest(today, match[3], _month(match[2]), int(match[1]))),
    (_MONTH_DAY, lambda match, today: _soonest(today, match[3], _month(match[1]), int(match[2]))),
    (_WEEKDAY, lambda match, today: _weekday(today, match[1])),
    (_NEAR, lambda match, today: _near(today, match[1])),
)
