"""The rules of a shared space, one by one, and what any history of it comes to."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mana.crypto.signatures import sign_change
from mana.domain.actors import Actor, agent_at_work
from mana.domain.clock import DRIFT_MS_MAX
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.records import key_version
from mana.domain.settings import SETTINGS
from mana.domain.spaces import (
    MEMBER_NAMES,
    PROFILE,
    PROFILE_ID,
    SHARED_TYPES,
    SPACE_POLICY,
    SPACE_POLICY_AUDIT,
    SPACE_POLICY_ID,
)
from mana.domain.tables import Table, Text, sealed
from mana.hub.sync.apply import RecordRef
from mana.hub.sync.validate import Writer, WriterKind
from mana.protocol.messages import ChangeMessage, FieldWrite, LoggedChange
from mana.protocol.replication import Held, apply_change, in_log_order
from tests.hub.shared import (
    ADA,
    BOB,
    MEMOS,
    MIRRORS,
    RULINGS,
    TABLES,
    SharedSpace,
    Someone,
    change,
    envelope,
    signed,
    stamp,
)

edited = msgspec.structs.replace
MEMO: RecordRef = (MEMOS.name, "m1")
RULING: RecordRef = (RULINGS.name, "m1")
AGENT = agent_at_work("a1", "mission", "iteration")


def begun(**options: Any) -> SharedSpace:
    """Return a space in which Ada wrote a memo and a ruling, and whose key moved on since."""
    space = SharedSpace(**options)
    memo = change(
        ADA,
        {
            "title": envelope("s", 1, 1),
            "body": envelope("s", 1, 2),
            "labels/x": None,
            "size": 3,
            "kind": 4,
            "status": "open",
        },
        guards={"status": None},
    )
    ruling = change(
        ADA,
        {"goal": envelope("s", 1, 1), "memory": envelope("s", 1, 2), "state": 1},
        table=RULINGS,
    )
    assert space.push(ADA, memo, ruling) == ["accepted", "accepted"]
    space.key_version = 2
    return space


# Roles and modules


@pytest.mark.parametrize(
    ("table", "record", "taken"),
    [
        (MEMOS, "m1", {"owner", "admin", "member"}),
        (PROFILE, PROFILE_ID, {"owner", "admin"}),
        (MEMBER_NAMES, ADA.account, {"owner", "admin", "member"}),
        (MEMBER_NAMES, BOB.account, set()),
        (MEMBER_NAMES, "somebody", set()),
    ],
)
def test_who_writes_what(table: Table, record: str, taken: set[str]) -> None:
    """Viewers write nothing, the profile is its managers', and a name is its bearer's."""
    for role in ("owner", "admin", "member", "viewer"):
        space = SharedSpace(roles={ADA.account: role}, tables={table.name: table})
        path = next(iter(table.by_name))
        made = change(ADA, {path: envelope("s", 1, 1)}, record, table=table)
        assert space.push(ADA, made) == ["accepted" if role in taken else "role"], role


def test_who_reseals_what() -> None:
    """A re-seal is a writing: who may not write a table does not re-seal it."""
    tables = {**TABLES, PROFILE.name: PROFILE, MEMBER_NAMES.name: MEMBER_NAMES}
    space = SharedSpace(roles={ADA.account: "owner"}, tables=tables)
    name, profile = envelope("s", 1, 1), (PROFILE.name, PROFILE_ID)
    first = [
        change(ADA, {"name": name}, PROFILE_ID, table=PROFILE),
        change(ADA, {"displayName": name}, ADA.account, table=MEMBER_NAMES),
        change(ADA, {"title": name}),
    ]
    assert space.push(ADA, *first) == ["accepted"] * 3
    space.key_version = 2
    own = (MEMBER_NAMES.name, ADA.account)
    tried = [space.reseal(BOB, profile, "name"), space.reseal(BOB, own, "displayName")]
    assert space.push(BOB, *tried, space.reseal(BOB, MEMO, "title")) == ["role", "role", "accepted"]
    space.roles[BOB.account] = "viewer"
    space.key_version = 3
    assert space.push(BOB, space.reseal(BOB, MEMO, "title")) == ["role"]


@pytest.mark.parametrize("kind", ["personal", *SHARED_TYPES, "user"])
def test_a_space_holds_its_modules(kind: str) -> None:
    """A record goes where its module may be, and the person's own tables to no shared space."""
    recipes = Table("recipes", "recipes", (sealed("title", Text(80)),))
    tables = {table.name: table for table in (MEMOS, recipes, SETTINGS)}
    found = [
        SharedSpace(type=kind, tables=tables).push(
            ADA, change(ADA, {path: envelope("s", 1, 1)}, table=table)
        )
        for table, path in ((MEMOS, "title"), (recipes, "title"), (SETTINGS, "theme"))
    ]
    held = {
        "user": [["module-refused"], ["module-refused"], ["accepted"]],
        "personal": [["accepted"], ["accepted"], ["module-refused"]],
        "family": [["accepted"], ["accepted"], ["module-refused"]],
    }
    assert found == held.get(kind, [["accepted"], ["module-refused"], ["module-refused"]])


