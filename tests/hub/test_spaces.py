"""Shared spaces: who may change what, what follows from it, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

import httpx
import msgspec
import pytest

from mana.crypto.authority import authority_of, verify_log
from mana.crypto.identity import PrivateIdentity, revoke_device
from mana.crypto.keys import SpaceKeyName, unwrap_space_key
from mana.crypto.primitives import b64
from mana.domain.clock import iso_ms
from mana.domain.errors import Invalid
from mana.domain.spaces import Role
from mana.hub.db import AccessRefused, CheckFailed, Tenancy, Tenant
from mana.hub.spaces.store import SpaceStore
from mana.modules.todo.manifest import MANIFEST as TODO
from mana.protocol.messages import (
    CloseSpace,
    DevicesAnswer,
    InvitationInfo,
    InvitationsAnswer,
    MembershipAppend,
    SpaceInfo,
    SpacesAnswer,
    Tokens,
)
from mana.testing.accounts import NewAccount, found_space, new_account, sealed_change
from mana.testing.postgres import Database, connected
from mana.testing.spaces import (
    DAY_MS,
    MadeInvitation,
    MadeSpace,
    Step,
    adding,
    changed,
    closing,
    hash_of,
    invitation,
    leaving,
    member_of,
    next_entry,
    private_keys,
    private_wrap,
    rekeying,
    removing,
    reroling,
    rotating,
    shared_space,
    signed_by,
    signed_keys,
    wrap_of,
)
from tests.hub.client import START_MS, Person, served_hub

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

STRANGER: Final = new_account("stranger", now_ms=START_MS)
TASKS: Final = next(table for table in TODO.tables if table.name == "tasks")


def code(answer: httpx.Response) -> str:
    """Return what a call came to: its status where it went well, else code and reason."""
    if answer.status_code < 400:
        return str(answer.status_code)
    problem = answer.json()
    reason = problem.get("detail", {}).get("reason")
    return problem["code"] if reason is None else f"{problem['code']}:{reason}"


async def create(owner: Person, space_type: Any = "team") -> MadeSpace:
    made = shared_space(owner.account, space_type, now_ms=START_MS)
    answer = await owner.call("POST", "/api/v1/spaces", made.founded.new)
    assert answer.status_code == 201, answer.text
    return made


async def append(person: Person, space: MadeSpace, what: MembershipAppend | Step) -> httpx.Response:
    body = what.append if isinstance(what, Step) else what
    return await person.call("POST", f"/api/v1/spaces/{space.space_id}/members", body)


async def take(person: Person, space: MadeSpace, step: Step) -> MadeSpace:
    answer = await append(person, space, step)
    assert answer.status_code == 200, answer.text
    return step.after


async def invite(
    person: Person, space: MadeSpace, role: Role = "member", **options: Any
) -> tuple[MadeInvitation, httpx.Response]:
    made = invitation(space, role, now_ms=person.served.clock.now_ms, **options)
    path = f"/api/v1/spaces/{space.space_id}/invitations"
    return made, await person.call("POST", path, made.new)


async def accept(person: Person, made: MadeInvitation) -> httpx.Response:
    return await person.call(
        "POST", f"/api/v1/invitations/{made.new.invitation_id}", made.accepted_by(person.account)
    )


async def join(owner: Person, space: MadeSpace, joiner: Person, role: Role = "member") -> MadeSpace:
    """Invite, accept and add."""
    made, answer = await invite(owner, space, role)
    assert answer.status_code == 201, answer.text
    answer = await accept(joiner, made)
    assert answer.status_code == 200, answer.text
    step = adding(space, owner.account, joiner.account, role, now_ms=START_MS)
    return await take(owner, space, step)


async def make_owner(owner: Person, space: MadeSpace, other: Person) -> MadeSpace:
    step = reroling(space, owner.account, other.account, "owner", now_ms=START_MS)
    return await take(owner, space, step)


async def spaces_of(person: Person) -> SpacesAnswer:
    answer = await person.call("GET", "/api/v1/spaces")
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=SpacesAnswer)


async def info_of(person: Person, space: MadeSpace) -> SpaceInfo | None:
    found = (await spaces_of(person)).spaces
    return next((one for one in found if one.space_id == space.space_id), None)


async def departed(person: Person) -> list[str]:
    return [one.space_id for one in (await spaces_of(person)).departed]


async def push_task(
    person: Person, space: MadeSpace, record: str = "t1", **options: Any
) -> httpx.Response:
    change = sealed_change(
        person.account,
        TASKS,
        record,
        {"title": "x"},
        now_ms=START_MS,
        space=space.founded,
        **options,
    )
    return await person.send([change], space=space.space_id)


# Founding ---------------------------------------------------------------------------------------


async def test_found(database: Database) -> None:
    """Who founds a shared space owns it alone, with its log and wraps; others see nothing of it."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        for space_type in ("brand", "club", "family", "team", "practice"):
            space = await create(ada, space_type)
            info = await info_of(ada, space)
            assert info is not None
            assert (info.type, info.role) == (space_type, "owner")
            assert verify_log(info.space_id, info.log).newest.members == (
                member_of(ada.account, "owner"),
            )
            assert [(wrap.kind, wrap.version) for wrap in info.wraps] == [("p", 1), ("s", 1)]
            assert await info_of(bob, space) is None
        answer = await ada.call("POST", "/api/v1/spaces", space.founded.new)
        assert answer.status_code == 201, "the same again is answered the same"
        assert code(await bob.call("POST", "/api/v1/spaces", space.founded.new)) == "BAD_REQUEST"


async def test_found_refused(database: Database) -> None:
    """A second personal space, another's founder, a wrong key or wrap, and a forged hand are not founded."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        good = shared_space(ada.account, now_ms=START_MS).founded.new
        another = shared_space(bob.account, now_ms=START_MS).founded.new
        entry = good.first.entry
        bad: list[tuple[str, object]] = [
            ("BAD_REQUEST", found_space(ada.account.identity, "personal", now_ms=START_MS).new),
            ("BAD_REQUEST", found_space(ada.account.identity, "user", now_ms=START_MS).new),
            ("BAD_REQUEST", another),
            (
                "SIGNATURE_REJECTED",
                replaced(good, first=replaced(good.first, signature=another.first.signature)),
            ),
            ("BAD_REQUEST", replaced(good, wraps=[])),
            (
                "BAD_REQUEST",
                replaced(good, wraps=[replaced(good.wraps[0], wrapped=b64(b"x" * 32))]),
            ),
            ("BAD_REQUEST", replaced(good, wraps=[replaced(good.wraps[0], version=2)])),
            ("BAD_REQUEST", replaced(good, first=replaced(good.first, entry={**entry, "x": 1}))),
            ("BAD_REQUEST", replaced(good, first=replaced(good.first, entry={}))),
            ("BAD_REQUEST", {"first": 3}),
        ]
        for expected, body in bad:
            assert code(await ada.call("POST", "/api/v1/spaces", body)) == expected
        assert len((await spaces_of(ada)).spaces) == 2


def replaced(message: Any, **members: Any) -> Any:
    return msgspec.structs.replace(message, **members)


# The membership log -----------------------------------------------------------------------------


async def test_join_and_work(database: Database) -> None:
    """Who joined reads what is there and writes with the others, under the key that was wrapped for them."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await create(ada)
        assert code(await push_task(ada, space, "t1")) == "200"
        assert code(await push_task(bob, space, "t2")) == "NOT_FOUND"
        space = await join(ada, space, bob)
        assert [r.id for r in (await bob.state(space=space.space_id)).records] == ["t1"]
        assert code(await push_task(bob, space, "t2")) == "200"
        info = await info_of(bob, space)
        assert info is not None
        assert info.role == "member"
        assert [(wrap.kind, wrap.version) for wrap in info.wraps] == [("s", 1)]
        assert [hash_of(one) for one in info.log] == [hash_of(one) for one in space.log]
        assert (await spaces_of(bob)).departed == []
        answer = await bob.call("GET", f"/api/v1/spaces/{space.space_id}/devices")
        assert {one["deviceId"] for one in answer.json()["devices"]} == {
            ada.account.device_id,
            bob.account.device_id,
        }


