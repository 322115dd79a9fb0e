"""Links: who asks learns nothing, and nothing is handed out but to whom the person allowed it."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import pytest

from mana.crypto.hpke import HpkePrivateKey
from mana.crypto.identity import PrivateIdentity, certify_device
from mana.crypto.linking import LinkKeys, commit, hand_over, link_digits, receive
from mana.crypto.primitives import b64, unb64
from mana.crypto.signatures import SigningKey
from mana.domain.clock import iso_ms
from mana.protocol.messages import ApproveLink, DeviceCertificate, LinkInfo, LinkState
from mana.testing.postgres import Database, connected, database_text
from tests.hub.client import Person, Served, served_hub
from tests.hub.proofs import proof
from tests.hub.vaulted import new_password, until_waiting, vaulted

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

NEW, OWN = "/api/v1/auth/links", "/api/v1/me/links"
MINUTE = 60_000


def code(answer: httpx.Response) -> str:
    if answer.status_code < 400:
        return str(answer.status_code)
    return f"{answer.status_code} {answer.json()['code']}"


@dataclass
class Newcomer:
    """A new device with keys of its own; it has no session."""

    served: Served
    login: str
    link_id: str = field(default_factory=lambda: os.urandom(16).hex())
    hpke_key: HpkePrivateKey = field(default_factory=HpkePrivateKey.generate)
    device_key: SigningKey = field(default_factory=SigningKey.generate)
    device_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    nonce: bytes = field(default_factory=lambda: os.urandom(32))
    ticket: str = ""

    @property
    def keys(self) -> LinkKeys:
        return LinkKeys(self.hpke_key.public(), self.device_key.public(), self.device_id)

    async def begin(self) -> httpx.Response:
        body = {
            "linkId": self.link_id,
            "login": self.login,
            "name": "Ada's telephone",
            "commitment": b64(commit(self.link_id, self.login, self.keys, self.nonce)),
        }
        answer = await self.served.call("POST", NEW, body)
        if answer.status_code == 201:
            self.ticket = answer.json()["ticket"]
        return answer

    async def poll(self, ticket: str | None = None) -> httpx.Response:
        body = {"ticket": ticket or self.ticket}
        return await self.served.call("POST", f"{NEW}/{self.link_id}/poll", body)

    async def state(self) -> LinkState:
        answer = await self.poll()
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=LinkState)

    async def reveal(self, ticket: str | None = None, **changed: Any) -> httpx.Response:
        body = {
            "ticket": ticket or self.ticket,
            "hpkeKey": b64(self.keys.hpke_key.to_bytes()),
            "deviceKey": b64(self.keys.device_key.to_bytes()),
            "deviceId": self.device_id,
            "nonce": b64(self.nonce),
            **changed,
        }
        return await self.served.call("POST", f"{NEW}/{self.link_id}/reveal", body)


async def waiting(person: Person) -> list[LinkInfo]:
    answer = await person.call("GET", OWN)
    assert answer.status_code == 200, answer.text
    return msgspec.convert(answer.json()["links"], list[LinkInfo])


async def answered(person: Person, link_id: str, nonce: bytes = bytes(32)) -> httpx.Response:
    return await person.call("POST", f"{OWN}/{link_id}/answer", {"nonce": b64(nonce)})


async def approval(
    person: Person,
    newcomer: Newcomer,
    *,
    identity: PrivateIdentity | None = None,
    proven: dict[str, Any] | None = None,
    keys: LinkKeys | None = None,
) -> ApproveLink:
    """Return what the person's device sends when the digits are the same; or something else."""
    account, served = person.account, person.served
    signer = (identity or account.identity).signing_key
    shown = keys or newcomer.keys
    made = certify_device(
        signer,
        account.account_id,
        shown.device_id,
        shown.device_key,
        iso_ms(served.clock.now_ms),
    )
    digits = link_digits(
        newcomer.link_id, newcomer.login, account.account_id, shown, newcomer.nonce, bytes(32)
    )
    wrapped = hand_over(account.master_key, newcomer.link_id, account.account_id, digits, shown)
    body = proven or {"linkId": newcomer.link_id, "deviceId": shown.device_id}
    return ApproveLink(
        wrapped=b64(wrapped),
        certificate=msgspec.convert(made.to_wire(), DeviceCertificate),
        proof=await proof(person, "link-approve", body, identity=identity),
    )