def test_a_runner_is_held_to_the_same_walls() -> None:
    """A runner writes for a viewer, or into a space without its module, as little as a device."""
    runner = Writer(WriterKind.RUNNER, ADA.account, ADA.device, key_id="k")
    plan = change(
        ADA,
        {"summary": envelope("m", 1, 1)},
        table=ITERATIONS,
        actor=AGENT,
    )
    assert plan.signature is not None
    plan = edited(plan, signature=edited(plan.signature, signer="runner:k"))
    tables = {ITERATIONS.name: ITERATIONS}
    space = SharedSpace(roles={ADA.account: "viewer"}, tables=tables)
    assert space.push(ADA, plan, writer=runner) == ["role"]
    user = SharedSpace(type="user", tables=tables)
    assert user.push(ADA, plan, writer=runner) == ["module-refused"]
    assert SharedSpace(tables=tables).push(ADA, plan, writer=runner) == ["accepted"]


def test_agents_do_not_name_spaces_or_people() -> None:
    """No AI actor writes how a space or a member is called."""
    tables = {table.name: table for table in (PROFILE, MEMBER_NAMES)}
    space = SharedSpace(roles={ADA.account: "owner"}, tables=tables)
    batch = [
        change(ADA, {"name": envelope("s", 1, 1)}, PROFILE_ID, table=PROFILE, actor=AGENT),
        change(
            ADA, {"displayName": envelope("s", 1, 1)}, ADA.account, table=MEMBER_NAMES, actor=AGENT
        ),
    ]
    assert space.push(ADA, *batch) == ["forged-actor"] * 2


# What people say of runs, and the policy of a space

RUNS = {table.name: table for table in (ITERATIONS, STEPS)}
POLICIES = {table.name: table for table in (SPACE_POLICY, SPACE_POLICY_AUDIT)}


def test_a_member_comments_a_run_and_changes_nothing_else_of_it() -> None:
    """Feedback is the one path of a run that is written later, by people who may write."""
    space = SharedSpace(tables=RUNS)
    run = change(ADA, {"summary": envelope("m", 1, 1)}, table=ITERATIONS, actor=AGENT)
    assert space.push(ADA, run) == ["accepted"]

    def comment(who: Someone, path: str, **options: Any) -> ChangeMessage:
        values = {path: envelope("m", 1, 2)}
        return change(who, values, table=ITERATIONS, author=ADA, moment=1, **options)

    assert space.push(BOB, comment(BOB, "feedback")) == ["accepted"]
    assert space.push(BOB, comment(BOB, "summary")) == ["immutable"]
    assert space.push(ADA, comment(ADA, "feedback", actor=AGENT)) == ["forged-actor"]
    space.roles[BOB.account] = "viewer"
    assert space.push(BOB, comment(BOB, "feedback")) == ["role"]


@pytest.mark.parametrize("path", ["feedback", "rejectReason", "edited", "decidedAt"])
def test_no_agent_says_what_a_person_decided(path: str) -> None:
    """What was edited, why it was rejected and what was said of a step is a person's to write."""
    space = SharedSpace(tables=RUNS)
    step = change(ADA, {"intent": envelope("m", 1, 1)}, table=STEPS, actor=AGENT)
    said = {path: envelope("m", 1, 2)}
    forged = change(ADA, said, table=STEPS, actor=AGENT, moment=1)
    assert space.push(ADA, step) == ["accepted"]
    assert space.push(ADA, forged) == ["forged-actor"]
    assert space.push(ADA, change(ADA, said, table=STEPS, moment=2)) == ["accepted"]


def lifting(who: Someone, number: int, **options: Any) -> list[ChangeMessage]:
    """Return a group that lifts a tool, and its record."""
    group = str(uuid.uuid4())
    policy = change(
        who,
        {f"lifted/t{number}": "purge_notes"},
        SPACE_POLICY_ID,
        table=SPACE_POLICY,
        author=ADA,
        moment=number,
        group=group,
        **options,
    )
    audit = change(
        who,
        {"tool": envelope("s", 1, 1), "action": envelope("s", 1, 2)},
        f"audit-{number}",
        table=SPACE_POLICY_AUDIT,
        moment=number,
        group=group,
        **options,
    )
    return [policy, audit]


def test_owners_and_admins_write_the_policy_of_a_space() -> None:
    """Members, viewers and agents lift nothing in a space."""
    for role in ("owner", "admin", "member", "viewer"):
        space = SharedSpace(roles={ADA.account: role}, tables=POLICIES)
        taken = ["accepted"] * 2 if role in ("owner", "admin") else ["role"] * 2
        assert space.push(ADA, *lifting(ADA, 1)) == taken, role
    space = SharedSpace(roles={ADA.account: "owner"}, tables=POLICIES)
    assert space.push(ADA, *lifting(ADA, 1, actor=AGENT)) == ["forged-actor"] * 2