async def test_compare_and_set(database: Database) -> None:
    """Of two entries that follow the same one, the first counts; the other is told that the log moved."""
    async with served_hub(database) as served:
        ada, bob, cem = [await served.sign_up(name) for name in ("ada", "bob", "cem")]
        space = await create(ada)
        space = await join(ada, space, bob)
        space = await join(ada, space, cem)
        steps = [
            reroling(space, ada.account, who.account, "viewer", now_ms=START_MS)
            for who in (bob, cem)
        ]
        answers = await asyncio.gather(*(append(ada, space, step) for step in steps))
        assert sorted(map(code, answers)) == ["200", "MEMBERSHIP_MOVED"]
        winner = steps[[answer.status_code for answer in answers].index(200)]
        assert code(await append(ada, space, winner)) == "200", "a resend changes nothing"
        info = await info_of(ada, space)
        assert info is not None
        assert len(info.log) == 4


async def test_every_rule(database: Database) -> None:
    """Each rule of the log is kept by the hub, with its reason; nothing of a refused entry is stored."""
    async with served_hub(database) as served:
        ada, bob, cem = [await served.sign_up(name) for name in ("ada", "bob", "cem")]
        space = await create(ada)
        space = await join(ada, space, bob, "admin")
        space = await join(ada, space, cem)
        a, b, c = ada.account, bob.account, cem.account
        own, admin, member = (member_of(a, "owner"), member_of(b, "admin"), member_of(c, "member"))

        def entry(author: NewAccount, members: Sequence[Any], **other: Any) -> MembershipAppend:
            made = replace(next_entry(space, author, members, now_ms=START_MS), **other)
            return MembershipAppend(entry=signed_by(author, made))

        fresh = next_entry(space, a, space.newest.members, now_ms=START_MS, key=bytes(32))
        other_keys = replace(member, signing_key=admin.signing_key)
        many = [own, admin, member, *(stranger(number) for number in range(198))]
        cases: list[tuple[str, Person, MembershipAppend]] = [
            ("type-changed", ada, entry(a, [own, admin], space_type="club")),
            ("unchanged", ada, entry(a, [own, admin, member])),
            ("key-version", ada, entry(a, [own, admin, member], key_version=3)),
            ("key-version", ada, entry(a, [own, admin, member], key_version=2)),
            ("key-version", ada, entry(a, [own, admin, member], key_check=fresh.key_check)),
            ("keys-changed", ada, entry(a, [own, admin, other_keys])),
            ("no-owner", ada, entry(a, [admin, member])),
            ("role", bob, entry(b, [own, replace(admin, role="owner"), member])),
            ("role", bob, entry(b, [own, admin, replace(member, role="admin")])),
            ("role", cem, entry(c, [own, admin, replace(member, role="admin")])),
            ("role", cem, entry(c, [own, admin, member, stranger(1)])),
            ("leaving", cem, entry(c, [own])),
            ("rotation", ada, entry(a, [own, admin])),
            ("closing", bob, entry(b, [])),
            ("closing", ada, entry(a, [])),
            ("too-many", ada, entry(a, many)),
            ("not-invited", ada, entry(a, [own, admin, member, stranger(1)])),
        ]
        for reason, who, body in cases:
            assert code(await append(who, space, body)) == f"MEMBERSHIP_REFUSED:{reason}"
        assert [hash_of(one) for one in (await log_of(ada, space))] == list(map(hash_of, space.log))


def stranger(number: int) -> Any:
    """Return a member of whom no hub knows, with keys that are real."""
    return replace(
        member_of(STRANGER, "member"), account_id=f"00000000-0000-4000-8000-{number:012d}"
    )


async def log_of(person: Person, space: MadeSpace) -> Any:
    info = await info_of(person, space)
    assert info is not None
    return info.log


async def test_hostile_entries(database: Database) -> None:
    """An entry in another form, by another hand or sent by another account is refused, and stores nothing."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await create(ada)
        space = await join(ada, space, bob, "admin")
        good = reroling(space, ada.account, bob.account, "viewer", now_ms=START_MS).append
        entry, path = good.entry.entry, f"/api/v1/spaces/{space.space_id}/members"
        forged = replaced(good, entry=replaced(good.entry, signature=b64(bytes(64))))
        by_bob = replaced(
            good, entry=signed_by(bob.account, next_entry(space, ada.account, [], now_ms=START_MS))
        )
        members = list(entry["members"])
        both = [ada.account, bob.account]
        turned = rotating(space, ada.account, space.newest.members, both, now_ms=START_MS).append
        cases: list[tuple[str, Person, Any]] = [
            ("SIGNATURE_REJECTED", ada, forged),
            ("SIGNATURE_REJECTED", ada, changed(good, bob.account)),
            ("FORBIDDEN", bob, good),
            ("FORBIDDEN", bob, by_bob),
            ("CRYPTO_MALFORMED", ada, replaced(good, entry=replaced(good.entry, signature="x"))),
            ("BAD_REQUEST", ada, changed(good, ada.account, more=1)),
            ("BAD_REQUEST", ada, changed(good, ada.account, members={})),
            ("BAD_REQUEST", ada, changed(good, ada.account, members=[*members, members[0]])),
            ("BAD_REQUEST", ada, changed(good, ada.account, members=[{**members[0], "x": "y"}])),
            ("BAD_REQUEST", ada, changed(good, ada.account, keyVersion=True)),
            ("BAD_REQUEST", ada, changed(good, ada.account, keyVersion=1.5)),
            ("BAD_REQUEST", ada, changed(good, ada.account, nonce="n" * 129)),
            ("BAD_REQUEST", ada, changed(good, ada.account, createdAt="yesterday")),
            ("BAD_REQUEST", ada, changed(good, ada.account, authorId="ada")),
            ("BAD_REQUEST", ada, changed(good, ada.account, version="v2")),
            ("BAD_REQUEST", ada, changed(good, ada.account, nonce="\x00")),
            ("BAD_REQUEST", ada, changed(turned, ada.account, keyCheck=b64(b"short"))),
            ("MEMBERSHIP_MOVED", ada, changed(good, ada.account, previous="0" * 64)),
            ("MEMBERSHIP_MOVED", ada, changed(good, ada.account, previous="")),
            ("BAD_REQUEST", ada, {"entry": {"entry": [], "signature": ""}}),
            ("BAD_REQUEST", ada, {"entry": None}),
            ("BAD_REQUEST", ada, {}),
        ]
        for expected, who, body in cases:
            answer = await who.call("POST", path, body)
            assert code(answer) == expected, (expected, answer.text)
        deep: Any = 1
        for _ in range(100):
            deep = [deep]
        answer = await ada.call(
            "POST", path, {"entry": {"entry": {"x": deep}, "signature": "AA=="}}
        )
        assert answer.status_code == 400
        for odd in ("x", "0" * 64, space.space_id.upper()):
            answer = await ada.call("POST", f"/api/v1/spaces/{odd}/members", good)
            assert code(answer) == "NOT_FOUND"
        assert len(await log_of(ada, space)) == 2
        assert code(await ada.call("POST", path, good)) == "200"


async def test_wraps_are_complete(database: Database) -> None:
    """Nobody is left without the key: a new version needs a wrap for each, a new member the current one."""
    async with served_hub(database) as served:
        ada, bob, cem = [await served.sign_up(name) for name in ("ada", "bob", "cem")]
        space = await create(ada)
        space = await join(ada, space, bob)
        members = space.newest.members
        good = rotating(space, ada.account, members, [ada.account, bob.account], now_ms=START_MS)
        one, two = good.append.wraps
        outsider = wrap_of(space, cem.account, 2, bytes(32))
        for wraps in (
            [],
            [one],
            [one, one],
            [one, two, two],
            [one, two, outsider],
            [one, two, replaced(one, version=1)],
            [one, two, replaced(one, version=3)],
            [one, two, replaced(one, version=0)],
            [one, replaced(two, version=-1)],
            [one, replaced(two, wrapped=b64(b"x" * 1_167))],
            [one, replaced(two, wrapped="A" * 500_000)],
            [one, replaced(two, wrapped="not base64")],
        ):
            answer = await append(ada, space, replaced(good.append, wraps=wraps))
            assert answer.status_code == 400, wraps
        space = await take(ada, space, good)
        for person in (ada, bob):
            info = await info_of(person, space)
            assert info is not None
            assert [wrap.version for wrap in info.wraps if wrap.kind == "s"] == [1, 2]
        made, _ = await invite(ada, space)
        await accept(cem, made)
        step = adding(space, ada.account, cem.account, "member", now_ms=START_MS)
        old, new = step.append.wraps
        for wraps in (
            [],
            [old],
            [old, new, two],
            [new, replaced(new, account_id=stranger(1).account_id)],
        ):
            assert (
                code(await append(ada, space, replaced(step.append, wraps=wraps))) == "BAD_REQUEST"
            )
        assert code(await append(ada, space, replaced(step.append, wraps=[new]))) == "200"


async def test_who_is_added(database: Database) -> None:
    """Only who accepted an invitation of this space is added: with its role, and with their own keys."""
    async with served_hub(database) as served:
        ada, bob, cem = [await served.sign_up(name) for name in ("ada", "bob", "cem")]
        space, other = await create(ada), await create(ada)
        not_invited = "MEMBERSHIP_REFUSED:not-invited"

        def add(role: Role, person: Person = bob) -> MembershipAppend:
            return adding(space, ada.account, person.account, role, now_ms=START_MS).append

        assert code(await append(ada, space, add("member"))) == not_invited
        elsewhere, _ = await invite(ada, other)
        await accept(bob, elsewhere)
        assert code(await append(ada, space, add("member"))) == not_invited
        made, _ = await invite(ada, space, "viewer")
        assert code(await append(ada, space, add("viewer"))) == not_invited
        assert code(await accept(bob, made)) == "200"
        assert code(await append(ada, space, add("member"))) == not_invited
        assert code(await append(ada, space, add("viewer", cem))) == not_invited
        swapped = replace(member_of(cem.account, "viewer"), account_id=bob.account.account_id)
        entry = next_entry(space, ada.account, [*space.newest.members, swapped], now_ms=START_MS)
        body = MembershipAppend(entry=signed_by(ada.account, entry), wraps=add("viewer").wraps)
        assert code(await append(ada, space, body)) == not_invited
        assert code(await append(ada, space, add("viewer"))) == "200"
        listed = await listed_by(ada, space)
        assert [one.state for one in listed] == ["joined"]


async def test_removal(database: Database) -> None:
    """Who is removed is answered like a stranger at once, loses the space's key, and gets the log that says so."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await create(ada)
        space = await join(ada, space, bob)
        assert code(await push_task(bob, space, "t1")) == "200"
        assert code(await push_task(bob, space, "t2", visibility="private")) == "200"
        step = removing(space, ada.account, bob.account, [ada.account], now_ms=START_MS)
        space = await take(ada, space, step)
        root = f"/api/v1/spaces/{space.space_id}"
        again = adding(space, bob.account, bob.account, "owner", now_ms=START_MS).append
        for method, path, body in (
            ("GET", f"{root}/changes", None),
            ("GET", f"{root}/records", None),
            ("GET", f"{root}/devices", None),
            ("GET", f"{root}/invitations", None),
            ("POST", f"{root}/invitations", invitation(space, "viewer", now_ms=START_MS).new),
            ("POST", f"{root}/members", again),
            ("POST", f"{root}/keys", private_keys(space, bob.account, 1)),
            ("DELETE", root, CloseSpace(entry=closing(space, bob.account, now_ms=START_MS))),
        ):
            assert code(await bob.call(method, path, body)) == "NOT_FOUND", path
        assert code(await push_task(bob, space, "t3")) == "NOT_FOUND"
        answer = await spaces_of(bob)
        assert space.space_id not in [one.space_id for one in answer.spaces]
        (departure,) = answer.departed
        log = verify_log(departure.space_id, departure.log).newest
        assert (departure.space_id, log.member(bob.account.account_id)) == (space.space_id, None)
        assert [hash_of(one) for one in departure.log] == [hash_of(one) for one in space.log]
        async with connected(database.owner_url) as owner:
            keys = (
                "select distinct kind from mana.space_keys where space_id = $1 and account_id = $2"
            )
            found = await owner.fetch(keys, space.space_id, bob.account.account_id)
            assert [row[0] for row in found] in ([], ["p"])
        assert len((await ada.state(space=space.space_id)).records) == 1


