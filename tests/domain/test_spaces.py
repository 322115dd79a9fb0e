"""The rules of the membership log: who may change who is in a space, one test for each rule."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mana.domain.errors import Invalid
from mana.domain.spaces import (
    MEMBERS_MAX,
    MODULES,
    SHARED_TYPES,
    Member,
    MembershipEntry,
    MembershipRefused,
    Role,
    SpaceType,
    can_manage,
    can_write,
    entry_from_wire,
    holds,
    require_first,
    require_next,
    rotation_due,
)

ADA, BO, CY, DEE = (f"018f3b9e-0000-4000-8000-00000000000{number}" for number in range(4))
ROLES: dict[str, Role] = {ADA: "owner", BO: "admin", CY: "member", DEE: "viewer"}
STRANGER = "018f3b9e-0000-4000-8000-0000000000ff"


def member(account_id: str, role: Role) -> Member:
    return Member(account_id, role, f"sign-{account_id}", f"hpke-{account_id}")


def entry(members: dict[str, Role], *, by: str = ADA, version: int = 1) -> MembershipEntry:
    return MembershipEntry(
        previous="0" * 64,
        space_type="family",
        members=tuple(member(*one) for one in members.items()),
        key_version=version,
        key_check=f"check-{version}",
        created_at="2026-11-21T05:23:00.000Z",
        author_id=by,
        nonce="n",
    )


HOUSE = entry(ROLES)


def without(*gone: str) -> dict[str, Role]:
    return {name: role for name, role in ROLES.items() if name not in gone}


def reason(previous: MembershipEntry, following: MembershipEntry) -> str | None:
    """Return why an entry is refused, None if it may follow."""
    try:
        require_next(previous, following)
    except MembershipRefused as error:
        return str(error.detail["reason"])
    return None


@pytest.mark.parametrize(
    ("expected", "following"),
    [
        ("type-changed", replace(HOUSE, space_type="team")),
        ("not-a-member", entry({**ROLES, STRANGER: "member"}, by=STRANGER)),
        ("key-version", entry(ROLES, version=3)),
        ("key-version", replace(HOUSE, key_version=0)),
        ("key-version", replace(HOUSE, key_check="check-2")),
        ("key-version", replace(HOUSE, key_version=2)),
        ("no-owner", entry({ADA: "admin", BO: "admin"}, version=2)),
        ("no-owner", entry(without(ADA))),
        ("unchanged", HOUSE),
        ("unchanged", replace(HOUSE, author_id=DEE, created_at="later")),
        ("rotation", entry(without(DEE))),
        ("rotation", entry(without(CY), by=BO)),
        ("closing", entry({}, version=2)),
        ("closing", entry({}, by=BO)),
        ("closing", entry({}, by=DEE)),
        ("leaving", entry(without(CY), by=CY, version=2)),
        ("leaving", entry(without(CY, DEE), by=CY)),
        ("leaving", entry({**without(CY), DEE: "member"}, by=CY)),
        ("leaving", entry({**without(CY), STRANGER: "member"}, by=CY)),
    ],
)
def test_each_rule_refuses_its_breach(expected: str, following: MembershipEntry) -> None:
    """An entry that breaks one rule is refused, and the reason names that rule."""
    assert reason(HOUSE, following) == expected


def with_keys(of: str, *, by: str, version: int = 1, **keys: str) -> MembershipEntry:
    """Return the house with other keys for one of its members."""
    members = tuple(
        replace(one, **keys) if one.account_id == of else one  # type: ignore[arg-type]
        for one in HOUSE.members
    )
    return replace(entry(ROLES, by=by, version=version), members=members)


@pytest.mark.parametrize(
    "keys", [{"signing_key": "new"}, {"hpke_key": "new"}, {"signing_key": "new", "hpke_key": "new"}]
)
def test_nobody_s_keys_are_exchanged_by_another(keys: dict[str, str]) -> None:
    """Whoever is in the space replaces their own keys, both or one; nobody those of another."""
    for name in ROLES:
        for author in ROLES:
            found = reason(HOUSE, with_keys(name, by=author, **keys))
            assert found == (None if author == name else "keys-changed")


def test_who_replaces_their_keys_changes_nobody_else() -> None:
    """With new keys comes no newcomer, no removal, no role, no second person's keys, no end."""
    own = with_keys(ADA, by=ADA, signing_key="new")
    stranger, others = member(STRANGER, "member"), own.members[1:]
    for members in (
        (*own.members, stranger),
        own.members[:-1],
        (own.members[0], replace(others[0], role="owner"), *others[1:]),
        (replace(own.members[0], role="admin"), replace(others[0], role="owner"), *others[1:]),
        (own.members[0], replace(others[0], hpke_key="new"), *others[1:]),
    ):
        for version in (1, 2):
            check = f"check-{version}"
            following = replace(own, members=members, key_version=version, key_check=check)
            assert reason(HOUSE, following) == "keys-changed"