def test_each_change_of_a_policy_brings_a_record_of_its_own_that_stays() -> None:
    """Nothing is lifted without a new audit record in the same group, and none is ever changed."""
    space = SharedSpace(roles={ADA.account: "owner", BOB.account: "admin"}, tables=POLICIES)
    policy, audit = lifting(ADA, 1)
    assert space.push(ADA, policy) == ["audit-missing"]
    alone = edited(policy, group=None)
    assert space.push(ADA, signed(ADA, alone)) == ["audit-missing"]
    assert space.push(ADA, policy, audit) == ["accepted"] * 2
    assert space.push(ADA, policy, audit) == ["duplicate"] * 2
    more, _ = lifting(ADA, 2)
    more = edited(more, group=audit.group)
    # The record of an earlier change speaks for no later one.
    assert space.push(ADA, audit, more) == ["duplicate", "audit-missing"]
    for path, value in (("action", envelope("s", 1, 3)), ("deletedAt", "2027-01-01T00:00:00.000Z")):
        again = change(
            BOB, {path: value}, "audit-1", table=SPACE_POLICY_AUDIT, author=ADA, moment=5
        )
        assert space.push(BOB, again) == ["immutable"], path


# Re-seals


def test_a_reseal_keeps_everything_but_the_key() -> None:
    """Any writer brings what others wrote under the new key; stamp, actor and the rest stand."""
    space = begun()
    before = space.records[MEMO].record
    made = space.reseal(BOB, MEMO, "title")
    assert space.push(BOB, made) == ["accepted"]
    after = space.records[MEMO].record
    entry = after.entries["title"]
    assert (entry.value, entry.change_id) == (made.fields["title"].value, made.change_id)
    assert (entry.at, entry.actor) == (before.entries["title"].at, before.entries["title"].actor)
    assert {**after.entries, "title": before.entries["title"]} == before.entries


def test_a_reseal_asks_for_no_clock() -> None:
    """A value whose stamp lies ahead of the hub by now, or of no device here, is re-sealed too."""
    space = begun()
    ahead = change(ADA, {"title": envelope("s", 2, 5)}, moment=DRIFT_MS_MAX)
    assert space.push(ADA, ahead) == ["accepted"]
    space.key_version = 3
    made = space.reseal(BOB, MEMO, "title")
    space.now_ms -= 60_000
    assert space.push(BOB, made) == ["accepted"]


Tamper = Callable[[SharedSpace, ChangeMessage], ChangeMessage]


def fields(made: ChangeMessage, **written: Any) -> ChangeMessage:
    at = next(iter(made.fields.values())).at
    values = {path: FieldWrite(value=value, at=at) for path, value in written.items()}
    return edited(made, fields={**made.fields, **values})


@pytest.mark.parametrize(
    ("code", "tamper"),
    [
        ("bad-value", lambda space, made: fields(made, size=4)),
        ("bad-value", lambda space, made: fields(made, status="done")),
        ("bad-value", lambda space, made: fields(made, deletedAt="2026-11-21T05:23:00.123Z")),
        ("bad-value", lambda space, made: fields(made, title=None)),
        ("bad-value", lambda space, made: edited(made, group=str(uuid.uuid4()))),
        ("bad-value", lambda space, made: edited(made, guards={"status": "open"})),
        ("unknown-path", lambda space, made: fields(made, nothing=envelope("s", 2, 1))),
        ("plaintext-refused", lambda space, made: fields(made, title="milk")),
        ("stale-key", lambda space, made: fields(made, title=envelope("s", 1, 9))),
        ("bad-envelope", lambda space, made: fields(made, title=envelope("s", 3, 9))),
        ("bad-envelope", lambda space, made: fields(made, title=envelope("p", 2, 9))),
        ("bad-envelope", lambda space, made: fields(made, title=envelope("s", 2, 9, size=64))),
        ("reseal-outdated", lambda space, made: fields(made, **{"labels/x": envelope("s", 2, 1)})),
        ("reseal-outdated", lambda space, made: fields(made, **{"labels/y": envelope("s", 2, 1)})),
        ("reseal-outdated", lambda space, made: restamped(made, stamp(ADA, 1))),
        ("reseal-outdated", lambda space, made: restamped(made, stamp(BOB))),
        ("reseal-outdated", lambda space, made: by(made, Actor("user", BOB.account))),
        ("reseal-outdated", lambda space, made: edited(made, id="m2")),
        ("reseal-outdated", lambda space, made: edited(made, id="m2", author_id=BOB.account)),
        ("forged-actor", lambda space, made: edited(made, origin="agent")),
        ("forged-actor", lambda space, made: edited(made, actor={"kind": "user"})),
        ("fixed-field", lambda space, made: edited(made, author_id=BOB.account)),
        ("fixed-field", lambda space, made: edited(made, visibility="private")),
        ("bad-value", lambda space, made: restamped(made, "x" * 66)),
    ],
)
def test_a_reseal_is_nothing_else(code: str, tamper: Tamper) -> None:
    """A re-seal that would move a value, a stamp, a name or a path is refused, and nothing moves."""
    space = begun()
    before = dict(space.records)
    made = tamper(space, space.reseal(BOB, MEMO, "title", "body"))
    assert space.push(BOB, made) == [code]
    assert space.records == before


def restamped(made: ChangeMessage, at: str) -> ChangeMessage:
    return edited(made, fields={path: edited(one, at=at) for path, one in made.fields.items()})


