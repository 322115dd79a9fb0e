"""Dispatch: answers, plans or refuses; it applies nothing, and modules reach no further."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.actors import Actor
from mana.domain.agents import AGENTS
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json, canonical_json
from mana.domain.errors import ManaError
from mana.domain.ids import RecordId, created_id, step_id
from mana.domain.iterations import binding_hash
from mana.domain.manifest import ModuleManifest
from mana.domain.policy import AGGRESSIVE, CAUTIOUS, STANDARD, Policy
from mana.domain.records import Records
from mana.domain.tables import DELETED_AT, Identifier, Table, Text, plain, sealed
from mana.domain.tools import Call, Effect, Outcome, Tool
from mana.planning.dispatch import (
    Answered,
    Caller,
    Planned,
    PlannedStep,
    Refused,
    call_of_intent,
    changes_of_preview,
    dispatch,
    execute,
    moved_paths,
)
from mana.registry.catalogue import BUILT_IN, Catalogue, build_catalogue
from tests.planning.given import (
    CATALOGUE,
    ITERATION,
    NOW,
    PERSON,
    STAMP,
    caller,
    records,
    some_views,
    view,
)

SRC = Path(__file__).parents[2] / "src" / "mana"


def call(
    name: str,
    arguments: Json,
    *,
    by: Caller | None = None,
    index: int = 0,
    planned: tuple[PlannedStep, ...] = (),
    catalogue: Catalogue = CATALOGUE,
    over: Records | None = None,
) -> Answered | Planned | Refused:
    """Dispatch one call of an agent."""
    return dispatch(
        name,
        arguments,
        caller=by or caller(),
        catalogue=catalogue,
        records=over or records(),
        step=step_id(ITERATION, index),
        index=index,
        planned=planned,
    )


def step_of(result: object) -> PlannedStep:
    """Return the step of a planned call."""
    assert isinstance(result, Planned), result
    return result.step


def test_dispatch_is_the_only_caller_of_tools() -> None:
    """No other file calls a tool's function."""
    callers = set()
    for path in SRC.rglob("*.py"):
        text = path.read_text("utf-8")
        if ".run(" not in text:
            continue  # to read every file as a tree takes seconds
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                names = {n.id for n in ast.walk(node.func.value) if isinstance(n, ast.Name)}
                if node.func.attr == "run" and names & {"tool", "declared"}:
                    callers.add(path.relative_to(SRC).as_posix())
    assert callers == {"planning/dispatch.py"}


def test_a_read_is_answered() -> None:
    """A read gives its data and makes no step."""
    result = call("list_tasks", {"filter": "overdue"})
    assert isinstance(result, Answered)
    assert result.data["total"] == 1  # type: ignore[index,call-overload]


def test_a_write_becomes_a_bound_step() -> None:
    """A write is a step with sentence, preview, base and a binding over exactly these."""
    step = step_of(call("append_to_note", {"noteId": "n2", "content": "More.", "rationale": "r"}))
    assert step.decision == "propose"
    assert step.sentence == "Add text to note “Trip”"
    assert (step.rationale, step.arguments) == ("r", {"noteId": "n2", "content": "More."})
    assert list(step.preview) == [
        {
            "table": "notes",
            "id": "n2",
            "op": "update",
            "before": {"content": "Ideas for spring."},
            "after": {"content": "Ideas for spring.\n\nMore."},
        }
    ]
    assert step.base == {"notes:n2": {"content": STAMP}}
    assert step.binding == binding_hash(step.intent, list(step.preview), dict(step.base))
    assert call_of_intent(step.intent) == ("append_to_note", step.arguments)


def test_created_ids_follow_from_the_step() -> None:
    """The same step names the same new record on every machine, and has no base."""
    step = step_of(call("create_task", {"title": "Call"}, index=3))
    assert step.id == step_id(ITERATION, 3)
    assert step.changes[0].record_id == created_id(step.id, 0)
    assert step.data == {"taskId": created_id(step.id, 0)}
    assert step.base == {}


