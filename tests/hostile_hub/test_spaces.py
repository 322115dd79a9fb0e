"""A hub that lies about who is in a space, as what, and which keys it has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import msgspec
import pytest

from mana.crypto.hpke import HpkePublicKey
from mana.crypto.identity import PrivateIdentity
from mana.crypto.keys import SpaceKeyName, new_key, wrap_space_key
from mana.crypto.primitives import b64, unb64
from mana.crypto.signatures import sign_entry
from mana.device import membership
from mana.device.errors import SpaceKeyMissing
from mana.device.vault import found_space
from mana.domain.errors import NotFound
from mana.testing.postgres import Cluster
from tests.device.household import change_members
from tests.hostile_hub.tools import (
    SPACES,
    Body,
    Mouth,
    Scene,
    book_of,
    is_refused,
    opened,
    picture,
    scene_on,
)

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

EVE: Final = PrivateIdentity.generate("00000000-0000-4000-8000-00000000000e")


@dataclass
class Told:
    """What the hub would honestly say of Ada's spaces, and what it has to lie with."""

    scene: Scene
    body: Body
    bobs: Body
    """What it says to Bob."""

    def space(self, kind: str) -> Body:
        return next(one for one in self.body["spaces"] if one["type"] == kind)

    @property
    def team(self) -> Body:
        return self.space("team")

    def wrapped(
        self, kind: str, version: int, key: bytes, *, wrap_kind: Literal["s", "p"] = "s"
    ) -> Body:
        """Return a key of the hub's choice, wrapped to Ada as her own key would be."""
        space, account = self.space(kind), self.scene.ada.account_id
        members = space["log"][-1]["entry"]["members"]
        public = next(one["hpkeKey"] for one in members if one["accountId"] == account)
        name = SpaceKeyName(wrap_kind, space["spaceId"], version, account)
        wrapped = wrap_space_key(key, HpkePublicKey(unb64(public)), name)
        return {"kind": wrap_kind, "version": version, "wrapped": wrapped}

    def entry(self, by: PrivateIdentity, **parts: Any) -> Body:
        """Return an entry that would be the next of the team's log, signed by somebody."""
        keys = opened(self.scene.ada).space(self.scene.team)
        entry = {**self.team["log"][-1]["entry"], "previous": keys.verified.head, **parts}
        return {"entry": entry, "signature": b64(sign_entry(by.signing_key, entry))}

    def with_eve(self) -> list[Body]:
        public = EVE.public()
        member = {
            "accountId": EVE.account_id,
            "role": "member",
            "signingKey": b64(public.signing_key.to_bytes()),
            "hpkeKey": b64(public.hpke_key.to_bytes()),
        }
        return [*self.team["log"][-1]["entry"]["members"], member]

    def with_role(self, account: str, role: str) -> list[Body]:
        return [
            {**one, "role": role if one["accountId"] == account else one["role"]}
            for one in self.team["log"][-1]["entry"]["members"]
        ]


@pytest.fixture(scope="module")
async def told(postgres: Cluster) -> AsyncIterator[Told]:
    async with scene_on(postgres) as scene:
        await change_members(scene.ada, scene.team, membership.rotate)
        for one in (scene.ada, scene.away, scene.bob):
            await one.sync_now()
        body = msgspec.to_builtins(await book_of(scene.ada).hub.spaces())
        bobs = msgspec.to_builtins(await book_of(scene.bob).hub.spaces())
        yield Told(scene, body, bobs)


Lie: TypeAlias = Callable[[Told, Body], None]
"""Changes an answer about spaces in place."""


def of(body: Body, kind: str) -> Body:
    return next(one for one in body["spaces"] if one["type"] == kind)


def hidden(told: Told, body: Body) -> None:
    body["spaces"].remove(of(body, "team"))


def left(told: Told, body: Body) -> None:
    team = of(body, "team")
    hidden(told, body)
    body["departed"] = [{"spaceId": team["spaceId"], "log": team["log"]}]


def put_out(told: Told, body: Body) -> None:
    """The hub says that Bob put Ada out, which he may not."""
    team = of(body, "team")
    members = [
        one
        for one in told.team["log"][-1]["entry"]["members"]
        if one["accountId"] != told.scene.ada.account_id
    ]
    entry = told.entry(
        opened(told.scene.bob).identity, members=members, authorId=told.scene.bob.account_id
    )
    hidden(told, body)
    body["departed"] = [{"spaceId": team["spaceId"], "log": [*team["log"], entry]}]


def shorter(told: Told, body: Body) -> None:
    of(body, "team")["log"].pop()


def holed(told: Told, body: Body) -> None:
    del of(body, "team")["log"][1]