def by(made: ChangeMessage, actor: Actor) -> ChangeMessage:
    return edited(made, actor={name: str(part) for name, part in actor.to_wire().items()})


def test_a_reseal_is_done_once() -> None:
    """Of two devices that re-seal one value the first did it; the other one's is forgotten."""
    space = begun()
    batch = [space.reseal(ADA, MEMO, "title"), space.reseal(BOB, MEMO, "title")]
    assert space.push(ADA, batch[0]) == ["accepted"]
    assert space.push(BOB, batch[1]) == ["reseal-outdated"]


def test_a_reseal_never_beats_an_edit() -> None:
    """In one batch as in two: after an edit the re-seal is outdated, before it the edit stands."""
    for edit_first in (True, False):
        space = begun()
        edit = change(ADA, {"title": envelope("s", 2, 7)}, moment=1)
        reseal = space.reseal(ADA, MEMO, "title")
        batch = [edit, reseal] if edit_first else [reseal, edit]
        second = "reseal-outdated" if edit_first else "accepted"
        assert space.push(ADA, *batch) == ["accepted", second]
        assert space.records[MEMO].record.entries["title"].change_id == edit.change_id


def test_a_reseal_keeps_the_class_of_its_key() -> None:
    """What is sealed under a mission's key stays under one, so that the same readers open it."""
    space = SharedSpace()
    first = change(ADA, {"before": envelope("m", 1, 1)}, table=MIRRORS)
    assert space.push(ADA, first) == ["accepted"]
    space.key_version = 2
    made = space.reseal(BOB, (MIRRORS.name, "m1"), "before")
    assert space.push(BOB, made) == ["bad-envelope"]
    right = fields(made, before=envelope("m", 2, 1))
    assert space.push(BOB, right) == ["accepted"]


def test_a_runner_reseals_nothing() -> None:
    """The runner vouches for no value of a person."""
    space = begun()
    runner = Writer(WriterKind.RUNNER, ADA.account, ADA.device, key_id="k")
    made = space.reseal(ADA, MEMO, "title")
    assert space.push(ADA, made, writer=runner) == ["forged-actor"]


def test_private_values_are_resealed_by_their_author() -> None:
    """The author alone re-seals a private record; to others it is as if it were not there."""
    space = begun()
    assert space.push(ADA, space.flip(ADA, MEMO, "private")) == ["accepted"]
    made = space.reseal(ADA, MEMO, "title", version=2)
    assert space.push(BOB, made) == ["fixed-field"]
    assert space.push(BOB, edited(made, visibility="space")) == ["bad-envelope"]
    public = fields(edited(made, visibility="space"), title=envelope("s", 2, 1))
    assert space.push(BOB, public) == ["reseal-outdated"]
    assert space.push(BOB, edited(public, id="never")) == ["reseal-outdated"]
    assert space.push(ADA, made) == ["accepted"]


def test_a_reseal_that_waited_through_a_flip_is_outdated() -> None:
    """The flip wrote every value anew: what was to be re-sealed before is forgotten."""
    space = begun()
    waiting = space.reseal(ADA, MEMO, "title")
    assert space.push(ADA, space.flip(ADA, MEMO, "private")) == ["accepted"]
    assert space.push(ADA, waiting) == ["reseal-outdated"]
    flipped = space.records[MEMO].record.entries["title"].at
    assert space.push(ADA, restamped(waiting, flipped)) == ["reseal-outdated"]


def test_a_reseal_of_what_decides_is_signed_as_one() -> None:
    """A ruling is re-sealed under a signature for that purpose, and its proof says so."""
    space = begun()
    (first,) = space.records[RULING].proofs
    made = space.reseal(BOB, RULING, "goal")
    assert space.push(BOB, edited(made, signature=None)) == ["signature-missing"]
    assert space.push(BOB, signed(BOB, made, sign_change)) == ["signature-rejected"]
    edit = change(BOB, {"state": 2}, table=RULINGS, moment=1, author=ADA)
    forged = edited(edit, op="reseal")
    assert space.push(BOB, forged) == ["bad-value"]
    assert space.push(BOB, edited(signed(BOB, edited(edit, op="reseal")), op="update")) == [
        "signature-rejected"
    ]
    assert space.push(BOB, made) == ["accepted"]
    proofs = space.records[RULING].proofs
    assert {name: proof.reseal for name, proof in proofs.items()} == {
        first: False,
        made.change_id: True,
    }
    assert set(proofs[made.change_id].entries) == {"goal"}


def test_what_never_changes_is_resealed_still() -> None:
    """A run that is immutable takes a true re-seal and nothing else."""
    space = SharedSpace(tables={ITERATIONS.name: ITERATIONS, STEPS.name: STEPS})
    run = change(ADA, {"summary": envelope("m", 1, 1), "missionId": "x"}, table=ITERATIONS)
    assert space.push(ADA, run) == ["accepted"]
    space.key_version = 2
    made = space.reseal(BOB, (ITERATIONS.name, "m1"), "summary")
    made = signed(BOB, fields(made, summary=envelope("m", 2, 1)))
    plain_op = signed(BOB, edited(made, op="update"))
    assert space.push(BOB, plain_op) == ["forged-actor"]
    own = signed(ADA, edited(made, op="update"))
    assert space.push(ADA, own) == ["immutable"]
    assert space.push(BOB, made) == ["accepted"]