async def test_leaving(database: Database) -> None:
    """A member leaves alone and at once; the others go on, and the departure is theirs to read."""
    async with served_hub(database) as served:
        ada, bob, cem = [await served.sign_up(name) for name in ("ada", "bob", "cem")]
        space = await create(ada)
        space = await join(ada, space, bob, "viewer")
        space = await join(ada, space, cem, "admin")
        for who in (bob, cem):
            step = leaving(space, who.account, now_ms=START_MS)
            answer = await append(who, space, step)
            info = msgspec.json.decode(answer.content, type=SpaceInfo)
            assert (answer.status_code, info.role, info.log, info.wraps) == (200, "", [], [])
            space = step.after
            assert await info_of(who, space) is None
            assert await departed(who) == [space.space_id]
            assert code(await append(who, space, step)) == "NOT_FOUND"
        assert code(await push_task(ada, space)) == "200"
        assert await departed(ada) == []
        step = leaving(space, ada.account, now_ms=START_MS)
        assert code(await append(ada, space, step)) == "MEMBERSHIP_REFUSED:closing"
        alone = replaced(step.append, entry=step.append.entry)
        assert code(await append(ada, space, alone)) == "MEMBERSHIP_REFUSED:closing"


async def test_certificates_of_who_has_left(database: Database) -> None:
    """Members read by which devices who has left signed what they decided, and no devices of later;
    who has left, or was never there, reads nothing."""
    async with served_hub(database) as served:
        ada, bob, cem, eve = [await served.sign_up(name) for name in ("ada", "bob", "cem", "eve")]
        space = await join(ada, await create(ada), bob)
        path = f"/api/v1/spaces/{space.space_id}/devices"
        step = leaving(space, bob.account, now_ms=START_MS)
        await append(bob, space, step)
        async with connected(database.owner_url) as owner:
            await owner.execute(
                "insert into mana.devices (device_id, account_id, public_key, created_at, signature,"
                " registered_at) select 'later', account_id, public_key, created_at, signature,"
                " registered_at + interval '1 day' from mana.devices where device_id = $1",
                bob.account.device_id,
            )
        space = await join(ada, step.after, cem)
        for who in (ada, cem):
            found = msgspec.json.decode((await who.call("GET", path)).content, type=DevicesAnswer)
            assert {one.device_id for one in found.devices} == {
                one.account.device_id for one in (ada, bob, cem)
            }
            authority = authority_of(space.space_id, list(space.log), found.devices)
            assert [*authority.former] == [bob.account.device_id]
        for who in (bob, eve):
            assert code(await who.call("GET", path)) == "NOT_FOUND"


async def test_last_owner_stays(database: Database) -> None:
    """The last owner can hand the space on and go, but not leave it without an owner."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await create(ada)
        space = await join(ada, space, bob)
        step = leaving(space, ada.account, now_ms=START_MS)
        assert code(await append(ada, space, step)) == "MEMBERSHIP_REFUSED:no-owner"
        space = await make_owner(ada, space, bob)
        space = await take(ada, space, leaving(space, ada.account, now_ms=START_MS))
        info = await info_of(bob, space)
        assert info is not None
        assert info.role == "owner"


async def test_join_again(database: Database) -> None:
    """Who joins again has a space and no departure, and reads their own private records with their old key."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await create(ada)
        for _ in range(2):
            space = await join(ada, space, bob)
            info = await info_of(bob, space)
            assert info is not None
            if all(wrap.kind == "s" for wrap in info.wraps):
                body = private_keys(space, bob.account, 1)
                path = f"/api/v1/spaces/{space.space_id}/keys"
                assert code(await bob.call("POST", path, body)) == "204"
                assert code(await push_task(bob, space, "mine", visibility="private")) == "200"
                kept = body.wraps
            assert await departed(bob) == []
            space = await take(bob, space, leaving(space, bob.account, now_ms=START_MS))
            assert await departed(bob) == [space.space_id]
        space = await join(ada, space, bob)
        info = await info_of(bob, space)
        assert info is not None
        assert [wrap for wrap in info.wraps if wrap.kind == "p"] == kept
        assert [one.id for one in (await bob.state(space=space.space_id)).records] == ["mine"]
        assert (await ada.state(space=space.space_id)).records == []