def test_plans_chain() -> None:
    """A later call sees and changes what an earlier step creates, and says that it rests on it."""
    first = step_of(call("create_task", {"title": "Call Kim"}))
    seen = call("list_tasks", {}, index=1, planned=(first,))
    assert isinstance(seen, Answered)
    assert first.changes[0].record_id in str(seen.data)
    made = first.changes[0].record_id
    second = step_of(call("complete_task", {"taskId": made}, index=1, planned=(first,)))
    paths = {"isCompleted": f"step:{first.id}", "completedAt": f"step:{first.id}"}
    assert second.base == {f"tasks:{made}": paths}
    assert second.sentence == "Complete task “Call Kim”"
    again = call("complete_task", {"taskId": made}, index=2, planned=(first, second))
    assert isinstance(again, Refused)
    assert again.code == "ALREADY_COMPLETED"


def test_an_edit_after_an_edit_rests_on_it() -> None:
    """Two appends to one note: the second shows the first's text and names its step as base."""
    first = step_of(call("append_to_note", {"noteId": "n2", "content": "A"}))
    second = step_of(
        call("append_to_note", {"noteId": "n2", "content": "B"}, index=1, planned=(first,))
    )
    assert second.changes[0].values["content"] == "Ideas for spring.\n\nA\n\nB"
    assert second.base == {"notes:n2": {"content": f"step:{first.id}"}}
    stands = {"stamp_of": lambda key, path: STAMP}
    assert not moved_paths(dict(second.base), is_of_step=lambda *_: True, **stands)
    assert moved_paths(dict(second.base), is_of_step=lambda *_: False, **stands) == (
        "notes:n2 content",
    )


def test_a_base_moves_with_any_stamp() -> None:
    """A base stands only on exactly the stamps that were there."""
    base: Json = {"notes:n2": {"content": STAMP, "title": None}}
    found = {"content": STAMP}

    def moved() -> tuple[str, ...]:
        return moved_paths(
            base, stamp_of=lambda key, path: found.get(path), is_of_step=lambda *_: False
        )

    assert moved() == ()
    found["title"] = STAMP
    assert moved() == ("notes:n2 title",)
    found["content"] = "2026-11-21" + STAMP[10:]
    assert moved() == ("notes:n2 content", "notes:n2 title")


@pytest.mark.parametrize(
    "policy, tool, decision",
    [
        (STANDARD, "create_task", "propose"),
        (AGGRESSIVE, "create_task", "auto"),
        (AGGRESSIVE, "update_note", "propose"),
        (Policy({}, {"update_note": "auto"}), "update_note", "propose"),
    ],
)
def test_the_strictest_decides(policy: Policy, tool: str, decision: str) -> None:
    """A step takes the strictest of the agent's policy and the floor."""
    arguments: Json = {"title": "New"} | ({"noteId": "n1"} if tool == "update_note" else {})
    assert step_of(call(tool, arguments, by=caller(policy))).decision == decision


@pytest.mark.parametrize(
    "policy, tool",
    [
        (CAUTIOUS, "update_note"),
        (None, "list_tasks"),
        (Policy({"read": "propose"}), "list_tasks"),
        (Policy({}), "create_task"),
    ],
)
def test_denied_tools_are_refused(policy: Policy | None, tool: str) -> None:
    """A denied tool does not run; a read that would need a person cannot be answered."""
    result = call(tool, {"noteId": "n1", "title": "x"}, by=caller(policy))
    assert isinstance(result, Refused)
    assert (result.code, result.repairable) == ("TOOL_DENIED", False)