# Flips


def test_a_flip_hides_and_shows() -> None:
    """A hidden record is gone for the others, log included, and comes back as it is."""
    space = begun()
    assert space.push(ADA, space.flip(ADA, MEMO, "private")) == ["accepted"]
    changes, hidden = space.pull(BOB, 0)
    assert [logged.change.table for logged in changes] == [RULINGS.name]
    assert [(one.seq, one.table, one.id) for one in hidden] == [(3, *MEMO)]
    assert len(space.pull(ADA, 0)[0]) == 3
    assert space.pull(ADA, 0)[1] == []
    secret = change(ADA, {"title": envelope("p", 1, 5)}, moment=9, visibility="private")
    assert space.push(ADA, secret) == ["accepted"]
    assert space.push(ADA, space.flip(ADA, MEMO, "space")) == ["accepted"]
    changes, hidden = space.pull(BOB, 3)
    assert ([logged.seq for logged in changes], hidden) == ([5], [])
    assert [logged.seq for logged in space.pull(BOB, 0)[0]] == [1, 2, 5]


@pytest.mark.parametrize(
    ("code", "tamper"),
    [
        ("flip-outdated", lambda space, made: without(made, "title")),
        ("flip-outdated", lambda space, made: without(made, "labels/x")),
        ("flip-outdated", lambda space, made: without(made, "size")),
        ("flip-outdated", lambda space, made: without(made, "status")),
        ("flip-outdated", lambda space, made: at_path(made, "title", stamp(ADA))),
        ("flip-outdated", lambda space, made: at_path(made, "labels/x", stamp(ADA))),
        ("flip-outdated", lambda space, made: edited(made, id="m2")),
        ("guard-missing", lambda space, made: edited(made, guards={})),
        ("guard-failed", lambda space, made: edited(made, guards={"status": "done"})),
        ("bad-envelope", lambda space, made: fields(made, title=envelope("s", 2, 1))),
        ("bad-envelope", lambda space, made: edited(made, visibility="space")),
        ("fixed-field", lambda space, made: fields(made, kind=5)),
        ("fixed-field", lambda space, made: edited(by(made, AGENT), origin="agent")),
        ("fixed-field", lambda space, made: edited(made, author_id=BOB.account)),
        ("clock-ahead", lambda space, made: at_path(made, "title", stamp(ADA, DRIFT_MS_MAX + 1))),
    ],
)
def test_a_flip_is_whole_or_not_at_all(code: str, tamper: Tamper) -> None:
    """A flip that leaves a path behind, or is anybody's but the author's, changes nothing."""
    space = begun()
    before = dict(space.records)
    made = signed(ADA, tamper(space, space.flip(ADA, MEMO, "private")))
    assert space.push(ADA, made) == [code]
    assert space.records == before
    assert space.hidden == {}


@pytest.mark.parametrize(
    ("code", "tamper"),
    [
        ("signature-missing", lambda space, made: edited(made, signature=None)),
        ("signature-rejected", lambda space, made: signed(BOB, made)),
        ("signature-rejected", lambda space, made: fields(made, size=4)),
    ],
)
def test_a_flip_is_signed_by_the_authors_device(code: str, tamper: Tamper) -> None:
    """Who sees a record is decided by a signature, which the author's other devices can check."""
    space = begun()
    before = dict(space.records)
    assert space.push(ADA, tamper(space, space.flip(ADA, MEMO, "private"))) == [code]
    assert space.records == before


def without(made: ChangeMessage, *paths: str) -> ChangeMessage:
    kept = {path: one for path, one in made.fields.items() if path not in paths}
    guards = {path: one for path, one in made.guards.items() if path not in paths}
    return edited(made, fields=kept, guards=guards)


def at_path(made: ChangeMessage, path: str, at: str) -> ChangeMessage:
    return edited(made, fields={**made.fields, path: edited(made.fields[path], at=at)})


def test_only_the_author_flips() -> None:
    """Nobody hides what another one wrote, or shows it."""
    space = begun()
    theirs = space.flip(BOB, MEMO, "private", author=ADA)
    assert space.push(BOB, theirs) == ["fixed-field"]
    assert space.push(ADA, space.flip(ADA, MEMO, "private")) == ["accepted"]
    assert space.push(BOB, space.flip(BOB, MEMO, "space", author=ADA)) == ["fixed-field"]


def test_a_second_flip_to_the_same_side_is_outdated() -> None:
    """Of two devices that hide one record the first did it; the other reads on."""
    space = begun()
    batch = [space.flip(ADA, MEMO, "private"), space.flip(ADA, MEMO, "private")]
    assert space.push(ADA, *batch) == ["accepted", "flip-outdated"]
    later = space.flip(ADA, MEMO, "private")
    assert space.push(ADA, later) == ["flip-outdated"]
    assert space.hidden[MEMO] == (3, ADA.account)


