"""Records, collections, ids and actors."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mana.crypto.envelope import parse_json
from mana.domain.actors import Actor, actor_from_wire, agent_at_work, origin_of, person
from mana.domain.changes import ChangeKind
from mana.domain.encoding import canonical_json, length_prefixed
from mana.domain.errors import Invalid, NotFound
from mana.domain.ids import RecordId, derived_id, iteration_id
from mana.domain.records import Snapshot, View, assemble, with_changes
from mana.domain.tables import Document, Shape, Table, Text, Whole, plain, sealed
from mana.registry.catalogue import load_catalogue
from tests.domain.strategies import json_values

TABLE = Table(
    name="things",
    app_id="things",
    fields=(
        sealed("title", Text(5)),
        sealed("tags", Text(10), shape=Shape.SET),
        sealed("parts", Document(100), shape=Shape.LIST),
        sealed("count", Whole(-100, 100), shape=Shape.COUNTER),
        plain("order", Whole(0, 9), because="the test says so", default=3),
    ),
)


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_length_prefix_never_confuses_two_sequences(one: list[str], two: list[str]) -> None:
    """Different parts give different bytes, so a scope cannot be read as another."""
    assert (length_prefixed(*one) == length_prefixed(*two)) == (one == two)


@given(json_values)
def test_canonical_json_is_one_form(value: object) -> None:
    """Writing what was read gives the same bytes."""
    raw = canonical_json(value)
    assert canonical_json(json.loads(raw)) == raw


class _Named(str):
    """Text of a kind of its own."""


_ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**70), 2**70)
    | st.text()
    | st.text().map(_Named),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=8,
)


@given(_ANY_JSON)
@example({"\uffff": 1, "\U00010000": 2, "": 3, "é": '\x00\x1f\x7f\u2028/"\\'})
@example([1e16, -0.0, 5e-324, {"a": 1.0}])
def test_canonical_json_is_the_one_that_was_signed(value: object) -> None:
    """Whatever way the bytes are made, they are those of the first release, to the last one."""
    form = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical_json(value) == form.encode()


def test_canonical_json_as_deep_as_python_goes() -> None:
    """A value within values is written however it is made, until it is too deep for anybody."""
    deep: object = 1
    for _ in range(600):
        deep = {"a": deep}
    assert canonical_json(deep) == b'{"a":' * 600 + b"1" + b"}" * 600
    round_and_round: list[object] = []
    round_and_round.append(round_and_round)
    with pytest.raises(Invalid):
        canonical_json(round_and_round)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {"a": {1, 2}},
        "\ud800",
        {1: 2j},
        pytest.param(10**5000, id="too-long"),
        [float("nan")],
        {"\ud800": 1},
    ],
)
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    """No signature is ever made over bytes that another reader parses differently."""
    with pytest.raises(Invalid):
        canonical_json(value)


def test_collections_are_read_from_their_elements() -> None:
    """Concurrent additions are all there, removals are gone, lists keep their order."""
    values = assemble(
        TABLE,
        {
            "title": "a",
            "tags/x1": "red",
            "tags/x2": "red",
            "tags/x3": "blue",
            "tags/x4": None,
            "parts/p2": {"position": "b", "value": 2},
            "parts/p1": {"position": "a", "value": 1},
            "parts/p3": None,
            "count/d1": 5,
            "count/d2": -2,
        },
    )
    assert values == {"title": "a", "tags": ["blue", "red"], "parts": [1, 2], "count": 3}


@pytest.mark.parametrize(
    "path", ["nope", "title/x", "tags", "tags/", "tags/a b", "tags/a/b", "title/", ""]
)
def test_undeclared_paths_are_refused(path: str) -> None:
    """Nothing is stored under a path that no declaration explains."""
    with pytest.raises(Invalid):
        TABLE.field_at(path)


def test_new_records_are_checked_and_get_defaults() -> None:
    """A tool cannot write a value that its table does not allow."""
    records = Snapshot(lambda _: [], lambda: RecordId("r1"), "2026-11-21", "x")
    change = records.new(TABLE, {"title": "abc"})
    assert change.kind is ChangeKind.CREATE
    assert change.values == {"title": "abc", "order": 3}
    with pytest.raises(Invalid):
        records.new(TABLE, {"title": "too long"})


def test_dead_records_are_not_read() -> None:
    """A tool neither lists nor gets a deleted record."""
    views = [View("things", RecordId("a"), {}, deleted=True), View("things", RecordId("b"), {})]
    records = Snapshot(lambda _: views, lambda: RecordId("r"), "2026-11-21", "x")
    assert [view.id for view in records.all(TABLE)] == ["b"]
    with pytest.raises(NotFound):
        records.get(TABLE, "a")


def test_planned_changes_are_seen_by_later_steps() -> None:
    """A plan can build on what its earlier steps would do."""
    records = Snapshot(lambda _: [], lambda: RecordId("r1"), "2026-11-21", "x")
    views = with_changes([], TABLE, [records.new(TABLE, {"title": "a"})])
    assert [(view.id, view.values["title"]) for view in views] == [("r1", "a")]


def test_derived_ids_are_the_same_everywhere_and_differ_by_purpose() -> None:
    """One occurrence names one iteration, on every machine; the value is fixed."""
    assert derived_id("iteration", "m", "t") != derived_id("created", "m", "t")
    assert derived_id("a", "bc") != derived_id("a", "b", "c")
    found = iteration_id("m1", "2026-11-21T05:23:00.123Z")  # type: ignore[arg-type]
    assert found == "811f4e17-7cd2-80b0-af82-16e023b69838"


@pytest.mark.parametrize(
    "wire",
    [
        None,
        "user",
        {"kind": "user"},
        {"kind": "alien", "principalId": "x"},
        {"kind": "ai", "principalId": "a"},
        {"kind": "ai", "principalId": "a", "missionId": "m"},
        {"kind": "user", "principalId": "a", "missionId": "m"},
        {"kind": "system", "principalId": "root"},
        {"kind": "user", "principalId": "a", "displayName": "Ada"},
        {"kind": "user", "principalId": 5},
    ],
)
def test_actors_that_cannot_be_are_refused(wire: object) -> None:
    """There is no anonymous AI write, and no text of a person in an actor."""
    with pytest.raises(Invalid):
        actor_from_wire(wire)


def test_actors_survive_the_wire_and_give_the_origin() -> None:
    """Who wrote a field decides where it comes from."""
    cases = {
        person("u"): "user",
        agent_at_work("a", "m", "i"): "agent",
        Actor("system", "system:migration"): "migration",
        Actor("system", "system:bootstrap"): "system",
    }
    for actor, origin in cases.items():
        assert actor_from_wire(actor.to_wire()) == actor
        assert origin_of(actor) == origin


@pytest.mark.parametrize(
    "raw",
    [
        b"1" + b"0" * 4_000,
        b"-1" + b"0" * 4_000,
        b"1e400",
        b"-0.0",
        b"[" * 900 + b"]" * 900,
        b'{"position":"a","value":[{}]}',
        b'{"position":1,"value":{}}',
        b'"2026-13-45"',
        b'"\\u0000"',
    ],
)
def test_what_a_member_seals_is_taken_or_refused(raw: bytes) -> None:
    """The hub cannot look into a sealed value, so no value in any field breaks who reads it."""
    value = parse_json(raw)
    for table in load_catalogue().tables:
        for declared in table.fields:
            path = declared.name if declared.shape is Shape.VALUE else f"{declared.name}/e"
            try:
                table.check(path, value)
            except Invalid:
                continue
            assemble(table, {path: value})