@pytest.mark.parametrize(
    "name, arguments, code",
    [
        ("drop_tables", {}, "UNKNOWN_TOOL"),
        ("create_task", "{broken", "BAD_REQUEST"),
        ("create_task", None, "BAD_REQUEST"),
        ("create_task", {}, "BAD_REQUEST"),
        ("create_task", {"title": "x" * 201}, "BAD_REQUEST"),
        ("create_task", {"title": "  "}, "BAD_REQUEST"),
        ("create_task", {"title": "x", "dueDate": "2026-02-30"}, "BAD_REQUEST"),
        ("create_task", {"title": "x", "priority": "root"}, "BAD_REQUEST"),
        ("create_task", {"title": "x", "status": "approved"}, "BAD_REQUEST"),
        ("create_note", {"content": "x" * 70_000}, "TOO_LARGE"),
        ("complete_task", {"taskId": "nobody"}, "NOT_FOUND"),
        ("complete_task", {"taskId": "t3"}, "ALREADY_COMPLETED"),
        ("update_note", {"noteId": "n1"}, "BAD_REQUEST"),
    ],
)
def test_bad_calls_are_refused_with_a_code(name: str, arguments: Json, code: str) -> None:
    """What cannot be a call is a refusal, never an exception and never a guess."""
    result = call(name, arguments)
    assert isinstance(result, Refused)
    assert result.code == code


def test_a_large_note_is_not_planned_beyond_its_limit() -> None:
    """An append that would outgrow the note is refused before it is proposed."""
    full = view("notes", "n9", {"content": "x" * 49_999})
    result = call("append_to_note", {"noteId": "n9", "content": "yy"}, over=records([full]))
    assert isinstance(result, Refused)
    assert result.code == "TOO_LARGE"


def test_what_cannot_be_opened_is_not_written_over() -> None:
    """A field whose value is sealed here is not replaced, by a person or an agent."""
    shut = records([view("notes", "n9", {"title": "T"}, sealed_fields=("content",))])
    result = call("update_note", {"noteId": "n9", "content": "new"}, over=shut)
    assert isinstance(result, Refused)
    assert result.code == "FIELD_UNREADABLE"
    with pytest.raises(ManaError):
        execute(
            "append_to_note",
            {"noteId": "n9", "content": "new"},
            caller=PERSON,
            catalogue=CATALOGUE,
            records=shut,
        )


def test_a_person_is_not_asked() -> None:
    """A person's own action runs at once; the caller applies what it returns."""
    outcome = execute(
        "create_task", {"title": "Call"}, caller=PERSON, catalogue=CATALOGUE, records=records()
    )
    assert [change.record_id for change in outcome.changes] == ["new-0"]


@pytest.mark.parametrize(
    "policy, consent, code",
    [
        (AGGRESSIVE, "policy", None),
        (STANDARD, "policy", "NEEDS_APPROVAL"),
        (STANDARD, "approved", None),
        (Policy({}), "approved", "TOOL_DENIED"),
        (None, "approved", "TOOL_DENIED"),
    ],
)
def test_execution_asks_the_policy_again(
    policy: Policy | None, consent: str, code: str | None
) -> None:
    """An auto step that has become stricter waits for a person; a denied one never runs."""

    def run() -> Outcome:
        return execute(
            "create_task",
            {"title": "Call"},
            caller=caller(policy),
            catalogue=CATALOGUE,
            records=records(),
            consent=consent,  # type: ignore[arg-type]
        )

    if code is None:
        assert run().changes
        return
    with pytest.raises(ManaError) as refused:
        run()
    assert refused.value.code == code


def test_a_preview_gives_back_its_changes() -> None:
    """An approved step does exactly what was shown: its preview holds its changes."""
    for name, arguments in (
        ("create_task", {"title": "Call"}),
        ("complete_tasks_by_title", {"titleMatch": "nt"}),
    ):
        step = step_of(call(name, arguments))
        found = changes_of_preview(
            list(step.preview),
            tool=name,
            step=step.id,
            caller=caller(),
            catalogue=CATALOGUE,
            records=records(),
        )
        assert found == step.changes