async def test_push_that_waits(database: Database, tenancy: Tenancy) -> None:
    """A push that waited while its sender was removed is refused: the membership of its turn counts."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await create(ada)
        space = await join(ada, space, bob)
        removal = removing(space, ada.account, bob.account, [ada.account], now_ms=START_MS)
        async with tenancy.transaction(Tenant(ada.account.account_id)) as tx:
            await tx.value(
                "select seq from mana.space_heads where space_id = $1 for update", space.space_id
            )
            removed = asyncio.create_task(append(ada, space, removal))
            await waiting(database, 1)
            pushed = asyncio.create_task(push_task(bob, space))
            await waiting(database, 2)
        assert code(await removed) == "200"
        assert code(await pushed) == "NOT_FOUND"


async def waiting(database: Database, number: int) -> None:
    """Wait until so many transactions wait for a lock."""
    query = (
        "select count(*) from pg_stat_activity"
        " where wait_event_type = 'Lock' and datname = current_database()"
    )
    async with connected(database.owner_url) as owner:
        while await owner.fetchval(query) < number:  # noqa: ASYNC110 - another process waits
            await asyncio.sleep(0.01)


async def listed_by(person: Person, space: MadeSpace) -> list[InvitationInfo]:
    answer = await person.call("GET", f"/api/v1/spaces/{space.space_id}/invitations")
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=InvitationsAnswer).invitations


# Invitations ------------------------------------------------------------------------------------


async def test_accepting(database: Database) -> None:
    """Who has the link accepts once, again without harm; the inviter sees who it was, with keys and MAC."""
    async with served_hub(database) as served:
        ada, bob, cem = [await served.sign_up(name) for name in ("ada", "bob", "cem")]
        space = await create(ada)
        made, answer = await invite(ada, space, "viewer")
        info = msgspec.json.decode(answer.content, type=InvitationInfo)
        assert (info.state, info.role, info.created_by) == (
            "open",
            "viewer",
            ada.account.account_id,
        )
        assert (info.account_id, info.mac, info.signing_key) == (None, None, None)
        path = f"/api/v1/spaces/{space.space_id}/invitations"
        assert code(await ada.call("POST", path, made.new)) == "201", "the same again"
        for _ in range(2):
            assert code(await accept(bob, made)) == "200"
        assert code(await accept(cem, made)) == "ALREADY_EXISTS"
        (seen,) = await listed_by(ada, space)
        joiner, proof = member_of(bob.account, "viewer"), made.accepted_by(bob.account)
        assert (seen.state, seen.account_id, seen.mac) == (
            "accepted",
            bob.account.account_id,
            proof.mac,
        )
        assert (seen.signing_key, seen.hpke_key) == (joiner.signing_key, joiner.hpke_key)
        mine = await bob.call("GET", "/api/v1/me/invitations")
        (own,) = msgspec.json.decode(mine.content, type=InvitationsAnswer).invitations
        assert own == seen
        assert (await cem.call("GET", "/api/v1/me/invitations")).json()["invitations"] == []
        served.clock.now_ms += 8 * DAY_MS
        bob = await again(bob)
        ada = await again(ada)
        assert code(await accept(bob, made)) == "200", "what was accepted in time stays so"
        space = await take(
            ada, space, adding(space, ada.account, bob.account, "viewer", now_ms=START_MS)
        )
        answer = await accept(bob, made)
        assert msgspec.json.decode(answer.content, type=InvitationInfo).state == "joined"
        other, _ = await invite(ada, space)
        assert code(await accept(bob, other)) == "ALREADY_MEMBER"
        assert code(await accept(ada, other)) == "ALREADY_MEMBER"
        withdrawal = await ada.call("DELETE", f"{path}/{made.new.invitation_id}")
        assert code(withdrawal) == "CONFLICT"


async def again(person: Person) -> Person:
    """Sign in anew, as a token is over."""
    answer = await person.log_in()
    assert answer.status_code == 200, answer.text
    return Person(person.served, person.account, msgspec.json.decode(answer.content, type=Tokens))


async def test_what_is_over_is_unknown(database: Database) -> None:
    """An unknown, ended or withdrawn invitation and a wrong token, space or id all answer alike."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space, other = await create(ada), await create(ada)
        made, _ = await invite(ada, space)
        path = f"/api/v1/invitations/{made.new.invitation_id}"
        good = made.accepted_by(bob.account)
        unknown = invitation(space, "member", now_ms=START_MS)
        for wrong in (
            replaced(good, token=b64(bytes(32))),
            replaced(good, space_id=other.space_id),
            replaced(good, space_id="0" * 64),
        ):
            assert code(await bob.call("POST", path, wrong)) == "NOT_FOUND"
        assert code(await accept(bob, unknown)) == "NOT_FOUND"
        elsewhere = f"/api/v1/invitations/{unknown.new.invitation_id}"
        assert code(await bob.call("POST", elsewhere, good)) == "NOT_FOUND"
        for malformed in (
            replaced(good, token="x"),
            replaced(good, token=b64(b"short")),
            replaced(good, mac=b64(b"short")),
            replaced(good, space_id="x"),
            {"token": good.token},
        ):
            assert (await bob.call("POST", path, malformed)).status_code == 400
        assert code(await bob.call("POST", "/api/v1/invitations/x", good)) == "BAD_REQUEST"
        for _ in range(2):
            root = f"/api/v1/spaces/{space.space_id}/invitations/{made.new.invitation_id}"
            assert code(await ada.call("DELETE", root)) == "204"
        assert code(await accept(bob, made)) == "NOT_FOUND"
        short, _ = await invite(ada, space, days=1)
        taken, _ = await invite(ada, space)
        await accept(bob, taken)
        served.clock.now_ms += DAY_MS
        ada, bob = await again(ada), await again(bob)
        assert code(await accept(bob, short)) == "NOT_FOUND"
        await ada.call("DELETE", f"{root.rpartition('/')[0]}/{taken.new.invitation_id}")
        assert code(await accept(bob, taken)) == "NOT_FOUND"
        states = {one.invitation_id: one.state for one in await listed_by(ada, space)}
        assert states == {
            made.new.invitation_id: "withdrawn",
            taken.new.invitation_id: "withdrawn",
            short.new.invitation_id: "expired",
        }
        step = adding(space, ada.account, bob.account, "member", now_ms=START_MS)
        assert code(await append(ada, space, step)) == "MEMBERSHIP_REFUSED:not-invited"