def test_a_flip_follows_the_order_of_decisions() -> None:
    """A guarded path is covered by what it names, whatever clock wrote it last."""
    space = begun()
    ahead = change(ADA, {"status": "done"}, moment=200_000, guards={"status": "open"})
    assert space.push(ADA, ahead) == ["accepted"]
    made = space.flip(ADA, MEMO, "private", at=stamp(ADA, 100_000))
    assert space.push(ADA, made) == ["accepted"]
    assert space.records[MEMO].record.entries["status"].change_id == made.change_id


def test_flips_in_one_batch_are_a_sequence() -> None:
    """Hidden, edited and shown again in one batch is what it is in three."""
    space = begun()
    hide = space.flip(ADA, MEMO, "private")
    edit = change(ADA, {"title": envelope("p", 1, 5)}, moment=5, visibility="private")
    probe = begun()
    probe.push(ADA, hide)
    probe.push(ADA, edit)
    show = probe.flip(ADA, MEMO, "space")
    assert space.push(ADA, hide, edit, show) == ["accepted"] * 3
    probe.push(ADA, show)
    assert space.records[MEMO].record == probe.records[MEMO].record
    assert space.hidden == probe.hidden == {}


def test_what_decides_does_not_flip() -> None:
    """Rulings, runs and the names in a space are never hidden, and never born hidden."""
    tables = {table.name: table for table in (RULINGS, ITERATIONS, PROFILE)}
    space = SharedSpace(roles={ADA.account: "owner"}, tables=tables)
    profile = change(ADA, {"name": envelope("s", 1, 1)}, "m1", table=PROFILE)
    batch = [
        change(ADA, {"goal": envelope("s", 1, 1)}, table=RULINGS),
        change(ADA, {"summary": envelope("m", 1, 1)}, table=ITERATIONS),
        profile,
    ]
    assert space.push(ADA, *batch) == ["accepted"] * 3
    for table in tables:
        assert space.push(ADA, space.flip(ADA, (table, "m1"), "private")) == ["fixed-field"], table
    for first, path, cls in zip(batch, ("goal", "summary", "name"), "pmp", strict=True):
        born = edited(first, id="m2", visibility="private", change_id=str(uuid.uuid4()))
        again = signed(ADA, fields(born, **{path: envelope(cls, 1, 1)}))
        assert space.push(ADA, again) == ["fixed-field"], first.table


def test_the_journal_flips() -> None:
    """What an agent changed in a record is hidden and shown with it."""
    space = SharedSpace()
    first = change(ADA, {"before": envelope("m", 1, 1)}, table=MIRRORS)
    assert space.push(ADA, first) == ["accepted"]
    ref = (MIRRORS.name, "m1")
    assert space.push(ADA, space.flip(ADA, ref, "private")) == ["accepted"]
    assert space.push(ADA, space.flip(ADA, ref, "space")) == ["accepted"]


@pytest.mark.parametrize("op", ["insert", "update", "delete"])
def test_a_stale_edit_never_flips(op: str) -> None:
    """An edit that waited under the old visibility shows nothing of what was hidden meanwhile."""
    space = SharedSpace()
    title = {"title": envelope("s", 1, 1)}
    assert space.push(ADA, change(ADA, title)) == ["accepted"]
    assert space.push(ADA, space.flip(ADA, MEMO, "private")) == ["accepted"]
    # It covers all that stands, later, and so is a flip in everything but its name.
    waiting = change(ADA, title, moment=60_000, op=op)
    assert space.push(ADA, waiting) == ["stale-key"]
    tidied = change(ADA, {"deletedAt": "2026-11-21T05:23:00.123Z"}, moment=60_000, op=op)
    assert space.push(ADA, tidied) == ["stale-key"]
    assert space.records[MEMO].record.visibility == "private"
    assert space.push(ADA, space.flip(ADA, MEMO, "space")) == ["accepted"]
    late = change(ADA, {"title": envelope("p", 1, 1)}, moment=90_000, visibility="private", op=op)
    assert space.push(ADA, late) == ["stale-key"]


def test_hidden_is_like_never_there() -> None:
    """To another member every push to a hidden record is answered like one to an unknown id."""
    space = begun()
    assert space.push(ADA, space.flip(ADA, MEMO, "private")) == ["accepted"]
    edit = change(BOB, {"title": envelope("s", 2, 1)}, moment=9, author=ADA)
    tries = [
        edit,
        edited(edit, fields=change(BOB, {"deletedAt": None}).fields),
        edited(edit, visibility="private"),
        edited(edit, op="flip"),
        edited(edit, op="flip", visibility="private"),
        edited(edit, op="reseal"),
        change(BOB, {"status": "done"}, author=ADA, guards={"status": "open"}),
        change(BOB, {"status": "done"}, author=ADA, guards={"status": "gone"}),
    ]
    for made in tries:
        there = space.push(BOB, edited(made, change_id=str(uuid.uuid4())))
        never = space.push(BOB, edited(made, id="never", change_id=str(uuid.uuid4())))
        assert there == never, made
        assert there[0] in ("fixed-field", "reseal-outdated", "bad-envelope")