def reordered(told: Told, body: Body) -> None:
    of(body, "team")["log"][1:] = of(body, "team")["log"][:0:-1]


def by_the_hub(told: Told, body: Body) -> None:
    of(body, "team")["log"].append(told.entry(EVE, members=told.with_eve()))


def by_bob(told: Told, body: Body) -> None:
    bob = opened(told.scene.bob).identity
    of(body, "team")["log"].append(
        told.entry(bob, members=told.with_eve(), authorId=told.scene.bob.account_id)
    )


def bob_rises(told: Told, body: Body) -> None:
    bob = told.scene.bob
    members = told.with_role(bob.account_id, "owner")
    of(body, "team")["log"].append(
        told.entry(opened(bob).identity, members=members, authorId=bob.account_id)
    )


def raised(told: Told, body: Body) -> None:
    entry = of(body, "team")["log"][-1]["entry"]
    entry["members"] = told.with_role(told.scene.bob.account_id, "owner")


def swapped_member(told: Told, body: Body) -> None:
    """Bob's keys become the hub's, where Bob came in."""
    public = EVE.public()
    for one in of(body, "team")["log"][1]["entry"]["members"]:
        if one["accountId"] == told.scene.bob.account_id:
            one["signingKey"] = b64(public.signing_key.to_bytes())
            one["hpkeKey"] = b64(public.hpke_key.to_bytes())


def role(told: Told, body: Body) -> None:
    of(body, "team")["role"] = "viewer"


def kind(told: Told, body: Body) -> None:
    of(body, "team")["type"] = "family"


def another_log(told: Told, body: Body) -> None:
    info, _ = found_space(EVE, new_key(), "team", now_ms=1_795_000_000_000)
    of(body, "team")["log"] = msgspec.to_builtins(info)["log"]


def second_personal(told: Told, body: Body) -> None:
    body["spaces"].append(next(one for one in told.bobs["spaces"] if one["type"] == "personal"))


def no_keys(told: Told, body: Body) -> None:
    of(body, "team")["wraps"] = []


def no_newest_key(told: Told, body: Body) -> None:
    team = of(body, "team")
    team["wraps"] = [one for one in team["wraps"] if one["version"] == 1]


def no_private_key(told: Told, body: Body) -> None:
    first = of(body, "personal")
    first["wraps"] = [one for one in first["wraps"] if one["kind"] == "s"]


def hand_out(space: Body, wrap: Body) -> None:
    """Put a wrap in the place of the one of its kind and version."""
    rest = [
        one
        for one in space["wraps"]
        if (one["kind"], one["version"]) != (wrap["kind"], wrap["version"])
    ]
    space["wraps"] = [*rest, wrap]


def key(kind: str, version: int) -> Lie:
    """Hand out a space's key of the hub's own."""
    return lambda told, body: hand_out(of(body, kind), told.wrapped(kind, version, new_key()))


def private(kind: str, version: int) -> Lie:
    """Hand out a private key of the hub's own."""
    return lambda told, body: hand_out(
        of(body, kind), told.wrapped(kind, version, new_key(), wrap_kind="p")
    )


def old_key_as_new(told: Told, body: Body) -> None:
    old = opened(told.scene.ada).space(told.scene.team).space_keys[1]
    hand_out(of(body, "team"), told.wrapped("team", 2, old))


def wraps_of_two_versions(told: Told, body: Body) -> None:
    wraps = {(one["kind"], one["version"]): one for one in of(body, "team")["wraps"]}
    one, two = wraps["s", 1], wraps["s", 2]
    one["wrapped"], two["wrapped"] = two["wrapped"], one["wrapped"]


def wraps_of_two_spaces(told: Told, body: Body) -> None:
    one, two = of(body, "personal"), of(body, "user")
    one["wraps"], two["wraps"] = two["wraps"], one["wraps"]


def wraps_of_somebody_else(told: Told, body: Body) -> None:
    of(body, "team")["wraps"] = next(
        one["wraps"] for one in told.bobs["spaces"] if one["type"] == "team"
    )


def version_of_the_future(told: Told, body: Body) -> None:
    of(body, "team")["wraps"].append(told.wrapped("team", 9, new_key()))


@dataclass(frozen=True)
class Case:
    """A lie, and the code that refuses it: at a device that knows the spaces, and at a new one.

    Without a code what was said does not count: the log does, and what is known already.
    """

    lie: Lie
    known: str
    new: str


DISTRUSTED: Final = "HUB_DISTRUSTED"
SIGNATURE: Final = "SIGNATURE_REJECTED"
MEMBERSHIP: Final = "MEMBERSHIP_REFUSED"
SPOILED: Final = "SPACE_KEY_MISSING"
WRAP: Final = "WRAP_REJECTED"

