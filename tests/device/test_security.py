"""What a person changes about their keys: it stands everywhere or nowhere, and nothing is lost."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from mana.crypto.keys import open_secret
from mana.device.errors import Offline, WrongPassword
from mana.device.keeper import BEGUN_MS_MAX
from mana.device.kept import HEAD, NEXT
from mana.device.proofs import proved
from mana.device.records import RecordBook
from mana.domain.errors import CryptoFailed, Invalid, NotFound
from mana.hub.app import operator
from mana.protocol.errors import (
    IdentityMoving,
    InvalidCredentials,
    RecoveryWrapMissing,
    VaultMoved,
    ZeroKnowledgeActive,
)
from mana.protocol.messages import Formers, MasterProof, NewFactor, VaultChange
from mana.testing.accounts import PASSWORD
from mana.testing.postgres import Database
from tests.device import shared
from tests.device.rig import Machine, Rig, note, rig_on, titles
from tests.device.vaulting import private_note, security, standing

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]
NEW = "another password of hers"
ABSENT = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


def changes(machine: Machine) -> list[VaultChange]:
    """Return what a machine sent to change the vault."""
    return [
        msgspec.json.decode(body, type=VaultChange)
        for method, path, body in machine.wire.seen
        if (method, path) == ("PUT", "/api/v1/me/vault")
    ]


def attempts(machine: Machine) -> list[str]:
    """Return the log-ins of a machine."""
    return [path for _, path, _ in machine.wire.seen if path == "/api/v1/auth/login"]


async def sealed(book: RecordBook) -> dict[str, str]:
    """Return what a replica keeps sealed beside its records."""
    found = await book.inner().replica.read(lambda tx: tx.metas())
    return {name: value for name, value in found.items() if value.startswith("sec:1:")}


async def test_another_password_opens_here_and_elsewhere(rig: Rig) -> None:
    """After a change the new password opens the account, offline too, and the old one nothing."""
    machine, other = rig.machine(), rig.machine()
    book = await machine.sign_up()
    await note(book, "n1", title="before")
    await security(book, machine).change_password(PASSWORD, NEW)
    await note(book, "n2", title="after")
    await book.sync_now()
    assert changes(machine)[0].master_key is None
    await book.lock()
    machine.wire.is_cut = True
    again = await machine.sign_in(password=NEW)
    assert await titles(again) == {"n1": "before", "n2": "after"}
    await again.lock()
    with pytest.raises(WrongPassword):
        await machine.sign_in()
    with pytest.raises(InvalidCredentials):
        await other.sign_in()
    there = await other.sign_in(password=NEW)
    await there.sync_now()
    assert await titles(there) == {"n1": "before", "n2": "after"}


async def test_the_old_password_is_asked_for(rig: Rig) -> None:
    """A wrong or short password changes nothing, and the hub hears of no change."""
    machine = rig.machine()
    book = await machine.sign_up()
    guard = security(book, machine)
    with pytest.raises(WrongPassword):
        await guard.change_password("not the password", NEW)
    with pytest.raises(WrongPassword):
        await guard.rotate_master("not the password")
    with pytest.raises(WrongPassword):
        await guard.set_mode("zero-knowledge", "not the password")
    with pytest.raises(Invalid):
        await guard.change_password(PASSWORD, "short")
    with pytest.raises(Invalid):
        await guard.set_mode("open", PASSWORD)
    assert changes(machine) == []
    assert standing(book).revision == 0


async def test_an_overtaken_device_stops_and_keeps_what_waits(rig: Rig) -> None:
    """Once the password is another, a device says VAULT_MOVED and sends nothing; with the new one
    it sends what had waited."""
    machine, other = rig.machine(), rig.machine()
    book, there = await machine.sign_up(), await other.sign_in()
    await there.sync_now()
    await security(book, machine).change_password(PASSWORD, NEW)
    await note(there, "n1", title="waited")
    tried = len(attempts(other))
    for _ in range(12):
        with pytest.raises(VaultMoved):
            await there.sync_now()
    # The hub counts attempts by login: more of them would keep the person out.
    assert len(attempts(other)) == tried + 1
    status = await there.status()
    assert (status.trouble, status.waiting) == ("VAULT_MOVED", 1)
    guard = security(there, other)
    with pytest.raises(WrongPassword):
        await guard.refresh(PASSWORD)
    await guard.refresh(NEW)
    assert (await there.sync_now()).waiting == 0
    await book.sync_now()
    assert await titles(book) == {"n1": "waited"}
    await there.lock()
    other.wire.is_cut = True
    assert await titles(await other.sign_in(password=NEW)) == {"n1": "waited"}


async def test_a_locked_device_opens_with_the_password_that_was_set_elsewhere(rig: Rig) -> None:
    """Whoever changed the password on one device signs in with it on another, which was locked;
    without the hub the password of that time opens it."""
    machine, other = rig.machine(), rig.machine()
    book, there = await machine.sign_up(), await other.sign_in()
    await note(there, "n1", title="waited")
    await there.lock()
    guard = security(book, machine)
    await guard.change_password(PASSWORD, NEW)
    await guard.rotate_master(NEW)
    other.wire.is_cut = True
    with pytest.raises(WrongPassword):
        await other.sign_in(password=NEW)
    await (await other.sign_in()).lock()
    other.wire.is_cut = False
    again = await other.sign_in(password=NEW)
    assert (await again.sync_now()).waiting == 0
    assert standing(again).revision == 2
    await again.lock()
    with pytest.raises(WrongPassword):
        await other.sign_in()
    await book.sync_now()
    assert await titles(book) == {"n1": "waited"}


async def test_another_master_key_leaves_everything_readable(rig: Rig) -> None:
    """Private and shared records stay readable under a new master key, on a device that was
    offline meanwhile too; new private records stand under a key that the old one does not give."""
    machine, other, guest = rig.machine(), rig.machine(), rig.machine()
    book, bo = await machine.sign_up(), await guest.sign_up("bo")
    team = await shared.found(book, now_ms=machine.clock.now_ms)
    guard = security(book, machine)
    bos = await shared.join(team, bo)
    await private_note(team, "p1", "mine alone")
    await note(team, "s1", title="for all")
    await book.sync_now()
    there = await other.sign_in()
    security(there, other)
    await there.sync_now()
    other.wire.is_cut = True
    await private_note(there.in_space(team.space), "p2", "written offline")
    before = book.inner().vault.master_key
    await guard.rotate_master(PASSWORD)
    await book.sync_now()
    keys = book.inner().vault.space(team.space)
    assert not keys.owes_private_key
    assert (keys.outdated_private, keys.private_version) == ({1}, 2)
    await private_note(team, "p3", "under the new key")
    await book.sync_now()
    other.wire.is_cut = False
    with pytest.raises(VaultMoved):
        await there.sync_now()
    assert (await there.status()).waiting == 1
    with pytest.raises(VaultMoved):
        await there.hub.withdraw_invitation(team.space, ABSENT)
    await security(there, other).refresh(PASSWORD)
    with pytest.raises(NotFound):
        await there.hub.withdraw_invitation(team.space, ABSENT)
    assert (await there.sync_now()).waiting == 0
    await book.sync_now()
    wanted = {"p1": "mine alone", "p2": "written offline", "p3": "under the new key"}
    for one in (team, there.in_space(team.space)):
        assert await titles(one) == {**wanted, "s1": "for all"}
        record = await one.record("notes", "p2")
        assert record is not None
        assert str(record.entries["title"].value).startswith("enc:2:p2:")
    await bos.sync_now()
    assert await titles(bos) == {"s1": "for all"}
    assert before not in (book.inner().vault.master_key, there.inner().vault.master_key)


async def test_every_seal_of_the_replica_is_made_anew(rig: Rig) -> None:
    """After a change of the master key nothing that a replica keeps opens under the old one, and
    all of it under the new one: spaces, device key, session, what was kept and what was begun."""
    machine = rig.machine()
    book = await machine.sign_up()
    guard = security(book, machine)
    await book.keep("x", {"a": 1})
    await guard.new_recovery_code()
    spaces = book.inner().syncer.after_spaces
    assert spaces is not None
    before = book.inner().vault.master_key
    names = set(await sealed(book))
    await guard.rotate_master(PASSWORD)
    assert set(await sealed(book)) == names
    assert {HEAD, "spaces", "deviceKey", "refreshToken", "kept:x"} <= names
    for value in (await sealed(book)).values():
        with pytest.raises(CryptoFailed):
            open_secret(before, value, "kept", book.account_id, "x")
    assert await book.kept("x") == {"a": 1}
    await book.lock()
    again = await machine.sign_in()
    assert await again.kept("x") == {"a": 1}
    assert again.device_id == book.device_id
    await again.sync_now()


async def test_zero_knowledge_hands_out_no_key(rig: Rig) -> None:
    """The switch draws new keys, sends none of them, erases the hub's copy, and keeps all that is
    there; the code that is shown opens the account on a new device."""
    machine, other, third = rig.machine(), rig.machine(), rig.machine()
    book = await machine.sign_up()
    guard = security(book, machine)
    team = await shared.found(book, now_ms=machine.clock.now_ms)
    await book.sync_now()
    await private_note(team, "p1", "private")
    await note(team, "s1", title="shared")
    await note(book, "n1", title="personal")
    await book.sync_now()
    there = await other.sign_in()
    await there.sync_now()
    other.wire.is_cut = True
    await note(there, "n2", title="offline")
    before = book.inner().vault.keys
    kit = await guard.set_mode("zero-knowledge", PASSWORD)
    assert kit is not None
    assert re.fullmatch(r"([0-9A-F]{4}-){15}[0-9A-F]{4}", kit.code)
    after = book.inner().vault.keys
    assert [change.master_key for change in changes(machine)] == [None]
    assert after.master_key != before.master_key
    assert after.identity.public() != before.identity.public()
    assert (book.mode, standing(book).grants) == ("zero-knowledge", False)
    assert (kit.fingerprint, kit.login) == (after.identity.public().fingerprint(), "ada")
    assert kit.qr_svg().startswith("<svg")
    assert kit.code not in repr(kit)
    await book.sync_now()
    other.wire.is_cut = False
    await security(there, other).refresh(PASSWORD)
    await there.sync_now()
    await book.sync_now()
    personal = {"n1": "personal", "n2": "offline"}
    for one in (book, there):
        assert await titles(one) == personal
        assert await titles(one.in_space(team.space)) == {"p1": "private", "s1": "shared"}
    found = await third.accounts.recover("ada", kit.code.lower(), NEW)
    third.books.append(found)
    await found.sync_now()
    assert await titles(found) == personal
    assert await titles(found.in_space(team.space)) == {"p1": "private", "s1": "shared"}


async def test_back_to_standard_mode_the_hub_is_given_the_key_again(rig: Rig) -> None:
    """Only the way back to standard mode sends the master key; the recovery code stays."""
    machine = rig.machine()
    book = await machine.sign_up()
    guard = security(book, machine)
    kit = await guard.set_mode("zero-knowledge", PASSWORD)
    assert await guard.set_mode("zero-knowledge", PASSWORD) is None
    assert await guard.set_mode("standard", PASSWORD) is None
    assert [change.master_key is None for change in changes(machine)] == [True, False]
    assert (book.mode, standing(book).grants) == ("standard", True)
    assert kit is not None
    other = rig.machine()
    other.books.append(await other.accounts.recover("ada", kit.code, NEW))


async def test_a_recovery_code_is_replaced_and_removed(rig: Rig) -> None:
    """A new code ends the one before; in zero-knowledge mode there always is one."""
    machine, other = rig.machine(), rig.machine()
    book = await machine.sign_up()
    guard = security(book, machine)
    first, second = await guard.new_recovery_code(), await guard.new_recovery_code()
    with pytest.raises(InvalidCredentials):
        await other.accounts.recover("ada", first.code, NEW)
    status = await guard.status()
    assert (status.recovery_set_at, status.recovery_waiting) == (second.made_at, True)
    shown = await guard.waiting_kit()
    assert shown == second
    await guard.kit_seen()
    assert await guard.waiting_kit() is None
    await guard.remove_recovery_code()
    assert (await guard.status()).recovery_set_at is None
    with pytest.raises(InvalidCredentials):
        await other.accounts.recover("ada", second.code, NEW)
    await guard.set_mode("zero-knowledge", PASSWORD)
    with pytest.raises(RecoveryWrapMissing):
        await guard.remove_recovery_code()


async def test_another_identity_is_followed_without_the_password(rig: Rig) -> None:
    """Devices of the account go on after a change of the identity, and their spaces stay open;
    a second change waits until the spaces have followed the first."""
    machine, other = rig.machine(), rig.machine()
    book, there = await machine.sign_up(), await other.sign_in()
    guard = security(book, machine)
    team = await shared.found(book, now_ms=machine.clock.now_ms)
    await note(team, "s1", title="shared")
    await book.sync_now()
    before = book.inner().vault.identity.public()
    await guard.rotate_identity()
    assert standing(book).identity.signing_key not in before.fingerprint()
    assert book.inner().vault.identities[1].public() == before
    with pytest.raises(IdentityMoving):
        await guard.rotate_identity()
    await note(team, "s2", title="after")
    await book.sync_now()
    await note(there, "n1", title="there")
    assert (await there.sync_now()).waiting == 0
    assert there.inner().vault.identity.public() == book.inner().vault.identity.public()
    assert there.inner().sealer.device.certificate in await book.hub.devices()
    assert await titles(there.in_space(team.space)) == {"s1": "shared", "s2": "after"}
    await guard.rotate_identity()
    await there.lock()
    await (await other.sign_in()).sync_now()


async def test_a_former_identity_goes_when_nothing_names_it(rig: Rig) -> None:
    """Once all spaces have followed, the former identity is dropped, here and on other devices,
    and everything stays open, after a restart and for a new device too."""
    machine, other, third = rig.machine(), rig.machine(), rig.machine()
    book, there = await machine.sign_up(), await other.sign_in()
    guard = security(book, machine)
    team = await shared.found(book, now_ms=machine.clock.now_ms)
    await note(team, "s1", title="shared")
    await book.sync_now()
    assert not await guard.let_go()
    await guard.rotate_identity()
    assert not await guard.let_go(), "every log still names it"
    await book.sync_now()
    assert await guard.let_go()
    assert standing(book).formers == Formers()
    await there.sync_now()
    assert len(there.inner().vault.identities) == 1
    await book.lock()
    await there.lock()
    for one in (machine, other, third):
        found = await one.sign_in()
        await found.sync_now()
        assert await titles(found.in_space(team.space)) == {"s1": "shared"}


async def test_what_needs_no_password_is_followed_at_once(rig: Rig) -> None:
    """Whether the account grants, and its recovery code, are the same on all devices."""
    machine, other = rig.machine(), rig.machine()
    book, there = await machine.sign_up(), await other.sign_in()
    await security(book, machine).allow_grants(False)
    await security(book, machine).allow_grants(False)
    await there.sync_now()
    assert standing(there).grants is False
    assert len(changes(machine)) == 1
    await security(there, other).new_recovery_code()
    await book.sync_now()
    assert standing(book).recovery == standing(there).recovery
    assert standing(book).statement == standing(there).statement


async def test_two_devices_change_at_once(rig: Rig) -> None:
    """The second of two changes is made on top of the first, or refused; none is lost silently."""
    machine, other = rig.machine(), rig.machine()
    book, there = await machine.sign_up(), await other.sign_in()
    ours, theirs = security(book, machine), security(there, other)
    met: list[str] = []

    async def overtake(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if (request.method, request.url.path) == ("PUT", "/api/v1/me/vault") and not met:
            met.append("once")
            await theirs.rotate_master(PASSWORD)
        return None

    machine.wire.on_request = overtake
    with pytest.raises(VaultMoved):
        await ours.change_password(PASSWORD, NEW)
    await ours.refresh(PASSWORD)
    await ours.change_password(PASSWORD, NEW)
    assert standing(book).revision == 2
    await theirs.refresh(NEW)
    await there.sync_now()


def lose_answers(machine: Machine, *, away: bool) -> None:
    """Lose the answer to each change of the vault; `away`: the hub is not there afterwards."""

    async def lose(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if (request.method, request.url.path) != ("PUT", "/api/v1/me/vault"):
            return None
        await (await under.handle_async_request(request)).aread()
        machine.wire.is_cut = away
        raise httpx.ReadError("the answer is lost", request=request)

    machine.wire.on_request = lose


async def test_a_lost_answer_is_found_out(rig: Rig) -> None:
    """If the hub took a change and its answer is lost, the change stands here as soon as the hub
    can be asked; the code is shown then, and what was opened goes on."""
    machine, other = rig.machine(), rig.machine()
    book = await machine.sign_up()
    guard = security(book, machine)
    await note(book, "n1", title="waited")
    lose_answers(machine, away=False)
    kit = await guard.rotate_master(PASSWORD)
    assert standing(book).revision == 1
    lose_answers(machine, away=True)
    with pytest.raises(Offline):
        await guard.set_mode("zero-knowledge", PASSWORD)
    assert (book.mode, await guard.waiting_kit()) == ("standard", kit)
    await note(book, "n2", title="written in between")
    machine.wire.is_cut = False
    assert (await book.sync_now()).waiting == 0
    shown = await guard.waiting_kit()
    assert shown is not None
    assert (book.mode, shown.code == kit.code) == ("zero-knowledge", False)
    found = await other.accounts.recover("ada", shown.code, NEW)
    other.books.append(found)
    await found.sync_now()
    assert await titles(found) == {"n1": "waited", "n2": "written in between"}


async def test_a_change_that_never_arrived_is_let_go(rig: Rig) -> None:
    """A change that was written down and not taken stands nowhere: after a while it is forgotten
    here, and until then a new one takes its place."""
    machine = rig.machine()
    book = await machine.sign_up()
    guard = security(book, machine)

    async def swallow(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.method == "PUT":
            machine.wire.is_cut = True
            raise httpx.ConnectError("lost on its way", request=request)
        return None

    machine.wire.on_request = swallow
    with pytest.raises(Offline):
        await guard.change_password(PASSWORD, NEW)
    machine.wire.is_cut = False
    await book.sync_now()
    assert await book.inner().replica.read(lambda tx: tx.meta(NEXT)) is not None
    machine.clock.now_ms += BEGUN_MS_MAX
    await book.sync_now()
    assert await book.inner().replica.read(lambda tx: tx.meta(NEXT)) is None
    machine.wire.on_request = None
    await guard.change_password(PASSWORD, NEW)
    assert standing(book).revision == 1


async def test_another_proof_in_between_is_no_hindrance(rig: Rig) -> None:
    """The hub's challenge is another after each proof; the change is then signed again."""
    machine = rig.machine()
    book = await machine.sign_up()
    guard = security(book, machine)
    spent: list[str] = []

    async def spend(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if (request.method, request.url.path) == ("PUT", "/api/v1/me/vault") and not spent:
            spent.append("once")
            body: dict[str, str] = {"kind": "totp", "name": "Phone"}

            async def begin(proof: MasterProof) -> None:
                await book.hub.begin_factor(NewFactor(kind="totp", name="Phone", proof=proof))

            await proved(book.hub, book.inner().vault, "factor-begin", {**body}, begin)
        return None

    machine.wire.on_request = spend
    await guard.change_password(PASSWORD, NEW)
    assert (spent, standing(book).revision, len(changes(machine))) == (["once"], 1, 2)


async def test_the_password_is_not_asked_for_twice(rig: Rig) -> None:
    """A device that was locked while the master key was changed follows with the password that
    unlocked it; what was typed is forgotten as soon as the hub was asked."""
    machine, other = rig.machine(), rig.machine()
    book, there = await machine.sign_up(), await other.sign_in()
    await note(there, "n1", title="waited")
    await there.lock()
    await security(book, machine).rotate_master(PASSWORD)
    again = await other.sign_in()
    assert again.inner().vault.typed is not None
    assert (await again.sync_now()).waiting == 0
    assert again.inner().vault.typed is None
    await security(book, machine).rotate_master(PASSWORD)
    with pytest.raises(VaultMoved):
        await again.sync_now()


async def test_another_process_of_the_machine_follows(rig: Rig) -> None:
    """A second process over one replica writes nothing that could not be opened afterwards; it
    follows with the password, without the hub."""
    machine = rig.machine()
    book = await machine.sign_up()
    beside = rig.machine(machine.home)
    second = await beside.sign_in()
    await second.keep("x", 1)
    guard = security(book, machine)
    await guard.rotate_master(PASSWORD)
    with pytest.raises(VaultMoved):
        await second.keep("x", 2)
    with pytest.raises(VaultMoved):
        await second.sync_now()
    assert (await second.status()).trouble == "VAULT_MOVED"
    beside.wire.is_cut = True
    await security(second, beside).refresh(PASSWORD)
    beside.wire.is_cut = False
    assert await second.kept("x") == 1
    await second.sync_now()
    await guard.change_password(PASSWORD, NEW)
    await second.sync_now()
    assert standing(second) == standing(book)
    await second.keep("x", 3)
    assert await book.kept("x") == 3


async def test_offline_nothing_is_changed(rig: Rig) -> None:
    """Without the hub a change is refused and leaves nothing behind; the status is shown."""
    machine = rig.machine()
    book = await machine.sign_up()
    guard = security(book, machine)
    machine.wire.is_cut = True
    with pytest.raises(Offline):
        await guard.change_password(PASSWORD, NEW)
    status = await guard.status()
    assert (status.mode, status.revision, status.factors) == ("standard", 0, None)
    machine.wire.is_cut = False
    await book.sync_now()
    await guard.change_password(PASSWORD, NEW)


async def test_the_log_of_the_account_tells_what_happened(rig: Rig) -> None:
    """Each change is a line in the account's security log."""
    machine = rig.machine()
    book = await machine.sign_up()
    guard = security(book, machine)
    await guard.change_password(PASSWORD, NEW)
    await guard.set_mode("zero-knowledge", NEW)
    told = {event.action for event in await guard.events() if event.ok}
    assert {"sign-up", "password", "mode", "master", "identity", "recovery"} <= told


async def test_in_zero_knowledge_mode_the_operator_resets_nothing(rig: Rig) -> None:
    """The hub has nothing by which it could open the account: a reset is ZK_ACTIVE."""
    machine, other = rig.machine(), rig.machine()
    book = await machine.sign_up()
    async with operator(rig.served.hub.settings, clock=rig.served.clock) as made:
        token = await made.reset("ada")
    await security(book, machine).set_mode("zero-knowledge", PASSWORD)
    with pytest.raises(ZeroKnowledgeActive):
        await other.accounts.reset("ada", token, NEW)