def test_new_own_keys_and_the_space_s_next_key() -> None:
    """In the entry with their new keys, owners and admins may change the space's key; no other."""
    for name, role in ROLES.items():
        found = reason(HOUSE, with_keys(name, by=name, version=2, hpke_key="new"))
        assert found == (None if can_manage(role) else "role")


def test_the_one_person_of_a_space_replaces_their_keys() -> None:
    """In a personal space and a user scope the person replaces their keys, the space's too."""
    kinds: tuple[SpaceType, ...] = ("personal", "user")
    for kind in kinds:
        own = replace(entry({ADA: "owner"}), space_type=kind)
        mine = replace(own.members[0], signing_key="new", hpke_key="new")
        rekeyed = replace(own, members=(mine,))
        assert reason(own, rekeyed) is None
        assert reason(own, replace(rekeyed, key_version=2, key_check="check-2")) is None
        shared = replace(rekeyed, members=(mine, member(BO, "viewer")))
        assert reason(own, shared) == "keys-changed"


def test_nothing_follows_the_end() -> None:
    """A closed space stays closed, also for who owned it."""
    closed = entry({})
    assert reason(HOUSE, closed) is None
    assert reason(closed, entry({ADA: "owner"})) == "closed"


def test_a_space_of_one_person_has_that_person() -> None:
    """A personal space and a user scope are never shared, left or closed; their key may grow."""
    kinds: tuple[SpaceType, ...] = ("personal", "user")
    changes: tuple[dict[str, Role], ...] = ({ADA: "owner", BO: "viewer"}, {}, {BO: "owner"})
    for kind in kinds:
        own = replace(entry({ADA: "owner"}), space_type=kind)
        for members in changes:
            following = replace(own, members=entry(members).members)
            assert reason(own, following) == "one-person"
        assert reason(own, replace(own, key_version=2, key_check="check-2")) is None


def test_a_space_has_a_limit() -> None:
    """A space takes 200 members and no more."""
    full: dict[str, Role] = {
        f"018f3b9e-0000-4000-9000-{number:012d}": "member" for number in range(MEMBERS_MAX - 1)
    }
    previous = entry({ADA: "owner"})
    assert reason(previous, entry({ADA: "owner", **full})) is None
    assert reason(previous, entry({ADA: "owner", **full, STRANGER: "viewer"})) == "too-many"


def test_a_space_begins_with_its_founder() -> None:
    """A first entry names its author alone, as owner, and the first key."""
    first = replace(entry({ADA: "owner"}), previous="")
    require_first(first)
    for other in (
        replace(first, previous="0" * 64),
        replace(first, author_id=BO),
        replace(first, key_version=2),
        replace(first, members=()),
        replace(first, members=entry({ADA: "admin"}).members),
        replace(first, members=entry({ADA: "owner", BO: "viewer"}).members),
    ):
        with pytest.raises(MembershipRefused) as caught:
            require_first(other)
        assert caught.value.detail == {"reason": "first"}


NEWCOMERS: tuple[Role, ...] = ("owner", "admin", "member", "viewer")


def table() -> list[tuple[str, dict[str, Role], int, frozenset[str]]]:
    """Return changes to others, and which of admin, member and viewer may make them."""
    nobody, admin = frozenset[str](), frozenset({BO})
    return [
        ("add an owner", {**ROLES, STRANGER: "owner"}, 1, nobody),
        ("add an admin", {**ROLES, STRANGER: "admin"}, 1, nobody),
        ("add a member", {**ROLES, STRANGER: "member"}, 1, admin),
        ("add a viewer", {**ROLES, STRANGER: "viewer"}, 1, admin),
        ("rotate", ROLES, 2, admin),
        ("demote the owner, another in the place", {**ROLES, ADA: "admin", BO: "owner"}, 1, nobody),
        ("make the admin an owner", {**ROLES, BO: "owner"}, 1, nobody),
        ("make the admin a member", {**ROLES, BO: "member"}, 1, nobody),
        ("make the member an owner", {**ROLES, CY: "owner"}, 1, nobody),
        ("make the member an admin", {**ROLES, CY: "admin"}, 1, nobody),
        ("make the member a viewer", {**ROLES, CY: "viewer"}, 1, admin),
        ("make the viewer a member", {**ROLES, DEE: "member"}, 1, admin),
        ("swap member and viewer", {**ROLES, CY: "viewer", DEE: "member"}, 1, admin),
        ("add one and promote one", {**ROLES, STRANGER: "member", CY: "admin"}, 1, nobody),
    ]