@pytest.mark.parametrize(
    "table, record_id, op, after",
    [
        ("aiMissions", "m1", "update", {"state": "active"}),
        ("notes", "n1", "update", {"content": "x"}),
        ("tasks", "forged", "insert", {"title": "x"}),
        ("tasks", "t1", "update", {"title": 5}),
        ("tasks", "t1", "update", {"nothing": "x"}),
        ("tasks", "t1", "update", {}),
        ("tasks", "t1", "update", {"deletedAt": NOW}),
        ("tasks", "t1", "drop", {"title": "x"}),
        ("tasks", "nobody", "update", {"title": "x"}),
    ],
)
def test_a_forged_preview_is_refused(table: str, record_id: str, op: str, after: Json) -> None:
    """A preview that was not made by its tool is checked as if it were: it reaches no further."""
    item: Json = {"table": table, "id": record_id, "op": op, "before": {}, "after": after}
    with pytest.raises(ManaError):
        changes_of_preview(
            [item],
            tool="create_task",
            step=step_id(ITERATION, 0),
            caller=caller(),
            catalogue=CATALOGUE,
            records=records(),
        )


class Nothing(Call, frozen=True):
    """A call without parameters."""


_OWN = Table(
    "trials",
    "trial",
    (sealed("title", Text(20)), plain("kept", Identifier(), because="a test", fixed=True)),
)
_CLOSED = Table("closed", "trial", (sealed("title", Text(20)),), agents_may_write=False)


def rogue(*changes: Change, effect: Effect = "write", broken: bool = False) -> Catalogue:
    """Return a catalogue with a module whose tool returns these changes, or breaks down."""

    def run(call: Call, records: Records) -> Outcome:
        if broken:
            raise RuntimeError("private text")
        return Outcome("done", None, changes)

    tool = Tool("trial", "trial", effect, "Try.", Nothing, run, lambda call, records: "Try it")
    manifest = ModuleManifest("trial", "Trial", "x", (_OWN, _CLOSED), (tool,))
    return build_catalogue((*BUILT_IN, manifest))


def change(
    table: str, record_id: str, kind: ChangeKind = ChangeKind.UPDATE, **values: Json
) -> Change:
    """Return a change as a rogue tool might."""
    return Change(table, RecordId(record_id), kind, values)


@pytest.mark.parametrize(
    "catalogue, code",
    [
        (rogue(change("notes", "n1", content="x")), "TABLE_FORBIDDEN"),
        (rogue(change(AGENTS.name, "agent-1", state="active")), "TABLE_FORBIDDEN"),
        (rogue(change("closed", "c1", title="x")), "TABLE_FORBIDDEN"),
        (rogue(change("nowhere", "c1", title="x")), "UNKNOWN_TABLE"),
        (rogue(change("trials", "r1", title="x" * 21)), "BAD_REQUEST"),
        (rogue(change("trials", "r1", kept="other")), "CHANGE_FORBIDDEN"),
        (rogue(change("trials", "mine", ChangeKind.CREATE, title="x")), "CHANGE_FORBIDDEN"),
        (rogue(change("trials", "r1", **{DELETED_AT: NOW})), "CHANGE_FORBIDDEN"),
        (rogue(change("trials", "nobody", title="x")), "NOT_FOUND"),
        (rogue(change("trials", "r1", title="x"), effect="read"), "CHANGE_FORBIDDEN"),
        (
            rogue(change("trials", "r1", title="x"), change("trials", "r1", title="y")),
            "CHANGE_FORBIDDEN",
        ),
        (rogue(*(change("trials", f"r{n}", title="x") for n in range(101))), "TOO_LARGE"),
        (rogue(broken=True), "TOOL_FAILED"),
    ],
)
def test_a_module_reaches_no_further_than_it_declares(catalogue: Catalogue, code: str) -> None:
    """A defect or malice in a module is refused with a code, and its text goes nowhere."""
    over = records([view("trials", "r1", {"title": "old"}), view("notes", "n1", {"content": ""})])
    result = call("trial", {}, by=caller(AGGRESSIVE), catalogue=catalogue, over=over)
    assert isinstance(result, Refused)
    assert result.code == code
    assert "private" not in result.message