async def test_limits_of_invitations(database: Database) -> None:
    """A space has at most 100 open invitations, each for 30 days at most by the hub's clock."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        space = await create(ada)
        for days in (0, -1, 31, 36_500):
            assert code((await invite(ada, space, days=days))[1]) == "BAD_REQUEST"
        _, answer = await invite(ada, space, days=30)
        assert code(answer) == "201"
        path = f"/api/v1/spaces/{space.space_id}/invitations"
        new = invitation(space, "member", now_ms=START_MS).new
        ahead = replaced(new, expires_at=iso_ms(START_MS + 30 * DAY_MS + 60_000))
        answer = await ada.call("POST", path, ahead)
        assert answer.json()["expiresAt"] == iso_ms(START_MS + 30 * DAY_MS)
        for wrong in (
            replaced(new, invitation_id="x"),
            replaced(new, token_hash="X" * 64),
            replaced(new, expires_at="soon"),
            {**msgspec.to_builtins(new), "role": "owner"},
        ):
            assert code(await ada.call("POST", path, wrong)) == "BAD_REQUEST"
        held = replaced(ahead, token_hash="0" * 64)
        assert code(await ada.call("POST", path, held)) == "ALREADY_EXISTS"
        fresh = invitation(space, "member", now_ms=START_MS).new
        same_token = replaced(fresh, token_hash=ahead.token_hash)
        assert code(await ada.call("POST", path, same_token)) == "ALREADY_EXISTS"
        for _ in range(98):
            assert code((await invite(ada, space))[1]) == "201"
        full, answer = await invite(ada, space)
        assert code(answer) == "INVITATIONS_FULL"
        await ada.call("DELETE", f"{path}/{ahead.invitation_id}")
        assert code(await ada.call("POST", path, full.new)) == "201"
        for space_id in (ada.account.personal.space_id, ada.account.user.space_id):
            own = f"/api/v1/spaces/{space_id}/invitations"
            assert code(await ada.call("POST", own, fresh)) == "SPACE_PERSONAL_UNDELETABLE"


async def test_dead_with_the_inviter(database: Database) -> None:
    """An invitation ends when who made it may not invite to its role any more: demoted, removed or gone."""
    async with served_hub(database) as served:
        ada, bob, cem, eve = [await served.sign_up(name) for name in ("ada", "bob", "cem", "eve")]

        async def with_manager(role: Role) -> MadeSpace:
            space = await join(ada, await create(ada), bob, "admin")
            return space if role == "admin" else await make_owner(ada, space, bob)

        def demoted(space: MadeSpace) -> Step:
            return reroling(space, ada.account, bob.account, "member", now_ms=START_MS)

        def removed(space: MadeSpace) -> Step:
            return removing(space, ada.account, bob.account, [ada.account], now_ms=START_MS)

        def left(space: MadeSpace) -> Step:
            return leaving(space, bob.account, now_ms=START_MS)

        for happens, who in ((demoted, ada), (removed, ada), (left, bob)):
            space = await with_manager("admin")
            waiting_, _ = await invite(bob, space)
            open_, _ = await invite(bob, space)
            hers, _ = await invite(ada, space)
            await accept(cem, waiting_)
            space = await take(who, space, happens(space))
            assert code(await accept(eve, open_)) == "NOT_FOUND"
            assert code(await accept(cem, waiting_)) == "NOT_FOUND"
            step = adding(space, ada.account, cem.account, "member", now_ms=START_MS)
            assert code(await append(ada, space, step)) == "MEMBERSHIP_REFUSED:not-invited"
            assert code(await accept(eve, hers)) == "200"
        space = await with_manager("owner")
        for_admin, _ = await invite(bob, space, "admin")
        for_member, _ = await invite(bob, space)
        step = reroling(space, ada.account, bob.account, "admin", now_ms=START_MS)
        await take(ada, space, step)
        assert code(await accept(cem, for_admin)) == "NOT_FOUND"
        assert code(await accept(cem, for_member)) == "200"


async def test_one_link_one_account(database: Database) -> None:
    """Of accounts that accept one invitation at once, one wins; of acceptance and withdrawal, both agree."""
    async with served_hub(database) as served:
        ada, *others = [await served.sign_up(name) for name in ("ada", "bob", "cem", "eve")]
        space = await create(ada)
        made, _ = await invite(ada, space)
        answers = await asyncio.gather(*(accept(who, made) for who in others))
        assert sorted(map(code, answers)) == ["200", "ALREADY_EXISTS", "ALREADY_EXISTS"]
        winner = others[[answer.status_code for answer in answers].index(200)]
        (seen,) = await listed_by(ada, space)
        assert seen.account_id == winner.account.account_id


async def test_join_page(database: Database) -> None:
    """A link that is opened in a browser shows what to do, and runs and loads nothing."""
    async with served_hub(database) as served:
        answer = await served.call("GET", "/join")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        assert "script" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "no-referrer"


# Roles and calls --------------------------------------------------------------------------------

CALLS: Final = (
    # call: owner, admin, member, viewer, stranger
    ("list", "200 200 200 200 200"),
    ("pull", "200 200 200 200 NOT_FOUND"),
    ("state", "200 200 200 200 NOT_FOUND"),
    ("devices", "200 200 200 200 NOT_FOUND"),
    ("push", "accepted accepted accepted role NOT_FOUND"),
    ("private keys", "204 204 204 204 NOT_FOUND"),
    ("invite a member", "201 201 FORBIDDEN FORBIDDEN NOT_FOUND"),
    ("invite an admin", "201 FORBIDDEN FORBIDDEN FORBIDDEN NOT_FOUND"),
    ("see invitations", "200 200 FORBIDDEN FORBIDDEN NOT_FOUND"),
    ("withdraw", "204 204 FORBIDDEN FORBIDDEN NOT_FOUND"),
    ("add", "200 200 :role :role NOT_FOUND"),
    ("demote an admin", "200 :role :role :role NOT_FOUND"),
    ("demote a member", "200 200 :role :role NOT_FOUND"),
    ("remove a member", "200 200 :role :role NOT_FOUND"),
    ("remove an owner", "200 :role :role :role NOT_FOUND"),
    ("rotate", "200 200 :role :role NOT_FOUND"),
    ("leave", "200 200 200 200 NOT_FOUND"),
    ("close", "204 :closing :closing :closing NOT_FOUND"),
)
SECOND: Final[Mapping[str, Role]] = {
    "demote an admin": "admin",
    "demote a member": "member",
    "remove a member": "member",
    "remove an owner": "owner",
    "leave": "owner",
}
"""By call, as what the person stands in the space whom it is about, or who stays there."""
SPENT: Final = frozenset({"withdraw", "add", "rotate", "close", *SECOND})
"""Calls after which, if they were taken, the space is another."""


async def test_roles_and_calls(database: Database) -> None:
    """Every call of a space answers each role as the table says, and a stranger as if it were not there."""
    async with served_hub(database) as served:
        names = ("owner", "admin", "member", "viewer", "stranger", "second", "third")
        people = {name: await served.sign_up(name) for name in names}
        stages: dict[Role | None, Stage] = {}
        for call, expected in CALLS:
            second = SECOND.get(call)
            found = []
            for name in names[:5]:
                if second not in stages:
                    stages[second] = await staged(people, second)
                found.append(await called(call, people, people[name], *stages[second]))
                if call in SPENT and found[-1] in ("200", "204"):
                    del stages[second]
            assert found == [
                f"MEMBERSHIP_REFUSED{one}" if one.startswith(":") else one
                for one in expected.split()
            ], call


Stage: TypeAlias = tuple[MadeSpace, MadeInvitation]


async def staged(people: dict[str, Person], second: Role | None) -> Stage:
    """Return a space with somebody of each role, and an invitation that a third person accepted."""
    owner = people["owner"]
    space = await create(owner)
    for role in ("admin", "member", "viewer"):
        space = await join(owner, space, people[role], role)
    if second is not None:
        joining = "admin" if second == "owner" else second
        space = await join(owner, space, people["second"], joining)
    if second == "owner":
        space = await make_owner(owner, space, people["second"])
    made, _ = await invite(owner, space)
    await accept(people["third"], made)
    return space, made


async def called(
    call: str, people: dict[str, Person], who: Person, space: MadeSpace, made: MadeInvitation
) -> str:
    """Return what a call of somebody in a space comes to."""
    owner, second, third = (people[name] for name in ("owner", "second", "third"))
    me, now_ms, root = who.account, START_MS, f"/api/v1/spaces/{space.space_id}"
    staying = [
        one.account
        for one in people.values()
        if space.newest.member(one.account.account_id) is not None
    ]
    without = [one for one in staying if one is not second.account]
    match call:
        case "list":
            return code(await who.call("GET", "/api/v1/spaces"))
        case "pull":
            return code(await who.call("GET", f"{root}/changes"))
        case "state":
            return code(await who.call("GET", f"{root}/records"))
        case "devices":
            return code(await who.call("GET", f"{root}/devices"))
        case "push":
            answer = await push_task(who, space, me.account_id)
            if answer.status_code != 200:
                return code(answer)
            (result,) = answer.json()["results"]
            return str(result.get("code", result["status"]))
        case "private keys":
            version = 2 if who is owner else 1
            keys = private_keys(space, me, version)
            return code(await who.call("POST", f"{root}/keys", keys))
        case "invite a member":
            return code((await invite(who, space))[1])
        case "invite an admin":
            return code((await invite(who, space, "admin"))[1])
        case "see invitations":
            return code(await who.call("GET", f"{root}/invitations"))
        case "withdraw":
            return code(await who.call("DELETE", f"{root}/invitations/{made.new.invitation_id}"))
        case "close":
            body = CloseSpace(entry=closing(space, me, now_ms=now_ms))
            return code(await who.call("DELETE", root, body))
        case "add":
            step = adding(space, me, third.account, "member", now_ms=now_ms)
        case "demote an admin":
            step = reroling(space, me, second.account, "member", now_ms=now_ms)
        case "demote a member":
            step = reroling(space, me, second.account, "viewer", now_ms=now_ms)
        case "remove a member" | "remove an owner":
            step = removing(space, me, second.account, without, now_ms=now_ms)
        case "rotate":
            step = rotating(space, me, space.newest.members, staying, now_ms=now_ms)
        case "leave":
            step = leaving(space, me, now_ms=now_ms)
        case _:
            raise AssertionError(call)
    return code(await append(who, space, step))


# Closing, deletion, keys ------------------------------------------------------------------------


async def test_closing(database: Database) -> None:
    """Closing removes every row of the space in every table, and leaves each member the log that says so."""
    async with served_hub(database) as served:
        ada, bob, cem = [await served.sign_up(name) for name in ("ada", "bob", "cem")]
        space, kept = await create(ada), await create(ada)
        space = await join(ada, space, bob, "admin")
        made, _ = await invite(ada, space)
        await accept(cem, made)
        await push_task(ada, space, "t1")
        await push_task(bob, space, "t2", visibility="private")
        keys = private_keys(space, bob.account, 1)
        await bob.call("POST", f"/api/v1/spaces/{space.space_id}/keys", keys)
        path = f"/api/v1/spaces/{space.space_id}"
        staying = replaced(
            CloseSpace(entry=closing(space, ada.account, now_ms=START_MS)),
            entry=rotating(
                space, ada.account, space.newest.members, [], now_ms=START_MS
            ).append.entry,
        )
        assert code(await ada.call("DELETE", path, staying)) == "MEMBERSHIP_REFUSED:closing"
        body = CloseSpace(entry=closing(space, ada.account, now_ms=START_MS))
        await rows_of(database, space, at_least=8)
        assert code(await ada.call("DELETE", path, body)) == "204"
        assert code(await ada.call("DELETE", path, body)) == "NOT_FOUND"
        assert await rows_of(database, space) == {"mana.departures"}
        for person in (ada, bob):
            answer = await spaces_of(person)
            assert space.space_id not in [one.space_id for one in answer.spaces]
            (departure,) = answer.departed
            assert verify_log(departure.space_id, departure.log).newest.members == ()
        assert code(await accept(cem, made)) == "NOT_FOUND"
        assert await departed(cem) == []
        again_ = await ada.call("POST", "/api/v1/spaces", space.founded.new)
        assert code(again_) == "ALREADY_EXISTS", "a closed space is not founded again"
        assert code(await push_task(ada, kept)) == "200"
        for own in (ada.account.personal, ada.account.user):
            personal = replace(space, space_id=own.space_id, log=(own.new.first,))
            body = CloseSpace(entry=closing(personal, ada.account, now_ms=START_MS))
            answer = await ada.call("DELETE", f"/api/v1/spaces/{own.space_id}", body)
            assert code(answer) == "SPACE_PERSONAL_UNDELETABLE"


async def rows_of(database: Database, space: MadeSpace, *, at_least: int = 0) -> set[str]:
    """Return the tables that hold a row of a space, by a walk through the catalogue."""
    async with connected(database.owner_url) as owner:
        tables = await owner.fetch(
            "select attrelid::regclass::text as name from pg_attribute a"
            " join pg_class c on c.oid = a.attrelid"
            " where attname = 'space_id' and c.relkind in ('r', 'p')"
            " and c.relnamespace::regnamespace::text in ('mana', 'mana_ai')"
        )
        query = "select count(*) from {} t where strpos(t::text, $1) > 0"
        found = {
            row["name"]
            for row in tables
            if await owner.fetchval(query.format(row["name"]), space.space_id)
        }
    assert len(tables) >= 12
    assert len(found) >= at_least, found
    return found


async def test_personal_space_stays_personal(database: Database) -> None:
    """A personal space has its one member for ever; only its key may grow."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        mine = ada.account.personal
        space = replace(
            shared_space(ada.account, now_ms=START_MS),
            space_id=mine.space_id,
            type="personal",
            log=(mine.new.first,),
        )
        added = adding(space, ada.account, bob.account, "member", now_ms=START_MS)
        assert code(await append(ada, space, added)) == "MEMBERSHIP_REFUSED:one-person"
        gone = leaving(space, ada.account, now_ms=START_MS)
        assert code(await append(ada, space, gone)) in (
            "MEMBERSHIP_REFUSED:closing",
            "MEMBERSHIP_REFUSED:one-person",
        )
        step = rotating(space, ada.account, space.newest.members, [ada.account], now_ms=START_MS)
        await take(ada, space, step)