# Change ids


def test_an_id_of_another_member_is_no_resend() -> None:
    """Who logs an id first takes nothing from another member whose device derives it too."""
    space = begun()
    squat = change(BOB, {"size": 1}, "squat")
    assert space.push(BOB, squat) == ["accepted"]
    mine = change(ADA, {"size": 2}, "mine", change_id=squat.change_id)
    assert space.push(ADA, mine) == ["id-taken"]
    assert space.push(ADA, edited(squat, author_id=ADA.account)) != ["duplicate"]
    assert space.push(ADA, edited(mine, change_id=str(uuid.uuid4()))) == ["accepted"]
    assert space.push(BOB, squat) == ["duplicate"]


def test_an_id_is_for_one_record() -> None:
    """One's own id on another record is not taken for a resend, in the log or in the batch."""
    space = begun()
    first = change(ADA, {"size": 1}, "one")
    other = change(ADA, {"size": 2}, "two", change_id=first.change_id)
    assert space.push(ADA, first, other, first) == ["accepted", "id-taken", "duplicate"]
    assert space.push(ADA, other, first) == ["id-taken", "duplicate"]
    group = str(uuid.uuid4())
    batch = [edited(change(ADA, {"size": 3}, "three"), group=group), edited(other, group=group)]
    assert space.push(ADA, *batch) == ["group-refused", "id-taken"]


def test_an_id_tells_nothing_of_hidden_changes() -> None:
    """An id in a private record of another member is free, as if it had never been used."""
    space = begun()
    secret = change(ADA, {"title": envelope("p", 1, 1)}, "secret", visibility="private")
    assert space.push(ADA, secret) == ["accepted"]
    assert space.push(BOB, change(BOB, {"size": 1}, "x", change_id=secret.change_id)) == [
        "accepted"
    ]
    assert space.push(ADA, secret) == ["duplicate"]


def test_a_resend_is_known_after_the_record_was_hidden() -> None:
    """A member whose answer was lost learns that the change stands, though they see it no more."""
    space = begun()
    edit = change(BOB, {"size": 5}, moment=1, author=ADA)
    assert space.push(BOB, edit) == ["accepted"]
    assert space.push(ADA, space.flip(ADA, MEMO, "private")) == ["accepted"]
    assert space.push(BOB, edit) == ["duplicate"]
    assert edit.change_id not in {logged.change.change_id for logged in space.pull(BOB, 0)[0]}


def test_two_members_decide_one_step() -> None:
    """The second decision of a step bears the same ids and fails for what it is: too late."""
    space = begun()
    ids = [str(uuid.uuid4()) for _ in range(2)]

    def decision(who: Someone, order: int) -> list[ChangeMessage]:
        group = str(uuid.uuid4())
        effect = change(who, {"size": 7}, "made", group=group, change_id=ids[0])
        step = change(
            who,
            {"status": "done"},
            author=ADA,
            guards={"status": "open"},
            group=group,
            change_id=ids[1],
        )
        return [effect, step] if order else [step, effect]

    assert space.push(ADA, *decision(ADA, 0)) == ["accepted"] * 2
    # An effect that was first in the group fails at the record that stands already.
    assert space.push(BOB, *decision(BOB, 0)) == ["guard-failed", "group-refused"]
    found = space.push(BOB, *decision(BOB, 1))
    assert "guard-failed" in found or "fixed-field" in found
    assert "id-taken" not in found


def test_the_other_device_does_not_add_to_a_decision() -> None:
    """A group whose decision another device of the account logged adds no effect of its own."""
    space = begun()
    step = change(ADA, {"status": "done"}, guards={"status": "open"}, group=str(uuid.uuid4()))
    same = change(ADA, {"size": 1}, "same", group=step.group)
    assert space.push(ADA, step, same) == ["accepted"] * 2
    more = change(ADA, {"size": 2}, "more", group=step.group)
    assert space.push(ADA, step, same, more) == ["duplicate", "duplicate", "group-refused"]
    assert space.push(ADA, step, same) == ["duplicate"] * 2
    # Without a decision in it a group is a list of edits, and the missing ones are taken.
    loose = change(ADA, {"size": 3}, "loose", group=step.group)
    assert space.push(ADA, same, loose) == ["duplicate", "accepted"]


def test_a_refused_group_says_so_of_each_copy() -> None:
    """A change that comes twice in a refused group was taken neither time."""
    space = begun()
    group = str(uuid.uuid4())
    one = change(ADA, {"size": 1}, "one", group=group)
    bad = change(ADA, {"size": 10}, "bad", group=group)
    assert space.push(ADA, one, one, bad) == ["group-refused", "group-refused", "bad-value"]
    assert space.push(ADA, one, one) == ["accepted", "duplicate"]
    step = change(ADA, {"status": "open"}, "one", group=str(uuid.uuid4()), guards={"status": None})
    assert space.push(ADA, step, step) == ["accepted", "duplicate"]


# Histories