async def approved(person: Person, newcomer: Newcomer, **options: Any) -> httpx.Response:
    sent = await approval(person, newcomer, **options)
    return await person.call("POST", f"{OWN}/{newcomer.link_id}/approve", sent)


async def revealed(person: Person, newcomer: Newcomer) -> None:
    """Bring a link to where the person compares digits."""
    assert (await newcomer.begin()).status_code == 201
    assert code(await answered(person, newcomer.link_id)) == "204"
    assert code(await newcomer.reveal()) == "204"


async def standing(database: Database, link_id: str) -> str | None:
    async with connected(database.owner_url) as owner:
        found: str | None = await owner.fetchval(
            "select state from mana.links where link_id = $1", link_id
        )
        return found


async def test_a_new_device_is_unlocked(database: Database) -> None:
    """What the person allows reaches the new device: the master key, a certificate, a session."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        newcomer = Newcomer(served, "ada")
        assert (await newcomer.begin()).status_code == 201
        assert await newcomer.state() == LinkState(state="waiting")
        (link,) = await waiting(ada)
        assert (link.name, link.state, link.nonce) == ("Ada's telephone", "waiting", None)
        assert code(await answered(ada, link.link_id)) == "204"
        account = ada.account.account_id
        assert await newcomer.state() == LinkState("answered", account, b64(bytes(32)))
        assert code(await newcomer.reveal()) == "204"
        (link,) = await waiting(ada)
        assert (link.device_id, link.nonce) == (newcomer.device_id, b64(newcomer.nonce))
        assert link.own_nonce == b64(bytes(32))
        assert code(await approved(ada, newcomer)) == "204"
        assert await waiting(ada) == []
        given = await newcomer.state()
        assert given.wrapped is not None
        assert given.tokens is not None
        digits = link_digits(
            newcomer.link_id, "ada", account, newcomer.keys, newcomer.nonce, bytes(32)
        )
        opened = receive(unb64(given.wrapped), newcomer.link_id, account, digits, newcomer.hpke_key)
        assert opened == ada.account.master_key
        fresh = Person(served, ada.account, given.tokens)
        devices = (await fresh.call("GET", "/api/v1/me/devices")).json()["devices"]
        assert msgspec.to_builtins(given.certificate) in devices
        sessions = (await fresh.call("GET", "/api/v1/me/sessions")).json()["sessions"]
        current = next(one for one in sessions if one["current"])
        assert (current["name"], current["deviceId"]) == ("Ada's telephone", newcomer.device_id)
        events = (await ada.call("GET", "/api/v1/me/security")).json()["events"]
        said = [(one["action"], one.get("detail")) for one in events if one["ok"]]
        assert ("link", "approved") in said
        assert ("link", "taken") in said
        assert any(action == "device-added" for action, _ in said)


async def test_handed_out_once(database: Database) -> None:
    """What was approved is handed out once, however often it is asked for, and then it is gone."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        newcomer = Newcomer(served, "ada")
        await revealed(ada, newcomer)
        sent = await approval(ada, newcomer)
        path = f"{OWN}/{newcomer.link_id}/approve"
        assert code(await ada.call("POST", path, sent)) == "204"
        answers = await asyncio.gather(*(newcomer.poll() for _ in range(4)))
        assert sorted(code(one) for one in answers) == ["200", *["404 LINK_ENDED"] * 3]
        assert code(await newcomer.poll()) == "404 LINK_ENDED"
        assert sent.wrapped not in await database_text(database.owner_url)