async def test_account_deletion(database: Database) -> None:
    """An account that shares a space is not deleted; one that left is, with all that named it as its own."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await join(ada, await create(ada), bob, "admin")
        made, _ = await invite(bob, space)
        waiting_, _ = await invite(ada, await create(ada))
        await accept(bob, waiting_)
        body = {"loginKey": b64(bob.account.login_key)}
        assert code(await bob.call("DELETE", "/api/v1/me", body)) == "ACCOUNT_SHARED"
        space = await take(bob, space, leaving(space, bob.account, now_ms=START_MS))
        await create(bob)
        assert code(await bob.call("DELETE", "/api/v1/me", body)) == "204"
        async with connected(database.owner_url) as owner:
            for table in ("invitations", "departures", "memberships", "space_keys", "devices"):
                query = f"select count(*) from mana.{table} t where strpos(t::text, $1) > 0"
                assert await owner.fetchval(query, bob.account.account_id) == 0, table
        assert [one.invitation_id for one in await listed_by(ada, space)] != [
            made.new.invitation_id
        ]
        assert await info_of(ada, space) is not None


async def test_deletion_waits_for_a_joining(database: Database, tenancy: Tenancy) -> None:
    """An account that somebody is adding to a space at this moment is shared, and not deleted."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space, his = await create(ada), bob.account.account_id
        async with tenancy.transaction(Tenant(ada.account.account_id)) as tx:
            grown = "update mana.spaces set members = members || $2::text where space_id = $1"
            await tx.execute(grown, space.space_id, his)
            joins = "insert into mana.memberships values ($1, $2, 'member')"
            await tx.execute(joins, space.space_id, his)
            body = {"loginKey": b64(bob.account.login_key)}
            deleted = asyncio.create_task(bob.call("DELETE", "/api/v1/me", body))
            await waiting(database, 1)
        assert code(await deleted) == "ACCOUNT_SHARED"
        assert code(await bob.call("GET", "/api/v1/me")) == "200"


async def test_private_keys(database: Database) -> None:
    """An account adds the next version of its own private keys, and no other, and never changes one."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await join(ada, await create(ada), bob, "viewer")
        path = f"/api/v1/spaces/{space.space_id}/keys"
        first, second, third = [private_wrap(space, bob.account, n) for n in (1, 2, 3)]
        good = signed_keys(space, bob.account, [first])
        for wraps in ([second], [replaced(first, kind="s")], [replaced(first, wrapped="AA==")]):
            body = signed_keys(space, bob.account, wraps)
            assert code(await bob.call("POST", path, body)) == "BAD_REQUEST"
        answers = await asyncio.gather(*(bob.call("POST", path, good) for _ in range(2)))
        assert sorted(map(code, answers)) == ["204", "ALREADY_EXISTS"]
        twice = signed_keys(space, bob.account, [second, second])
        assert code(await bob.call("POST", path, twice)) == "ALREADY_EXISTS"
        both = signed_keys(space, bob.account, [second, third])
        assert code(await bob.call("POST", path, both)) == "204"
        info = await info_of(bob, space)
        assert info is not None
        assert [wrap.version for wrap in info.wraps if wrap.kind == "p"] == [1, 2, 3]
        seen = await info_of(ada, space)
        assert seen is not None
        assert not {wrap.wrapped for wrap in seen.wraps} & {first.wrapped, second.wrapped}


async def test_a_session_alone_leaves_no_private_key(database: Database) -> None:
    """Whoever holds a token and not the vault leaves no private key, which nobody could remove
    and no device of the account would take: not one of their own, not another under a signature
    that was seen, and not that of another space or account."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space, other = await join(ada, await create(ada), bob), await create(bob)
        path = f"/api/v1/spaces/{space.space_id}/keys"
        good = private_keys(space, bob.account, 1)
        garbage = replaced(good, wraps=[private_wrap(space, bob.account, 1)])
        stranger = replace(bob.account, identity=PrivateIdentity.generate(bob.account.account_id))
        for wrong in (
            garbage,
            replaced(good, signature=b64(bytes(64))),
            private_keys(space, stranger, 1),
            replaced(good, signature=signed_keys(other, bob.account, good.wraps).signature),
            replaced(good, signature=signed_keys(space, ada.account, good.wraps).signature),
        ):
            assert code(await bob.call("POST", path, wrong)) == "PROOF_REFUSED"
        info = await info_of(bob, space)
        assert info is not None
        assert [wrap.kind for wrap in info.wraps] == ["s"]
        assert code(await bob.call("POST", path, good)) == "204"