def test_a_person_may_use_what_agents_may_not() -> None:
    """A table that is closed to agents is open to a person through the module's own tool."""
    over = records([view("closed", "c1", {"title": "old"})])
    outcome = execute(
        "trial",
        {},
        caller=PERSON,
        catalogue=rogue(change("closed", "c1", title="new")),
        records=over,
    )
    assert outcome.changes[0].values == {"title": "new"}


def test_the_system_is_not_asked() -> None:
    """The system, like a person, bypasses policy; an agent never is the system."""
    system = Caller(Actor("system", "system:seed"))
    assert system.decision(CATALOGUE.tool("update_note")) == "auto"


def nested(depth: int) -> Json:
    """Return a list within a list, so deep."""
    deep: Json = "x"
    for _ in range(depth):
        deep = [deep]
    return deep


SHAPES: tuple[Json, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    "",
    " \n",
    "\x00",
    "\ud800",
    "x" * 25_000,
    "x" * 70_000,
    "1",
    "true",
    [],
    ["a"],
    {},
    {"$ref": "#"},
    {"\ud800": 1},
    nested(40),
    nested(5_000),
)
values = st.recursive(
    st.sampled_from(SHAPES[:-1]) | st.text(st.characters(codec=None), max_size=30) | st.integers(),  # type: ignore[arg-type]
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)


def properties(tool: str) -> list[str]:
    """Return the names of a tool's parameters."""
    return list(CATALOGUE.schema(tool)["function"]["parameters"]["properties"])  # type: ignore[index,call-overload,arg-type]


def is_whole(result: Answered | Planned | Refused) -> bool:
    """Say whether an answer can be kept and sent: no broken text, within its limits."""
    if isinstance(result, Planned):
        step = result.step
        canonical_json([step.intent, step.sentence, step.rationale, list(step.preview)])
        return step.binding == binding_hash(step.intent, list(step.preview), dict(step.base))
    canonical_json(result.message)
    return isinstance(result, Refused) or canonical_json(result.data) != b""


@pytest.mark.parametrize("tool", [tool.name for tool in CATALOGUE.tools])
def test_every_malformed_shape_is_answered(tool: str) -> None:
    """Each parameter in each wrong shape, and each shape instead of all: an answer, no breakdown."""
    memory = view("agentMemory", "agent-1", {"content": "Mornings."})
    over = records([*some_views(), memory])
    fitting: dict[str, Json] = {
        "content": "Text.",
        "noteId": "n1",
        "reason": "r",
        "tag": "urgent",
        "taskId": "t1",
        "title": "Title",
        "titleMatch": "rent",
    }
    known = {name: fitting[name] for name in properties(tool) if name in fitting}
    assert is_whole(call(tool, known, over=over))
    for shape in SHAPES:
        assert is_whole(call(tool, shape, over=over))
        for name in [*properties(tool), "unknown", "\ud800"]:
            result = call(tool, {**known, name: shape}, over=over)
            assert is_whole(result)
            if name in ("unknown", "\ud800"):
                assert isinstance(result, Refused)
                assert result.repairable


@given(st.sampled_from([tool.name for tool in CATALOGUE.tools]), st.data(), st.booleans())
def test_no_arguments_break_dispatch(tool: str, data: st.DataObject, known: bool) -> None:
    """Whatever a model writes as arguments, dispatch answers, plans or refuses."""
    names = st.sampled_from(properties(tool)) if known and properties(tool) else st.text(max_size=9)
    arguments: Json = data.draw(st.dictionaries(names, values, max_size=4) | values)
    assert is_whole(call(tool, arguments))