async def test_asking_tells_nothing(database: Database) -> None:
    """Whether a login exists is seen in no answer of a link, and asking for one fills no table."""
    async with served_hub(database) as served:
        await served.sign_up("ada")
        told: list[list[Any]] = []
        for login in ("ada", "nobody"):
            newcomer = Newcomer(served, login)
            begun = await newcomer.begin()
            said: list[Any] = [code(begun), begun.json()["expiresAt"], len(newcomer.ticket)]
            again = await newcomer.begin()
            said += [code(again), (await newcomer.poll()).text, (await newcomer.reveal()).text]
            said += [(await newcomer.poll("sec:1:x.y")).text]
            others = await served.call("POST", f"{NEW}/{'0' * 32}/poll", {"ticket": again.text})
            said += [code(others)]
            said += [code(await Newcomer(served, login).begin()) for _ in range(4)]
            limited = await Newcomer(served, login).begin()
            said += [limited.json()["detail"], limited.headers["retry-after"]]
            served.clock.now_ms += 10 * MINUTE
            said += [code(await newcomer.poll()), code(await newcomer.reveal())]
            served.clock.now_ms -= 10 * MINUTE
            told.append(said)
        assert told[0] == told[1]
        assert told[0][:2] == ["201", iso_ms(served.clock.now_ms + 10 * MINUTE)]
        assert told[0][-4:] == [
            {"retryAfterS": 900, "retryAt": iso_ms(served.clock.now_ms + 15 * MINUTE)},
            "900",
            "404 LINK_ENDED",
            "404 LINK_ENDED",
        ]
        assert "429 RATE_LIMITED" in told[0]
        async with connected(database.owner_url) as owner:
            assert await owner.fetchval("select count(*) from mana.links where login <> 'ada'") == 0
            writes = await owner.fetch(
                "select count(*) from mana.login_attempts group by login_mac"
            )
            assert [row[0] for row in writes] == [5, 5]


async def test_links_lock_nobody_out(database: Database) -> None:
    """A stranger who asks for links until there are too many keeps nobody from logging in."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        for _ in range(6):
            await Newcomer(served, "ada").begin()
        assert (await ada.log_in()).status_code == 200


async def test_few_links_wait(database: Database) -> None:
    """Five links wait for an account at most; one more gets a ticket like any, and no answer."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        first = Newcomer(served, "ada")
        await revealed(ada, first)
        for _ in range(4):
            await Newcomer(served, "ada").begin()
        assert code(await approved(ada, first)) == "204"
        assert (await first.state()).wrapped is not None
        # Its taking let the attempts be forgotten: now the number that wait counts.
        sixth = [Newcomer(served, "ada") for _ in range(2)]
        assert [code(await one.begin()) for one in sixth] == ["201", "201"]
        assert len(await waiting(ada)) == 5
        assert await sixth[1].state() == LinkState(state="waiting")
        assert code(await answered(ada, sixth[1].link_id)) == "404 LINK_ENDED"