async def test_log_has_an_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is added to a log that is too long to be read; who is in it can still go."""
    async with served_hub(database) as served:
        ada, bob, cem = [await served.sign_up(name) for name in ("ada", "bob", "cem")]
        space = await join(ada, await create(ada), bob)
        made, _ = await invite(ada, space)
        await accept(cem, made)
        monkeypatch.setattr("mana.hub.spaces.store.LOG_BYTES_MAX", 1_000)
        step = adding(space, ada.account, cem.account, "member", now_ms=START_MS)
        assert code(await append(ada, space, step)) == "MEMBERSHIP_REFUSED:too-many"
        await take(bob, space, leaving(space, bob.account, now_ms=START_MS))


class Interrupted:
    """A tenancy in which something happens after the first statement of a transaction."""

    def __init__(self, tenancy: Tenancy, happens: Callable[[], Awaitable[object]]) -> None:
        self.tenancy = tenancy
        self.happens: Callable[[], Awaitable[object]] | None = happens

    @contextlib.asynccontextmanager
    async def transaction(self, tenant: Tenant, **options: Any) -> AsyncIterator[Any]:
        async with self.tenancy.transaction(tenant, **options) as tx:
            yield Interruption(self, tx)


class Interruption:
    def __init__(self, owner: Interrupted, tx: Any) -> None:
        self.owner, self.tx = owner, tx

    async def all(self, *statement: Any) -> Any:
        rows = await self.tx.all(*statement)
        happens, self.owner.happens = self.owner.happens, None
        if happens is not None:
            await happens()
        return rows


async def test_spaces_of_one_moment(database: Database, tenancy: Tenancy) -> None:
    """A space that somebody leaves while they ask is among theirs, log and all, or among the departed."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await join(ada, await create(ada), bob)

        async def goes() -> None:
            await take(bob, space, leaving(space, bob.account, now_ms=START_MS))

        interrupted: Any = Interrupted(tenancy, goes)
        answer = await SpaceStore(interrupted).spaces(Tenant(bob.account.account_id))
        (info,) = [one for one in answer.spaces if one.space_id == space.space_id]
        assert verify_log(info.space_id, info.log).newest.member(bob.account.account_id) is not None
        assert [one.version for one in info.wraps] == [1]
        assert answer.departed == []
        assert await departed(bob) == [space.space_id]


# Other keys --------------------------------------------------------------------------------------


async def with_new_identity(tenancy: Tenancy, person: Person) -> Person:
    """Return the person after their account's row names another identity."""
    identity = PrivateIdentity.generate(person.account.account_id)
    public = identity.public()
    signing, hpke = b64(public.signing_key.to_bytes()), b64(public.hpke_key.to_bytes())
    async with tenancy.transaction(Tenant(person.account.account_id)) as tx:
        await tx.execute(
            "update mana.accounts set signing_key = $1, hpke_key = $2"
            " where account_id = mana.current_account()",
            signing,
            hpke,
        )
    return replace(person, account=replace(person.account, identity=identity))


async def signed_in(person: Person) -> Person:
    answer = await person.log_in()
    return replace(person, tokens=msgspec.json.decode(answer.content, type=Tokens))


async def wraps_of(person: Person, space: MadeSpace) -> dict[tuple[str, int], str]:
    info = await info_of(person, space)
    assert info is not None
    return {(wrap.kind, wrap.version): wrap.wrapped for wrap in info.wraps}


@pytest.mark.parametrize("role", ["admin", "viewer"])
async def test_a_member_replaces_their_keys(
    database: Database, tenancy: Tenancy, role: Role
) -> None:
    """Signed with the keys before, the log names the new ones; each own wrap is another, nobody
    else's is, and the next entry is theirs to sign with the new keys alone."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await join(ada, await create(ada), bob, role)
        path = f"/api/v1/spaces/{space.space_id}/keys"
        keys = private_keys(space, bob.account, 1, 2)
        assert code(await bob.call("POST", path, keys)) == "204"
        mine, theirs = await wraps_of(ada, space), await wraps_of(bob, space)
        new = await with_new_identity(tenancy, bob)
        step = rekeying(space, bob.account, new.account, now_ms=START_MS, private=(1, 2))
        space = await take(new, space, step)
        assert await wraps_of(ada, space) == mine
        again = await wraps_of(bob, space)
        assert again.keys() == theirs.keys() == {("p", 1), ("p", 2), ("s", 1)}
        assert not set(again.values()) & set(theirs.values())
        name = SpaceKeyName("s", space.space_id, 1, bob.account.account_id)
        opened = unwrap_space_key(again["s", 1], new.account.identity.hpke_key, name)
        assert opened == space.keys[1]
        assert code(await append(new, space, step)) == "200", "a resend changes nothing"
        old = leaving(space, bob.account, now_ms=START_MS)
        assert code(await append(new, space, old)) == "SIGNATURE_REJECTED"
        assert code(await append(new, space, leaving(space, new.account, now_ms=START_MS))) == "200"


async def test_new_keys_with_the_next_key_of_the_space(
    database: Database, tenancy: Tenancy
) -> None:
    """Who manages names their new keys and the space's next one in one entry, wrapped for all."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await join(ada, await create(ada), bob)
        new = await with_new_identity(tenancy, ada)
        both = [new.account, bob.account]
        step = rekeying(space, ada.account, new.account, both, now_ms=START_MS, rotate=True)
        lacking = replaced(
            step.append,
            wraps=[
                wrap
                for wrap in step.append.wraps
                if (wrap.account_id, wrap.version) != (bob.account.account_id, 2)
            ],
        )
        assert code(await append(new, space, lacking)) == "BAD_REQUEST"
        space = await take(new, space, step)
        for person in (new, bob):
            held = await wraps_of(person, space)
            assert {version for kind, version in held if kind == "s"} == {1, 2}