@dataclass
class Reader:
    """A device that follows a space by its log alone."""

    who: Someone
    cursor: int = 0
    held: dict[RecordRef, Held] = field(default_factory=dict)

    def pull(self, space: SharedSpace) -> None:
        changes, hidden = space.pull(self.who, self.cursor)
        for one in in_log_order(changes, hidden):
            if isinstance(one, LoggedChange):
                ref = (one.change.table, one.change.id)
                self.held[ref] = apply_change(
                    self.held.get(ref), one.change, seq=one.seq, guarded=is_guarded
                )
            else:
                self.held.pop((one.table, one.id), None)
        self.cursor = len(space.log)


def is_guarded(table: str, path: str) -> bool:
    return TABLES[table].field_at(path).guarded


acts = st.tuples(
    st.sampled_from([ADA, ADA, BOB]),
    st.sampled_from(
        [
            "write",
            "write",
            "write",
            "clear",
            "delete",
            "guard",
            "flip",
            "flip",
            "reseal",
            "reseal",
            "stale",
            "pull",
            "rotate",
        ]
    ),
    st.sampled_from([(MEMOS, "a"), (MEMOS, "a"), (MEMOS, "b"), (RULINGS, "r")]),
    st.sampled_from(["title", "body", "labels/x", "labels/y", "lines/x", "count/d", "size"]),
    st.integers(0, 9),
    st.integers(0, 3),
)


def act(space: SharedSpace, readers: list[Reader], step: Any, number: int) -> None:
    """Do one thing; most are honest, some come late, and the hub says what it takes."""
    who, kind, (table, record), path, value, moment = step
    ref = (table.name, record)
    held = space.records.get(ref)
    author = who if held is None else ADA if held.record.author_id == ADA.account else BOB
    if kind == "flip" and value:
        who = author
    hidden = held is not None and held.record.visibility == "private" and who != author
    kind = "pull" if hidden and kind in ("flip", "reseal") else kind
    visibility = "space" if held is None else held.record.visibility
    if table is RULINGS:
        path = ("goal", "memory", "state")[value % 3]
    options: dict[str, Any] = {
        "table": table,
        "author": author,
        "moment": moment,
        "visibility": visibility,
        "change_id": str(uuid.UUID(int=number + 1)),
    }
    if kind == "rotate":
        space.key_version += 1
    elif kind == "pull":
        readers[value % 2].pull(space)
    elif kind == "flip" and held is not None:
        other = "space" if visibility == "private" else "private"
        space.push(who, space.flip(who, ref, other, change_id=options["change_id"]))
    elif kind == "reseal" and held is not None:
        paths = [name for name, entry in held.record.entries.items() if key_version(entry.value)]
        if paths:
            one = paths[value % len(paths)]
            newer = key_version(held.record.entries[one].value) + 1
            version = newer if visibility == "private" else None
            space.push(who, space.reseal(who, ref, one, version=version))
    elif kind == "guard" and table is MEMOS:
        before = None if held is None else held.record.entries.get("status")
        after = ("open", "done", "gone")[value % 3]
        named = {"status": before.value if before is not None and value else None}
        space.push(who, change(who, {"status": after}, record, guards=named, **options))
    elif kind == "delete":
        at = "2026-11-21T05:23:00.123Z" if value % 2 else None
        space.push(who, change(who, {"deletedAt": at}, record, **options))
    else:
        if kind == "stale":
            visibility = options["visibility"] = "space" if visibility == "private" else "private"
        cls, version = ("p", 1) if visibility == "private" else ("s", space.key_version)
        secret = table.field_at(path).sealed
        written = envelope(cls, version, value) if secret else value
        written = None if kind == "clear" else written
        space.push(who, change(who, {path: written}, record, **options))


@settings(max_examples=150)
@given(st.lists(acts, min_size=4, max_size=40))
def test_every_replica_is_what_the_hub_is(steps: list[Any]) -> None:
    """Whoever follows the log, whenever they ask, ends with exactly the records that they may see."""
    space = SharedSpace()
    readers = [Reader(ADA), Reader(BOB), Reader(ADA), Reader(BOB)]
    for number, step in enumerate(steps):
        act(space, readers[:2], step, number)
        for one in space.records.values():
            inside = "p" if one.record.visibility == "private" else "s"
            values = [entry.value for entry in one.record.entries.values()]
            assert all(value[6] == inside for value in values if key_version(value))
    for reader in readers:
        reader.pull(space)
        expected = space.seen_by(reader.who)
        assert reader.held.keys() == expected.keys()
        for ref, held in reader.held.items():
            assert held.record == expected[ref].record
            assert held.proofs == expected[ref].proofs


@settings(max_examples=60)
@given(st.lists(acts, min_size=4, max_size=30), st.integers(1, 20))
def test_nothing_private_is_shown(steps: list[Any], after: int) -> None:
    """No page of the log and no state holds a private value of another member, or of a hidden record."""
    space = SharedSpace()
    for number, step in enumerate(steps):
        act(space, [Reader(ADA), Reader(BOB)], step, number)
    for cursor in (0, after):
        changes, _ = space.pull(BOB, cursor)
        for logged in changes:
            ref = (logged.change.table, logged.change.id)
            assert space.records[ref].record.visibility == "space" or (
                logged.change.author_id == BOB.account
            )