async def test_a_taken_link_id(database: Database) -> None:
    """Whoever begins a link by the id of another's gets nothing of it, and disturbs it in nothing."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        newcomer = Newcomer(served, "ada")
        await newcomer.begin()
        thieves = [Newcomer(served, login, newcomer.link_id) for login in ("ada", "eve", "nobody")]
        for thief in thieves:
            assert code(await thief.begin()) == "201"
        assert await waiting(eve) == []
        assert code(await answered(ada, newcomer.link_id)) == "204"
        for thief in thieves:
            assert await thief.state() == LinkState(state="waiting")
            assert code(await thief.reveal()) == "404 LINK_ENDED"
        assert code(await newcomer.reveal()) == "204"
        assert code(await approved(ada, newcomer)) == "204"
        for thief in thieves:
            assert await thief.state() == LinkState(state="waiting")
        assert (await newcomer.state()).wrapped is not None


async def test_a_session_alone_approves_nothing(database: Database) -> None:
    """A stolen token cannot hand anything over: that takes the identity, for this link and key."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        newcomer = Newcomer(served, "ada")
        assert (await newcomer.begin()).status_code == 201
        assert code(await approved(ada, newcomer)) == "404 LINK_ENDED"
        assert code(await newcomer.reveal()) == "404 LINK_ENDED"
        assert code(await answered(ada, newcomer.link_id)) == "204"
        assert code(await approved(ada, newcomer)) == "404 LINK_ENDED"
        assert code(await newcomer.reveal()) == "204"
        other = Newcomer(served, "ada", device_id=newcomer.device_id)
        spoilt: list[tuple[dict[str, Any], str]] = [
            ({"identity": eve.account.identity}, "403 PROOF_REFUSED"),
            ({"proven": {"linkId": "0" * 32, "deviceId": newcomer.device_id}}, "403 PROOF_REFUSED"),
            ({"proven": {"linkId": newcomer.link_id, "deviceId": "x"}}, "403 PROOF_REFUSED"),
            ({"keys": other.keys}, "400 BAD_REQUEST"),
            ({"keys": Newcomer(served, "ada").keys}, "400 BAD_REQUEST"),
        ]
        for options, wants in spoilt:
            assert code(await approved(ada, newcomer, **options)) == wants, options
        sent = await approval(ada, newcomer)
        for changed in (
            {"wrapped": b64(bytes(32))},
            {"certificate": msgspec.structs.replace(sent.certificate, signature=b64(bytes(64)))},
        ):
            path = f"{OWN}/{newcomer.link_id}/approve"
            answer = await ada.call("POST", path, msgspec.structs.replace(sent, **changed))
            assert answer.status_code == 400, changed
        assert (await newcomer.state()).state == "revealed"
        assert code(await approved(eve, newcomer)) == "404 LINK_ENDED"
        events = (await ada.call("GET", "/api/v1/me/security")).json()["events"]
        assert len([one for one in events if one["action"] == "link" and not one["ok"]]) >= 3
        assert code(await approved(ada, newcomer)) == "204"
        assert code(await approved(ada, newcomer)) == "404 LINK_ENDED"


async def test_a_link_ends(database: Database) -> None:
    """After ten minutes nothing of a link answers, and a hub that runs keeps nothing of it."""
    async with served_hub(database) as served:
        # Before the hub below starts.
        served.clock.now_ms -= 20 * MINUTE
        ada = await served.sign_up("ada")
        newcomer, other = Newcomer(served, "ada"), Newcomer(served, "ada")
        await revealed(ada, newcomer)
        await other.begin()
        sent = await approval(ada, newcomer)
        path = f"{OWN}/{newcomer.link_id}/approve"
        served.clock.now_ms += 10 * MINUTE
        assert code(await newcomer.poll()) == "404 LINK_ENDED"
        assert code(await newcomer.reveal()) == "404 LINK_ENDED"
        assert code(await answered(ada, other.link_id)) == "404 LINK_ENDED"
        assert code(await ada.call("POST", path, sent)) == "404 LINK_ENDED"
        assert code(await ada.call("POST", f"{OWN}/{other.link_id}/refuse")) == "404 LINK_ENDED"
        assert await waiting(ada) == []
        served.clock.now_ms -= 1
        assert code(await ada.call("POST", path, sent)) == "204"
        assert sent.wrapped in await database_text(database.owner_url)
        served.clock.now_ms += 1
        assert code(await newcomer.poll()) == "404 LINK_ENDED"
    async with served_hub(database):
        text = sent.wrapped
        while sent.wrapped in text:
            text = await database_text(database.owner_url)


