"""The entries that a device signs: they hold for everybody, and each opens what it should."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import msgspec
import pytest

from mana.crypto import authority
from mana.crypto.authority import VerifiedLog, verify_log
from mana.crypto.errors import Malformed, SignatureRejected
from mana.crypto.identity import PrivateIdentity
from mana.crypto.primitives import b64
from mana.crypto.signatures import sign_entry
from mana.device import membership
from mana.device.membership import Hand
from mana.device.vault import OpenedVault, SpaceKeys, found_space
from mana.domain.errors import ManaError, NotFound
from mana.domain.ids import AccountId
from mana.domain.spaces import Member, MembershipRefused, Role, entry_from_wire
from mana.protocol.messages import KeyWrap, MembershipAppend, SignedEntry, SpaceInfo
from tests.hub.client import START_MS


@cache
def identity(number: int) -> PrivateIdentity:
    return PrivateIdentity.generate(f"018f3b9e-0000-4000-8000-00000000000{number}")


class Person:
    """An account with its vault, which takes what the hub would hand it."""

    def __init__(self, number: int) -> None:
        self.identity = identity(number)
        self.id = self.identity.account_id
        self.vault = OpenedVault(
            account_id=AccountId(self.id),
            login=str(number),
            mode="standard",
            login_key=bytes(32),
            master_key=bytes([number]) * 32,
            identity=self.identity,
        )

    @property
    def hand(self) -> Hand:
        return Hand(self.identity, START_MS)

    def member(self, role: Role) -> Member:
        public = self.identity.public()
        keys = b64(public.signing_key.to_bytes()), b64(public.hpke_key.to_bytes())
        return Member(self.id, role, *keys)


class House:
    """A space as the hub keeps it, handed out to whoever is in it."""

    def __init__(self, founder: Person) -> None:
        info, _ = found_space(founder.identity, founder.vault.master_key, "family", now_ms=START_MS)
        self.id = info.space_id
        self.log = list(info.log)
        self.wraps = {founder.id: list(info.wraps)}
        founder.vault.take_space(info)

    def take(self, append: MembershipAppend) -> None:
        self.log.append(append.entry)
        for wrap in append.wraps:
            given = KeyWrap(kind="s", version=wrap.version, wrapped=wrap.wrapped)
            self.wraps.setdefault(wrap.account_id, []).append(given)

    def show(self, person: Person) -> SpaceKeys:
        wraps = self.wraps.get(person.id, [])
        info = SpaceInfo(
            space_id=self.id, type="family", role="", log=list(self.log), wraps=list(wraps)
        )
        return person.vault.take_space(info)


@pytest.fixture
def people() -> tuple[House, Person, Person, Person]:
    ada, bo, cy = Person(1), Person(2), Person(3)
    return House(ada), ada, bo, cy


def test_a_newcomer_reads_the_history(people: tuple[House, Person, Person, Person]) -> None:
    """Who joins after two rotations holds every version of the key, and the same ones."""
    house, ada, bo, _ = people
    for _ in range(2):
        house.take(membership.rotate(house.show(ada), ada.hand))
    before = house.show(ada)
    house.take(membership.add(before, ada.hand, bo.member("member")))
    theirs = house.show(bo)
    assert (theirs.version, theirs.role) == (3, "member")
    assert theirs.space_keys == before.space_keys
    assert set(theirs.space_keys) == {1, 2, 3}


def test_who_is_removed_holds_no_new_key(people: tuple[House, Person, Person, Person]) -> None:
    """A removal wraps a fresh key to each who stays, and to nobody else."""
    house, ada, bo, cy = people
    for newcomer in (bo, cy):
        house.take(membership.add(house.show(ada), ada.hand, newcomer.member("member")))
    append = membership.remove(house.show(ada), ada.hand, bo.id)
    assert {wrap.account_id for wrap in append.wraps} == {ada.id, cy.id}
    assert {wrap.version for wrap in append.wraps} == {2}
    house.take(append)
    mine, theirs = house.show(ada), house.show(cy)
    assert mine.space_keys[2] == theirs.space_keys[2] != mine.space_keys[1]
    with pytest.raises(ManaError):
        house.show(bo)


def test_each_move_holds_for_everybody(people: tuple[House, Person, Person, Person]) -> None:
    """Roles, hand-over, leaving and closing are entries that every other device takes."""
    house, ada, bo, cy = people
    for newcomer in (bo, cy):
        house.take(membership.add(house.show(ada), ada.hand, newcomer.member("viewer")))
    house.take(membership.set_role(house.show(ada), ada.hand, cy.id, "member"))
    house.take(membership.transfer(house.show(ada), ada.hand, bo.id))
    roles = {one.account_id: one.role for one in house.show(cy).members}
    assert roles == {ada.id: "admin", bo.id: "owner", cy.id: "member"}
    house.take(membership.leave(house.show(cy), cy.hand))
    assert [one.account_id for one in house.show(bo).members] == [ada.id, bo.id]
    closing = membership.close(house.show(bo), bo.hand)
    assert verify_log(house.id, [*house.log, closing]).newest.members == ()


def test_what_a_rule_forbids_is_not_even_signed(
    people: tuple[House, Person, Person, Person],
) -> None:
    """A device makes no entry that others would refuse."""
    house, ada, bo, cy = people
    house.take(membership.add(house.show(ada), ada.hand, bo.member("admin")))
    space = house.show(bo)
    for build in (
        lambda: membership.set_role(space, bo.hand, bo.id, "owner"),
        lambda: membership.add(space, bo.hand, cy.member("admin")),
        lambda: membership.remove(space, bo.hand, ada.id),
        lambda: membership.transfer(space, bo.hand, bo.id),
        lambda: membership.close(space, bo.hand),
        lambda: membership.leave(house.show(ada), ada.hand),
    ):
        with pytest.raises(MembershipRefused):
            build()
    with pytest.raises(NotFound):
        membership.remove(space, bo.hand, cy.id)
    garbled = replace(cy.member("member"), hpke_key="AA==")
    with pytest.raises(Malformed):
        membership.add(space, bo.hand, garbled)


def test_an_entry_follows_from_what_it_is_told(
    people: tuple[House, Person, Person, Person],
) -> None:
    """With the same time and the same dice the same entry is signed."""
    house, ada, *_ = people
    space = house.show(ada)

    def drawn() -> SignedEntry:
        numbers = itertools.count()
        dice = Hand(ada.identity, START_MS, lambda count: bytes([next(numbers)]) * count)
        return membership.rotate(space, dice).entry

    assert drawn() == drawn()


def forged(house: House, by: Person, **changed: object) -> SignedEntry:
    """Return a well-signed entry of somebody who changed the newest one as they like."""
    wire = {
        **house.log[-1].entry,
        "previous": verify_log(house.id, house.log).head,
        "authorId": by.id,
        **changed,
    }
    return SignedEntry(entry=wire, signature=b64(sign_entry(by.identity.signing_key, wire)))


def test_a_log_that_breaks_a_rule_is_refused(people: tuple[House, Person, Person, Person]) -> None:
    """Signed or not: an escalation, a stranger's entry, a lost entry and garbled keys hold not."""
    house, ada, bo, cy = people
    house.take(membership.add(house.show(ada), ada.hand, bo.member("member")))
    members = [ada.member("owner").to_wire(), bo.member("owner").to_wire()]
    with pytest.raises(MembershipRefused):
        verify_log(house.id, [*house.log, forged(house, bo, members=members)])
    with pytest.raises(MembershipRefused):
        verify_log(house.id, [*house.log, forged(house, cy)])
    with pytest.raises(SignatureRejected):
        verify_log(house.id, house.log[1:])
    by_bo = forged(house, bo, members=members)
    as_ada = msgspec.structs.replace(by_bo, entry={**by_bo.entry, "authorId": ada.id})
    with pytest.raises(SignatureRejected):
        verify_log(house.id, [*house.log, as_ada])
    house.take(membership.set_role(house.show(ada), ada.hand, bo.id, "viewer"))
    with pytest.raises(SignatureRejected):
        verify_log(house.id, [house.log[0], house.log[2]])
    for name, bad in (("hpkeKey", "AA=="), ("signingKey", b64(bytes(31)))):
        garbled = [*house.log[-1].entry["members"], {**cy.member("member").to_wire(), name: bad}]
        with pytest.raises(Malformed):
            verify_log(house.id, [*house.log, forged(house, ada, members=garbled)])