@pytest.mark.parametrize("case", table(), ids=lambda case: str(case[0]))
def test_a_role_may_change_what_it_may(case: tuple[str, dict[str, Role], int, set[str]]) -> None:
    """By role and change: an owner may, an admin within members and viewers, others never."""
    _, members, version, allowed = case
    assert reason(HOUSE, entry(members, version=version)) is None
    for author in (BO, CY, DEE):
        found = reason(HOUSE, entry(members, by=author, version=version))
        assert found == (None if author in allowed else "role")


@pytest.mark.parametrize("gone", [ADA, BO, CY, DEE])
@pytest.mark.parametrize("author", [ADA, BO, CY, DEE])
def test_who_may_remove_whom(author: str, gone: str) -> None:
    """Anybody leaves with the key as it is; others go by an owner, or an admin below admins."""
    if author == gone:
        expected = "no-owner" if gone == ADA else None
        assert reason(HOUSE, entry(without(gone), by=author)) == expected
        return
    found = reason(HOUSE, entry(without(gone), by=author, version=2))
    if gone == ADA:
        assert found == "no-owner"
    else:
        may = author == ADA or (author == BO and gone in (CY, DEE))
        assert found == (None if may else "role")


def test_a_rotation_is_due_after_somebody_left() -> None:
    """Who left knows the key in use until it is changed; who was removed never does."""
    left = entry(without(CY), by=CY)
    assert rotation_due([HOUSE]) is False
    assert rotation_due([HOUSE, left]) is True
    rotated = entry(without(CY), version=2)
    assert rotation_due([HOUSE, left, rotated]) is False
    removed = entry(without(CY, DEE), version=3)
    assert rotation_due([HOUSE, left, rotated, removed]) is False
    back = entry(ROLES)
    assert rotation_due([HOUSE, left, back]) is False
    assert rotation_due([HOUSE, entry({})]) is False


def test_roles_and_modules() -> None:
    """Viewers write nothing, owners and admins manage; a personal space holds every module."""
    assert [can_write(role) for role in NEWCOMERS] == [True, True, True, False]
    assert [can_manage(role) for role in NEWCOMERS] == [True, True, False, False]
    assert set(MODULES) == set(SHARED_TYPES)
    for kind in SHARED_TYPES:
        assert holds(kind, "todo")
        assert holds(kind, "notes")
        assert not holds(kind, "moodlit")
    assert holds("personal", "moodlit")
    assert holds("family", "recipes")
    assert not holds("team", "recipes")
    assert not holds("unheard", "todo")


@pytest.mark.parametrize(
    "change",
    [
        {"version": "v2"},
        {"extra": 1},
        {"type": "clan"},
        {"keyVersion": 0},
        {"keyVersion": True},
        {"keyVersion": "1"},
        {"members": None},
        {"members": [], "previous": ""},
        {"members": [{"accountId": ADA}]},
        {"members": [{**member(ADA, "owner").to_wire(), "more": ""}]},
        {"members": [{**member(ADA, "owner").to_wire(), "role": "king"}]},
        {"members": [{**member(ADA, "owner").to_wire(), "accountId": "ada"}]},
        {"members": [{**member(ADA, "owner").to_wire(), "hpkeKey": "A" * 2_049}]},
        {"members": [member(ADA, "owner").to_wire()] * 2},
        {"authorId": "ada"},
        {"nonce": 1},
        {"nonce": "n" * 129},
    ],
)
def test_another_shape_is_no_entry(change: dict[str, object]) -> None:
    """An entry has one form on the wire; unknown, missing, doubled and endless parts are none."""
    assert entry_from_wire(HOUSE.to_wire()) == HOUSE
    with pytest.raises(Invalid):
        entry_from_wire({**HOUSE.to_wire(), **change})