async def test_refused(database: Database) -> None:
    """A link that the person refuses hands out nothing, not even when it was approved before."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        for is_approved in (False, True):
            newcomer = Newcomer(served, "ada")
            await revealed(ada, newcomer)
            if is_approved:
                assert code(await approved(ada, newcomer)) == "204"
            path = f"{OWN}/{newcomer.link_id}/refuse"
            assert code(await eve.call("POST", path)) == "404 LINK_ENDED"
            assert code(await ada.call("POST", path)) == "204"
            assert await newcomer.state() == LinkState(state="refused")
            assert code(await newcomer.reveal()) == "404 LINK_ENDED"
            assert code(await approved(ada, newcomer)) == "404 LINK_ENDED"
            assert code(await ada.call("POST", path)) == "404 LINK_ENDED"


async def test_refused_while_it_is_taken(database: Database) -> None:
    """A person who is told that a link was refused can rely on it: nothing was handed out."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        newcomer = Newcomer(served, "ada")
        await revealed(ada, newcomer)
        assert code(await approved(ada, newcomer)) == "204"
        async with connected(database.owner_url) as owner, owner.transaction():
            # The taking comes to a stop before its last step, and the refusal meets it there.
            await owner.execute("lock table mana.devices in share mode")
            polling = asyncio.create_task(newcomer.poll())
            await until_waiting(database)
            path = f"{OWN}/{newcomer.link_id}/refuse"
            refusing = asyncio.create_task(ada.call("POST", path))
            await until_waiting(database, 2, refusing)
        polled, refused = await asyncio.gather(polling, refusing)
        assert ("wrapped" in polled.json()) != (code(refused) == "204")
        assert code(refused) == "404 LINK_ENDED"


async def test_an_answer_that_was_lost(database: Database) -> None:
    """A step whose answer was lost can be taken again as it was, and never otherwise."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        newcomer = Newcomer(served, "ada")
        await revealed(ada, newcomer)
        assert code(await answered(ada, newcomer.link_id)) == "404 LINK_ENDED"
        assert code(await newcomer.reveal()) == "204"
        for changed in (
            {"nonce": b64(b"x" * 32)},
            {"deviceId": str(uuid.uuid4())},
            {"deviceKey": b64(SigningKey.generate().public().to_bytes())},
        ):
            assert code(await newcomer.reveal(**changed)) == "404 LINK_ENDED"
        other = Newcomer(served, "ada")
        await other.begin()
        assert code(await answered(ada, other.link_id)) == "204"
        assert code(await answered(ada, other.link_id)) == "204"
        assert code(await answered(ada, other.link_id, b"x" * 32)) == "404 LINK_ENDED"
        for odd in ({"nonce": "AAAA"}, {"hpkeKey": "AAAA"}, {"deviceKey": "?"}, {"deviceId": "x"}):
            assert (await other.reveal(**odd)).status_code == 400


async def end_the_session(ada: Person, other: Person) -> None:
    path = f"/api/v1/me/sessions/{ada.session_id}"
    assert (await other.call("DELETE", path)).status_code == 204


async def change_the_password(ada: Person, _other: Person) -> None:
    # By the session that approved, which goes on.
    await vaulted(ada).changed(password=new_password("ada", "another one"))


@pytest.mark.parametrize("change", [end_the_session, change_the_password])
async def test_second_thoughts(database: Database, change: Callable[..., Any]) -> None:
    """What was approved is worth nothing once its session has ended or the vault has changed."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        answer = await ada.log_in()
        other = Person(
            served, ada.account, msgspec.json.decode(answer.content, type=type(ada.tokens))
        )
        newcomer = Newcomer(served, "ada")
        await revealed(ada, newcomer)
        assert code(await approved(ada, newcomer)) == "204"
        await change(ada, other)
        assert await newcomer.state() == LinkState(state="refused")
        left = other if change is end_the_session else ada
        devices = (await left.call("GET", "/api/v1/me/devices")).json()["devices"]
        assert newcomer.device_id not in [one["deviceId"] for one in devices]