async def test_only_the_account_s_own_keys_are_named(database: Database, tenancy: Tenancy) -> None:
    """Keys that the account's row does not have, wraps for others, and a private key that is not
    brought along are refused, and nothing is replaced."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await join(ada, await create(ada), bob)
        path = f"/api/v1/spaces/{space.space_id}/keys"
        keys = private_keys(space, bob.account, 1, 2)
        assert code(await bob.call("POST", path, keys)) == "204"
        before = await wraps_of(bob, space), await wraps_of(ada, space)
        stolen = replace(bob.account, identity=PrivateIdentity.generate(bob.account.account_id))
        early = rekeying(space, bob.account, stolen, now_ms=START_MS, private=(1, 2))
        assert code(await append(bob, space, early)) == "MEMBERSHIP_REFUSED:keys-changed"
        new = await with_new_identity(tenancy, bob)
        late = rekeying(space, bob.account, stolen, now_ms=START_MS, private=(1, 2))
        assert code(await append(new, space, late)) == "MEMBERSHIP_REFUSED:keys-changed"
        good = rekeying(space, bob.account, new.account, now_ms=START_MS, private=(1, 2)).append
        first, second = good.private_wraps
        own = good.wraps[0]
        for expected, body in (
            ("MEMBERSHIP_MOVED", replaced(good, private_wraps=[first])),
            ("MEMBERSHIP_MOVED", replaced(good, private_wraps=[])),
            ("BAD_REQUEST", replaced(good, private_wraps=[first, second, second])),
            ("BAD_REQUEST", replaced(good, private_wraps=[first, replaced(second, version=3)])),
            ("BAD_REQUEST", replaced(good, private_wraps=[first, replaced(second, kind="s")])),
            ("BAD_REQUEST", replaced(good, private_wraps=[first, replaced(second, wrapped="")])),
            ("BAD_REQUEST", replaced(good, wraps=[own, own])),
            ("BAD_REQUEST", replaced(good, wraps=[replaced(own, version=2)])),
            ("BAD_REQUEST", replaced(good, wraps=[replaced(own, version=0)])),
            (
                "BAD_REQUEST",
                replaced(good, wraps=[own, wrap_of(space, ada.account, 1, bytes(32))]),
            ),
        ):
            assert code(await append(new, space, body)) == expected, body
        role = reroling(space, ada.account, bob.account, "viewer", now_ms=START_MS).append
        assert code(await append(ada, space, replaced(role, private_wraps=[first]))) == (
            "BAD_REQUEST"
        )
        assert (await wraps_of(bob, space), await wraps_of(ada, space)) == before
        assert code(await append(new, space, good)) == "200"


async def test_an_older_key_is_forgotten_once_nothing_counts_on_it(database: Database) -> None:
    """The newest key, one that a record bears, and one of less than a month ago are kept; what
    goes is the caller's own wrap alone."""
    async with served_hub(database) as served:
        ada, bob, cem = [await served.sign_up(name) for name in ("ada", "bob", "cem")]
        space = await join(ada, await create(ada), bob)
        assert code(await push_task(ada, space, "t1")) == "200"
        both = [ada.account, bob.account]
        space = await take(
            ada, space, rotating(space, ada.account, space.newest.members, both, now_ms=START_MS)
        )

        async def retire(person: Person, key: str = "s1") -> str:
            return code(await person.call("DELETE", f"/api/v1/spaces/{space.space_id}/keys/{key}"))

        early = ada
        served.clock.now_ms += 31 * DAY_MS
        ada, bob, cem = [await signed_in(one) for one in (ada, bob, cem)]
        assert await retire(ada) == "KEY_IN_USE", "a record bears it"
        assert await retire(ada, "s2") == "KEY_IN_USE", "it is the newest"
        fields = {"title": "x"}
        change = sealed_change(
            ada.account, TASKS, "t1", fields, now_ms=START_MS, space=space.founded, counter=1
        )
        title = change.fields["title"]
        newer = replaced(title, value=str(title.value).replace("enc:2:s1:", "enc:2:s2:"))
        await ada.push([replaced(change, fields={"title": newer})], space=space.space_id)
        served.clock.now_ms -= 31 * DAY_MS
        assert await retire(early) == "KEY_IN_USE", "a device that was away may need it"
        served.clock.now_ms += 31 * DAY_MS
        assert await retire(cem) == "NOT_FOUND"
        for odd in ("s0", "m1", "s", "s1x", "s-1"):
            assert await retire(ada, odd) == "NOT_FOUND"
        assert [await retire(ada), await retire(ada)] == ["204", "204"]
        assert set(await wraps_of(ada, space)) == {("p", 1), ("s", 2)}
        assert set(await wraps_of(bob, space)) == {("s", 1), ("s", 2)}
        assert await retire(ada, "p1") == "KEY_IN_USE", "it is the newest private one"


async def test_a_revoked_device_pushes_nothing(database: Database, tenancy: Tenancy) -> None:
    """From its revocation on, the hub takes no change of a device, and the members learn of it."""
    async with served_hub(database) as served:
        ada, bob = await served.sign_up("ada"), await served.sign_up("bob")
        space = await join(ada, await create(ada), bob)
        assert code(await push_task(ada, space, "t1")) == "200"
        at = iso_ms(START_MS)
        word = revoke_device(
            ada.account.identity.signing_key, ada.account.account_id, ada.account.device_id, at
        )
        async with tenancy.transaction(Tenant(ada.account.account_id)) as tx:
            await tx.execute(
                "update mana.devices set revoked_at = $1, revocation = $2 where device_id = $3",
                at,
                b64(word.signature),
                ada.account.device_id,
            )
        assert code(await push_task(ada, space, "t2")) == "DEVICE_UNKNOWN"
        answer = await bob.call("GET", f"/api/v1/spaces/{space.space_id}/devices")
        found = msgspec.json.decode(answer.content, type=DevicesAnswer)
        assert [one.device_id for one in found.revoked] == [ada.account.device_id]
        authority = authority_of(space.space_id, list(space.log), found.devices, found.revoked)
        assert authority.revoked == {ada.account.device_id: at}


async def test_while_an_identity_moves_both_certificates_are_shown(
    database: Database, tenancy: Tenancy
) -> None:
    """A device that two identities certified is listed with both words."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        space = await create(ada)
        async with tenancy.transaction(Tenant(ada.account.account_id)) as tx:
            await tx.execute(
                "update mana.devices set former_signature = signature, signature = 'other'"
                " where device_id = $1",
                ada.account.device_id,
            )
        answer = await ada.call("GET", f"/api/v1/spaces/{space.space_id}/devices")
        found = msgspec.json.decode(answer.content, type=DevicesAnswer).devices
        assert [one.signature for one in found] == ["other", ada.account.certificate.signature]


# The walls of the database ----------------------------------------------------------------------


async def test_rows_are_walled(database: Database, tenancy: Tenancy) -> None:
    """Even a query that names no account shows an invitation to its managers, to who accepted it, and
    to a transaction that carries its token; a departure to its account alone."""
    async with served_hub(database) as served:
        ada, bob, cem = [await served.sign_up(name) for name in ("ada", "bob", "cem")]
        space = await join(ada, await create(ada), bob)
        made, _ = await invite(ada, space)
        counts = "select count(*) from mana.invitations where not joined"

        async def seen(person: Person, query: str = counts, **options: Any) -> int:
            tenant = Tenant(person.account.account_id)
            async with tenancy.transaction(tenant, **options) as tx:
                return int(await tx.value(query))

        token = made.new.token_hash
        assert [await seen(who) for who in (ada, bob, cem)] == [1, 0, 0]
        assert await seen(cem, invitation=token) == 1
        assert await seen(cem, invitation="0" * 64) == 0
        with pytest.raises(Invalid):
            await seen(cem, invitation="x' or true --")
        await accept(cem, made)
        assert [await seen(who) for who in (ada, bob, cem)] == [1, 0, 1]
        space = await take(bob, space, leaving(space, bob.account, now_ms=START_MS))
        gone = "select count(*) from mana.departures"
        assert [await seen(who, gone) for who in (ada, bob, cem)] == [0, 1, 0]
        for table in ("spaces", "memberships", "membership_entries", "space_heads"):
            query = f"select count(*) from mana.{table} where space_id = '{space.space_id}'"
            assert await seen(bob, query) == 0, table
            moving = f"with m as (select set_config('app.moving_space', '{space.space_id}', true))"
            assert await seen(cem, f"{moving} {query}") == 0, table


@pytest.mark.parametrize(
    "statement",
    [
        "update mana.invitations set account_id = '{ada}', mac = '', signing_key = '', hpke_key = ''",
        "update mana.invitations set joined = true",
        "insert into mana.departures values ('{ada}', '{space}', '[]', now())",
        "insert into mana.departures values ('{cem}', '{space}', '[]', now())",
        "insert into mana.memberships values ('{space}', '{cem}', 'owner')",
        "insert into mana.space_keys values ('{space}', '{cem}', 's', 9, '')",
        "insert into mana.space_keys values ('{space}', '{ada}', 'p', 9, '')",
        "update mana.spaces set members = members || '{cem}'::text",
        "insert into mana.invitations values ('x', '{space}', 'admin', 'x', '{ada}', now(), now())",
        "delete from mana.memberships where account_id = '{ada}'",
    ],
)
async def test_strangers_write_nothing(
    database: Database, tenancy: Tenancy, statement: str
) -> None:
    """Row-level security keeps a stranger, even one with a token, from writing into a space."""
    async with served_hub(database) as served:
        ada, cem = await served.sign_up("ada"), await served.sign_up("cem")
        space = await create(ada)
        made, _ = await invite(ada, space)
        names = {"ada": ada.account.account_id, "cem": cem.account.account_id}
        sql = statement.format(space=space.space_id, **names)
        tenant = Tenant(cem.account.account_id)
        touched = 0
        with contextlib.suppress(AccessRefused, CheckFailed):
            async with tenancy.transaction(tenant, invitation=made.new.token_hash) as tx:
                await tx.value("select set_config('app.moving_space', $1, true)", space.space_id)
                if "spaces set" in sql:
                    sql += f" where space_id = '{space.space_id}'"
                touched = await tx.execute(sql)
        assert touched == 0