PEOPLE = (ADA, BO, CY, DEE, STRANGER)
someone = st.sampled_from(PEOPLE)
Draft = tuple[str, dict[str, Role], int, bool, frozenset[str]]
drafts: st.SearchStrategy[Draft] = st.tuples(
    someone,
    st.dictionaries(someone, st.sampled_from(NEWCOMERS), max_size=len(PEOPLE)),
    st.sampled_from((0, 0, 0, 1, 1, 2, -1)),
    st.booleans(),
    st.frozensets(someone, max_size=2),
)
"""Author, members, how the key version grows, whether the members are a change of those that
stand, which gives many more entries that may follow, and whose keys are others than before.
"""


def grown_log(steps: list[Draft]) -> list[MembershipEntry]:
    """Return the log that the rules let grow from these drafts; the others are refused."""
    log = [replace(entry({ADA: "owner"}), previous="")]
    for author, drafted, growth, is_change, rekeyed in steps:
        newest = log[-1]
        members = dict(drafted)
        if is_change:
            members = {one.account_id: one.role for one in newest.members}
            for name, role in list(drafted.items())[:1]:
                if members.get(name) == role:
                    members.pop(name)
                else:
                    members[name] = role
        following = entry(members, by=author, version=newest.key_version + growth)
        following = replace(
            following,
            members=tuple(with_next_keys(newest, one, rekeyed) for one in following.members),
        )
        if reason(newest, following) is None:
            log.append(following)
    return log


def with_next_keys(newest: MembershipEntry, drafted: Member, rekeyed: frozenset[str]) -> Member:
    """Return a drafted member with the keys that they have, or others if they are rekeyed."""
    known = newest.member(drafted.account_id) or drafted
    mark = "+" if drafted.account_id in rekeyed else ""
    return replace(drafted, signing_key=known.signing_key + mark, hpke_key=known.hpke_key + mark)


@given(st.lists(drafts, max_size=30))
@settings(max_examples=300)
def test_no_sequence_of_entries_escalates(steps: list[Draft]) -> None:
    """Only an owner's entry makes or unmakes owners and admins; nobody else gains by their own."""
    log = grown_log(steps)
    rank = {role: place for place, role in enumerate(("viewer", "member", "admin", "owner"))}
    for before, after in pairwise(log):
        author = before.member(after.author_id)
        assert author is not None
        if author.role == "owner":
            continue
        for high in ("owner", "admin"):
            had = {one.account_id for one in before.members if one.role == high}
            has = {one.account_id for one in after.members if one.role == high}
            assert has == had - ({author.account_id} - {one.account_id for one in after.members})
        own = after.member(author.account_id)
        assert own is None or rank[own.role] <= rank[author.role]


@given(st.lists(drafts, max_size=30))
@settings(max_examples=300)
def test_nobody_is_given_other_keys(steps: list[Draft]) -> None:
    """In no sequence does somebody's public key change by another's entry, or with another change.

    So who signed as somebody before can always be followed, by their own hand, to who does now.
    """
    for before, after in pairwise(grown_log(steps)):
        moved = [
            one.account_id
            for one in after.members
            if (old := before.member(one.account_id)) is not None and old.keys != one.keys
        ]
        assert moved in ([], [after.author_id])
        if moved:
            names = [(one.account_id, one.role) for one in after.members]
            assert sorted(names) == sorted((one.account_id, one.role) for one in before.members)


@given(st.lists(drafts, max_size=30))
@settings(max_examples=300)
def test_who_was_removed_never_knows_the_key_in_use(steps: list[Draft]) -> None:
    """Key versions never skip or go back; a rotation is due exactly while a leaver knows the key."""
    log = grown_log(steps)
    knows: dict[str, int] = {}
    left: set[str] = set()
    for index, one in enumerate(log):
        members = {each.account_id for each in one.members}
        if index:
            before = log[index - 1]
            assert one.key_version - before.key_version in (0, 1)
            for each in before.members:
                if each.account_id not in members and members:
                    (left.add if each.account_id == one.author_id else left.discard)(
                        each.account_id
                    )
        for name in members:
            knows[name] = one.key_version
        outside = {name for name in knows if name not in members}
        if not members:
            continue
        for name in outside - left:
            assert knows[name] < one.key_version
        stale = {name for name in outside & left if knows[name] == one.key_version}
        assert rotation_due(log[: index + 1]) == bool(stale)