async def test_a_device_id_of_somebody_else(database: Database) -> None:
    """A new device that takes another's id is refused, and the hub does not fail over it."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        for taken in (eve.account.device_id, ada.account.device_id):
            newcomer = Newcomer(served, "ada", device_id=taken)
            await revealed(ada, newcomer)
            assert code(await approved(ada, newcomer)) == "204"
            assert await newcomer.state() == LinkState(state="refused")


@dataclass
class Attacker:
    """Somebody with a session of their own, tickets of their own, and all that is public."""

    eve: Person
    target: Newcomer
    victim: Person
    dice: random.Random
    own: Newcomer

    async def step(self) -> httpx.Response:
        """Make one call, of any kind, against the link of the target."""
        link_id = self.target.link_id
        thief = Newcomer(self.eve.served, self.dice.choice(["ada", "eve", "nobody"]), link_id)
        kind = self.dice.choice(
            ["begin", "poll", "reveal", "answer", "approve", "refuse", "list", "own", "bare"]
        )
        if kind == "begin":
            return await thief.begin()
        if kind == "own":
            return await self.own.begin()
        ticket = self.dice.choice([self.own.ticket, "x", "sec:1:AAAA.AAAA", link_id]) or "y"
        if kind == "poll":
            return await self.target.poll(ticket)
        if kind == "reveal":
            return await self.target.reveal(ticket)
        if kind == "answer":
            return await answered(self.eve, link_id)
        if kind == "approve":
            return await approved(self.eve, self.target)
        if kind == "list":
            return await self.eve.call("GET", OWN)
        if kind == "refuse":
            return await self.eve.call("POST", f"{OWN}/{link_id}/refuse")
        return await self.eve.served.call("POST", f"{OWN}/{link_id}/answer", {"nonce": "AAAA"})


@pytest.mark.parametrize("seed", range(3))
async def test_a_stranger_moves_nothing(database: Database, seed: int) -> None:
    """No order of calls by a stranger moves a link past waiting, or shows anything of it."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        target = Newcomer(served, "ada")
        await target.begin()
        attacker = Attacker(eve, target, ada, random.Random(seed), Newcomer(served, "eve"))
        for _ in range(60):
            answer = await attacker.step()
            assert answer.status_code < 500
            assert target.ticket not in answer.text
            assert ada.account.account_id not in answer.text
            assert await standing(database, target.link_id) == "waiting"
        assert (await target.state()).state == "waiting"


@pytest.mark.parametrize("seed", range(3))
async def test_the_new_device_alone(database: Database, seed: int) -> None:
    """By its own calls a new device comes no further than to show its key, and gets nothing."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        newcomer = Newcomer(served, "ada")
        await newcomer.begin()
        dice = random.Random(seed)
        moves: dict[str, Callable[[], Any]] = {
            "poll": newcomer.poll,
            "reveal": newcomer.reveal,
            "other": lambda: newcomer.reveal(nonce=b64(os.urandom(32))),
        }
        reached = "waiting"
        for turn in range(60):
            if turn == 20:
                assert code(await answered(ada, newcomer.link_id)) == "204"
                reached = "answered"
            name = dice.choice(list(moves))
            answer = await moves[name]()
            if name != "poll" and answer.status_code == 204:
                assert turn >= 20
                reached = "revealed"
            assert await standing(database, newcomer.link_id) == reached
            assert not {"wrapped", "tokens", "certificate"} & set(
                answer.json() if answer.text else ()
            )
        assert reached == "revealed"


@pytest.mark.parametrize("seed", range(2))
async def test_only_the_ticket_gets_it(database: Database, seed: int) -> None:
    """Once it is approved, nobody but the ticket's holder gets what is handed over."""
    async with served_hub(database) as served:
        ada, eve = await served.sign_up("ada"), await served.sign_up("eve")
        target = Newcomer(served, "ada")
        await revealed(ada, target)
        sent = await approval(ada, target)
        assert code(await ada.call("POST", f"{OWN}/{target.link_id}/approve", sent)) == "204"
        attacker = Attacker(eve, target, ada, random.Random(seed), Newcomer(served, "eve"))
        for _ in range(60):
            answer = await attacker.step()
            assert sent.wrapped not in answer.text
            assert await standing(database, target.link_id) == "approved"
        for ticket in (target.ticket[:-2], target.ticket + "A", target.ticket.upper()):
            assert code(await target.poll(ticket)) == "404 LINK_ENDED"
        assert (await target.state()).wrapped == sent.wrapped