def test_what_was_verified_is_not_verified_again(
    people: tuple[House, Person, Person, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only new entries are looked at; another log is looked at from its beginning."""
    house, ada, bo, _ = people
    house.take(membership.add(house.show(ada), ada.hand, bo.member("member")))
    known = verify_log(house.id, house.log)
    house.take(membership.rotate(house.show(ada), ada.hand))
    looked: list[SignedEntry] = []
    verify_next = authority.verify_next

    def watching(space_id: str, newest: object, hashes: object, signed: SignedEntry) -> object:
        looked.append(signed)
        return verify_next(space_id, newest, hashes, signed)  # type: ignore[arg-type]

    monkeypatch.setattr(authority, "verify_next", watching)
    copied = msgspec.json.decode(msgspec.json.encode(house.log), type=list[SignedEntry])
    grown = verify_log(house.id, copied, known)
    assert looked == [house.log[-1]]
    assert (len(grown.entries), grown.head) == (3, grown.hashes[-1])
    looked.clear()
    assert verify_log(house.id, house.log[:1], known).entries == known.entries[:1]
    assert len(looked) == 1
    assert not known.continued([house.log[0], house.log[2]])
    unsigned = msgspec.structs.replace(house.log[1], signature=house.log[0].signature)
    assert not known.continued([house.log[0], unsigned, house.log[2]])


def test_a_log_of_another_space_is_no_help(people: tuple[House, Person, Person, Person]) -> None:
    """What is known of one space vouches for nothing in another."""
    house, ada, *_ = people
    known: VerifiedLog = verify_log(house.id, house.log)
    with pytest.raises(SignatureRejected):
        verify_log("ab" * 32, house.log, known)
    other = House(ada)
    assert verify_log(other.id, other.log, known).space_id == other.id
    assert entry_from_wire(other.log[0].entry).previous == ""