CASES: dict[str, Case] = {
    "a log without its newest entry": Case(shorter, DISTRUSTED, DISTRUSTED),
    "a log with a hole": Case(holed, DISTRUSTED, SIGNATURE),
    "a log in another order": Case(reordered, DISTRUSTED, SIGNATURE),
    "a member of the hub's own": Case(by_the_hub, SIGNATURE, SIGNATURE),
    "a member let in by who may not": Case(by_bob, MEMBERSHIP, MEMBERSHIP),
    "a member who makes themselves owner": Case(bob_rises, MEMBERSHIP, MEMBERSHIP),
    "a role raised where it stands": Case(raised, DISTRUSTED, SIGNATURE),
    "the keys of a member swapped": Case(swapped_member, DISTRUSTED, SIGNATURE),
    "another role beside the log": Case(role, "", ""),
    "another type beside the log": Case(kind, DISTRUSTED, DISTRUSTED),
    "the log of another space": Case(another_log, DISTRUSTED, SIGNATURE),
    "a second personal space": Case(second_personal, DISTRUSTED, DISTRUSTED),
    "no key of the space": Case(no_keys, "", DISTRUSTED),
    "not the newest key of the space": Case(no_newest_key, "", DISTRUSTED),
    "no private key": Case(no_private_key, "", DISTRUSTED),
    "a personal space's key of the hub's own": Case(key("personal", 1), SIGNATURE, SIGNATURE),
    "a shared space's key of the hub's own": Case(key("team", 2), "", SPOILED),
    "a private key of the hub's own": Case(private("team", 1), DISTRUSTED, DISTRUSTED),
    "a newer private key of the hub's own": Case(private("team", 2), DISTRUSTED, DISTRUSTED),
    "the same for the personal space": Case(private("personal", 2), DISTRUSTED, DISTRUSTED),
    "the old key in the place of the new": Case(old_key_as_new, "", SPOILED),
    "the wraps of two versions swapped": Case(wraps_of_two_versions, "", SPOILED),
    "the wraps of two spaces swapped": Case(wraps_of_two_spaces, WRAP, WRAP),
    "the wraps of another member": Case(wraps_of_somebody_else, WRAP, WRAP),
    "a key that no log knows": Case(version_of_the_future, DISTRUSTED, DISTRUSTED),
}
WITHHELD: dict[str, Case] = {
    "a space is hidden": Case(hidden, DISTRUSTED, ""),
    "a departure that the log does not show": Case(left, DISTRUSTED, ""),
    "put out by who may not": Case(put_out, MEMBERSHIP, ""),
}


def telling(told: Told, mouth: Mouth, case: Case) -> None:
    def change(body: Body) -> Body:
        case.lie(told, body)
        return body

    mouth.lie(SPACES, change)


@pytest.mark.parametrize("name", [*CASES, *WITHHELD])
async def test_no_space_becomes_another(told: Told, name: str) -> None:
    """No member, role, key or log of a space becomes another by the hub's word."""
    case = {**CASES, **WITHHELD}[name]
    await is_refused(told.scene, lambda: telling(told, told.scene.mouth, case), case.known)


@pytest.mark.parametrize("name", CASES)
async def test_a_new_device_takes_no_other_space(told: Told, name: str) -> None:
    """A device that sees the spaces for the first time refuses what does not prove itself."""
    case = CASES[name]
    place, mouth = told.scene.newcomer()
    telling(told, mouth, case)
    code, device = await told.scene.signs_in(place)
    assert code == case.new
    assert mouth.told
    if device is None:
        return
    shown = (await device.status()).sync
    assert shown.troubles == ({told.scene.team: code} if code else {})
    if code == SPOILED:
        with pytest.raises(SpaceKeyMissing):
            await device.in_space(told.scene.team).create("notes", {"title": "under what key?"})
            await device.in_space(told.scene.team).sync_now()
    else:
        assert await picture(device) == await picture(told.scene.ada)


@pytest.mark.parametrize("name", WITHHELD)
async def test_what_is_hidden_from_a_new_device_comes_with_the_truth(told: Told, name: str) -> None:
    """A new device can be kept from a space, and has it whole as soon as it is shown."""
    place, mouth = told.scene.newcomer()
    telling(told, mouth, WITHHELD[name])
    code, device = await told.scene.signs_in(place)
    assert (code, bool(mouth.told)) == ("", True)
    assert device is not None
    with pytest.raises(NotFound):
        device.in_space(told.scene.team)
    mouth.honest()
    await device.sync_now()
    assert await picture(device) == await picture(told.scene.ada)
