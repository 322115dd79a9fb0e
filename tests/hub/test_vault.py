"""The vault on the hub: changed whole, by whoever has opened it, and by nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from mana.crypto.keys import key_check, new_key, unwrap_master_key
from mana.crypto.passwords import KdfParameters, derive_password_keys
from mana.crypto.primitives import b64, unb64
from mana.crypto.vaults import VaultStatement, formers_hash, sign_proof, text_hash
from mana.device.vaults import Prepared, require_following, require_stated
from mana.domain.errors import Unauthenticated
from mana.hub.accounts.store import AccountStore, require_proof
from mana.hub.db import AccessRefused, Tenancy, Transaction
from mana.hub.grants.store import Register
from mana.hub.http.endpoints import Session
from mana.hub.secrets import load
from mana.hub.tenants import Tenant
from mana.protocol.errors import ProofRefused
from mana.protocol.messages import (
    FormerMaster,
    Formers,
    MasterProof,
    NewRecovery,
    RecoveryWrap,
    VaultChange,
    VaultLog,
)
from mana.testing.accounts import CHEAP, new_device
from mana.testing.postgres import Database, connected, database_text
from tests.hub.client import START_MS, Person, Served, served_hub
from tests.hub.test_accounts import code
from tests.hub.vaulted import (
    VAULT,
    Vaulted,
    in_zero_knowledge,
    new_password,
    recovery_key,
    restated,
    session_of,
    signed_up,
    stranger,
    until_waiting,
    vaulted,
)
from tests.runner.world import world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

replace = msgspec.structs.replace


async def second_session(served: Served, ada: Vaulted) -> Person:
    """Log in once more, as another device does."""
    answer = await ada.person.log_in()
    assert answer.status_code == 200, answer.text
    return session_of(served, ada.person, answer)


async def test_as_signed_up(database: Database) -> None:
    """Before its first change a vault has revision 0, a challenge, and no statement."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        vault = await ada.vault()
        assert (vault.revision, vault.statement, vault.recovery) == (0, None, None)
        assert len(vault.challenge) == 44
        assert vault.grants
        require_stated(vault)


WISHES: dict[str, dict[str, Any]] = {
    "password": {"password": new_password("ada", "another")},
    "recovery": {"code": True},
    "master": {"master": True, "code": True},
    "master alone": {"master": True},
    "identity": {"identity": True},
    "grants": {"grants": False},
    "mode": {"mode": "zero-knowledge", "master": True, "identity": True, "code": True},
}


@pytest.mark.parametrize("wish", WISHES)
async def test_a_change_stands_whole(database: Database, wish: str) -> None:
    """After a change the vault is what its statement names, in every part, with another challenge,
    and the device that made it and one that follows both take it."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        before = await ada.vault()
        made = await ada.changed(**WISHES[wish])
        assert await ada.standing_as(made)
        after = await ada.vault()
        assert after.challenge != before.challenge
        answer = await ada.person.call("GET", f"{VAULT}/log?after=0")
        log = msgspec.json.decode(answer.content, type=VaultLog).statements
        require_following(before, after, log)
        assert (after.recovery_set_at is None) == (after.recovery is None)


async def test_the_log_of_statements(database: Database) -> None:
    """The chain is kept from its first statement, and is given from any revision on."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        start = await ada.vault()
        made = [await ada.changed(code=True), await ada.changed(identity=True)]
        made.append(await ada.changed(grants=False))

        async def log(after: int) -> VaultLog:
            answer = await ada.person.call("GET", f"{VAULT}/log?after={after}")
            return msgspec.json.decode(answer.content, type=VaultLog)

        whole = (await log(0)).statements
        assert whole == [one.change.signed for one in made]
        assert (await log(2)).statements == whole[2:]
        assert (await log(3)).statements == []
        require_following(start, await ada.vault(), whole)
        assert (await ada.person.call("GET", f"{VAULT}/log?after=-1")).status_code == 400


async def test_a_token_changes_nothing(database: Database) -> None:
    """Whoever holds a token and not the master key replaces no wrap, not with garbage either,
    switches no mode, and plants no identity: what they signed themselves is refused, and the
    attempt is on the log (K3, K9)."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        before = await ada.vault()
        eve = stranger(ada.person.account.account_id)
        garbage = "mk:1:AAAAAAAAAAAAAAAA." + b64(bytes(48))
        attempts: list[tuple[str, VaultChange]] = []
        for wish in ("password", "recovery", "mode", "identity", "grants"):
            made = await ada.prepared(**WISHES[wish])
            own = made.keys.identity.signing_key if wish in ("mode", "identity") else None
            attempts.append((wish, restated(made.change, eve.signing_key, own=own)))
        made = await ada.prepared(**WISHES["recovery"])
        wrapped = replace(made.change, master_wrap=garbage)
        attempts.append(
            ("recovery", restated(wrapped, eve.signing_key, master_wrap=text_hash(garbage)))
        )
        unsigned = replace(made.change.signed, signature=b64(bytes(64)))
        attempts.append(("recovery", replace(made.change, signed=unsigned)))
        for _, change in attempts:
            assert code(await ada.put(change)) == "403 PROOF_REFUSED"
        assert await ada.vault() == before
        refused = [event for event in await ada.events() if not event[1]]
        assert refused == [(action, False, "PROOF_REFUSED") for action, _ in attempts]
        assert (await ada.person.log_in()).status_code == 200
        await ada.changed(code=True)


async def test_another_account_changes_nothing(database: Database) -> None:
    """A change that one account signed does nothing to another, nor under another's token."""
    async with served_hub(database) as served:
        ada, eve = await signed_up(served), await signed_up(served, "eve")
        made = await ada.prepared(code=True)
        assert code(await eve.put(made.change)) == "400 VAULT_REFUSED"
        own = restated(
            (await eve.prepared(code=True)).change,
            eve.keys.identity.signing_key,
            account_id=ada.person.account.account_id,
        )
        assert code(await eve.put(own)) == "400 VAULT_REFUSED"
        assert (await ada.vault()).revision == (await eve.vault()).revision == 0


async def test_racing_devices(database: Database) -> None:
    """Of devices that change a vault at once one is taken whole, the others are told that it
    moved, and nothing of the one that was taken is lost."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        wishes = [WISHES[name] for name in ("recovery", "master", "identity", "grants")]
        made = [await ada.prepared(**wish) for wish in wishes]
        answers = await asyncio.gather(*(ada.put(one.change) for one in made))
        assert sorted(one.status_code for one in answers) == [200, 409, 409, 409]
        assert {code(one) for one in answers if one.status_code == 409} == {"409 VAULT_MOVED"}
        [winner] = [one for one, answer in zip(made, answers, strict=True) if answer.is_success]
        assert await ada.standing_as(winner)
        ada.keys = winner.keys
        again = await ada.changed(code=True)
        assert await ada.standing_as(again)


async def test_a_change_is_taken_once(database: Database) -> None:
    """A change that was taken is not taken again, and neither is one from before it."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        earlier = await ada.prepared(grants=False)
        made = await ada.changed(code=True)
        for change in (made.change, earlier.change):
            assert code(await ada.put(change)) == "409 VAULT_MOVED"
        signing_key = ada.keys.identity.signing_key
        vault = await ada.vault()
        stated = VaultStatement.from_wire(made.change.signed.statement)
        for wrong in (
            {"revision": 3},
            {"revision": 2, "previous": ""},
            {"revision": 2, "previous": stated.hash(), "challenge": stated.challenge},
        ):
            change = restated(made.change, signing_key, **{"challenge": vault.challenge, **wrong})
            assert code(await ada.put(change)) == "409 VAULT_MOVED", wrong
        assert await ada.standing_as(made)


async def test_a_crash_leaves_one_vault(database: Database, monkeypatch: Any) -> None:
    """Wherever a change is cut off, the vault is the old one, whole; after it the new one."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        before = await ada.vault()
        made = await ada.prepared(**WISHES["mode"])
        held = Transaction._run

        def cutting(at: int) -> Any:
            statements = 0

            async def run(self: Transaction, method: str, *args: Any) -> Any:
                nonlocal statements
                statements += 1
                if statements == at:
                    raise Unauthenticated("cut off")
                return await held(self, method, *args)

            return run

        for cut in range(1, 100):
            monkeypatch.setattr(Transaction, "_run", cutting(cut))
            answer = await ada.put(made.change)
            monkeypatch.setattr(Transaction, "_run", held)
            if answer.status_code == 200:
                break
            assert await ada.vault() == before, cut
        assert cut > 15
        assert await ada.standing_as(made)


def spoilt(**parts: Any) -> Callable[[Prepared], VaultChange]:
    return lambda made: replace(made.change, **parts)


def named(**stated: Any) -> Callable[[Prepared], VaultChange]:
    """Return what signs a statement that names other things, by the identity of the change."""

    def make(made: Prepared) -> VaultChange:
        return restated(made.change, made.keys.identity.signing_key, **stated)

    return make


WRAP = "mk:1:AAAAAAAAAAAAAAAA." + b64(bytes(48))
SEAL = "sec:1:AAAAAAAAAAAAAAAA." + b64(bytes(144))
PARTS: dict[str, Callable[[Prepared], VaultChange]] = {
    "another wrap": spoilt(master_wrap=WRAP),
    "another seal": spoilt(sealed_private=SEAL),
    "another cost": lambda made: replace(made.change, kdf=replace(made.change.kdf, t=2)),
    "another former": lambda made: replace(
        made.change, formers=Formers([FormerMaster(b64(bytes(16)), SEAL)])
    ),
    "a former of another form": lambda made: replace(
        made.change, formers=Formers([FormerMaster("A", SEAL)])
    ),
    "another code": lambda made: replace(
        made.change,
        recovery=NewRecovery(
            wrap=RecoveryWrap(key_id="r-" + "0" * 16, wrapped=WRAP), login_key=b64(bytes(32))
        ),
    ),
    "no code": spoilt(recovery=None),
    "a short recovery key": lambda made: replace(
        made.change,
        recovery=NewRecovery(
            wrap=RecoveryWrap(
                key_id="r-" + "0" * 16,
                wrapped=made.vault.recovery.wrapped if made.vault.recovery else "",
            ),
            login_key="AAAA",
        ),
    ),
    "a login key without a password": spoilt(login_key=b64(bytes(32))),
    "another mode": named(mode="zero"),
    "a member more": lambda made: replace(
        made.change,
        signed=replace(made.change.signed, statement={**made.change.signed.statement, "x": 1}),
    ),
    "revision as text": lambda made: replace(
        made.change,
        signed=replace(
            made.change.signed, statement={**made.change.signed.statement, "revision": "1"}
        ),
    ),
    "no moment": named(changed_at="now"),
    "a short check": named(master_check="AAAA"),
    "devices without an identity": lambda made: replace(
        made.change, devices=[new_device(made.keys.identity, now_ms=START_MS)[2]]
    ),
    "the master key of nobody": spoilt(master_key=b64(bytes(32))),
}


@pytest.mark.parametrize("part", PARTS)
async def test_every_part_is_the_one_that_is_signed(database: Database, part: str) -> None:
    """A part that the statement does not name, or that has another form, is refused, and the
    vault stays as it was."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        before = await ada.vault()
        made = await ada.prepared(code=True)
        answer = await ada.put(PARTS[part](made))
        assert code(answer) == "400 VAULT_REFUSED", answer.text
        assert await ada.vault() == before


async def test_cheap_passwords_are_refused(database: Database) -> None:
    """The floor under the cost of a password holds for every change, not for sign-up alone."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        made = await ada.prepared(password=new_password("ada", "another"))
        kdf = replace(made.change.kdf, m_kib=4)
        wire = msgspec.to_builtins(kdf)
        change = restated(replace(made.change, kdf=kdf), ada.keys.identity.signing_key, kdf=wire)
        answer = await ada.put(change)
        assert code(answer) == "400 VAULT_REFUSED"
        assert answer.json()["detail"]["cause"] == "KDF_TOO_WEAK"


async def test_another_password(database: Database) -> None:
    """With the login key of another password the old one ends; without one nothing is taken."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        made = await ada.prepared(password=new_password("ada", "another"))
        for wrong in (None, "AAAA"):
            answer = await ada.put(replace(made.change, login_key=wrong))
            assert code(answer) == "400 VAULT_REFUSED"
        old = replace(made.change, master_wrap=ada.person.account.request.master_wrap)
        old = restated(old, ada.keys.identity.signing_key, master_wrap=text_hash(old.master_wrap))
        assert code(await ada.put(old)) == "400 VAULT_REFUSED"
        assert (await ada.put(made.change)).status_code == 200
        assert code(await ada.person.log_in()) == "401 INVALID_CREDENTIALS"
        body = {"login": "ada", "loginKey": made.change.login_key}
        assert (await served.call("POST", "/api/v1/auth/login", body)).status_code == 200
        vault = await ada.vault()
        opened = unwrap_master_key(
            vault.master_wrap,
            unlock_key_of(made),
            "unlock",
            vault.account_id,
            "k1",
        )
        assert opened == ada.keys.master_key


def unlock_key_of(made: Prepared) -> bytes:
    kdf = KdfParameters.from_wire(msgspec.to_builtins(made.change.kdf))
    return derive_password_keys("another", "ada", kdf, floor=CHEAP).unlock_key


@pytest.mark.parametrize("wish", WISHES)
async def test_who_stays_signed_in(database: Database, wish: str) -> None:
    """After another password, mode, master key or identity every other session has ended, and the
    one that changed it goes on; nothing else signs anybody out."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        other = await second_session(served, ada)
        await ada.changed(**WISHES[wish])
        stays = wish in ("recovery", "grants")
        body = {"refreshToken": other.tokens.refresh_token}
        answer = await served.call("POST", "/api/v1/auth/refresh", body)
        assert answer.status_code == (200 if stays else 401)
        assert (await ada.person.call("GET", "/api/v1/me")).status_code == 200
        body = {"refreshToken": ada.person.tokens.refresh_token}
        assert (await served.call("POST", "/api/v1/auth/refresh", body)).status_code == 200


async def test_a_log_in_that_overlaps(database: Database, monkeypatch: Any) -> None:
    """A log-in whose password was checked just before it changed begins no session."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        made = await ada.prepared(password=new_password("ada", "another"))
        begin = AccountStore.begin_session

        async def late(self: AccountStore, *args: Any, **options: Any) -> None:
            monkeypatch.setattr(AccountStore, "begin_session", begin)
            assert (await ada.put(made.change)).status_code == 200
            await begin(self, *args, **options)

        monkeypatch.setattr(AccountStore, "begin_session", late)
        assert code(await ada.person.log_in()) == "401 INVALID_CREDENTIALS"


async def test_another_master_key(database: Database) -> None:
    """Another master key comes with all that seals it anew, the former one, and for the hub the
    key itself; the recovery code of the old one ends (K1)."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        await ada.changed(code=True)
        held = await ada.vault()
        made = await ada.prepared(master=True)
        signing_key = ada.keys.identity.signing_key
        assert held.recovery is not None
        kept_code = restated(made.change, signing_key, recovery=text_hash(held.recovery.wrapped))
        old_wrap = replace(made.change, master_wrap=held.master_wrap)
        old_seal = replace(made.change, sealed_private=held.identity.sealed_private)
        spoilt_changes = {
            "the old recovery code": kept_code,
            "the old wrap": restated(
                old_wrap, signing_key, master_wrap=text_hash(held.master_wrap)
            ),
            "the old seal": restated(
                old_seal, signing_key, sealed_private=text_hash(held.identity.sealed_private)
            ),
            "no former master key": restated(
                replace(made.change, formers=Formers()), signing_key, formers=formers_hash([], [])
            ),
            "no master key for the hub": replace(made.change, master_key=None),
            "another master key for the hub": replace(made.change, master_key=b64(new_key())),
            "half a master key": replace(made.change, master_key="AAAA"),
        }
        for name, change in spoilt_changes.items():
            assert code(await ada.put(change)) == "400 VAULT_REFUSED", name
        assert await ada.vault() == held
        await ada.changed(master=True)
        after = await ada.vault()
        assert after.recovery is None
        assert [one.check for one in after.formers.masters] == [held.master_check]
        assert await kek_opens(served, database, ada) == ada.keys.master_key


async def kek_opens(served: Served, database: Database, ada: Vaulted) -> bytes | None:
    """Return what the hub can open of an account, or None where it holds nothing."""
    account = ada.person.account.account_id
    async with connected(database.owner_url) as owner:
        row = await owner.fetchrow(
            "select kek_wrap, kek_id from mana.accounts where account_id = $1", account
        )
    if row["kek_wrap"] is None:
        assert row["kek_id"] is None
        return None
    secrets = load(served.hub.settings.secrets_dir)
    assert row["kek_id"] == secrets.kek_id
    return unwrap_master_key(row["kek_wrap"], secrets.kek, "kek", account, secrets.kek_id)


async def test_zero_knowledge_begins_with_new_keys(database: Database) -> None:
    """In zero-knowledge mode the hub holds no copy of the master key, under no KEK; the mode does
    not begin with a key that the hub has had, and not without a recovery code (K7)."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        signing_key = ada.keys.identity.signing_key
        coded = await ada.prepared(code=True)
        assert code(await ada.put(restated(coded.change, signing_key, mode="zero-knowledge"))) == (
            "400 VAULT_REFUSED"
        )
        plain = await ada.prepared(grants=False)
        assert code(await ada.put(restated(plain.change, signing_key, mode="zero-knowledge"))) == (
            "400 RECOVERY_WRAP_MISSING"
        )
        made = await ada.prepared(**WISHES["mode"])
        told = replace(made.change, master_key=b64(made.keys.master_key))
        assert code(await ada.put(told)) == "400 VAULT_REFUSED"
        assert await kek_opens(served, database, ada) == ada.keys.master_key
        await ada.changed(**WISHES["mode"])
        assert await kek_opens(served, database, ada) is None
        text = await database_text(database.owner_url)
        assert ada.code is not None
        for secret in (ada.keys.master_key, ada.code, unb64(recovery_key(ada.code, "ada"))):
            assert b64(secret) not in text
            assert secret.hex() not in text
        dropped = await ada.prepared(grants=True)
        bare = restated(dropped.change, ada.keys.identity.signing_key, recovery="")
        assert code(await ada.put(bare)) == "400 RECOVERY_WRAP_MISSING"


async def test_the_way_back(database: Database) -> None:
    """Back to standard mode the hub takes the master key of this vault only (K3)."""
    async with served_hub(database) as served:
        ada = await in_zero_knowledge(served)
        made = await ada.prepared(mode="standard")
        for wrong in (None, b64(bytes(32)), b64(new_key())):
            answer = await ada.put(replace(made.change, master_key=wrong))
            assert code(answer) == "400 VAULT_REFUSED"
        assert await kek_opens(served, database, ada) is None
        await ada.changed(mode="standard")
        assert await kek_opens(served, database, ada) == ada.keys.master_key


async def test_the_row_cannot_lie(database: Database, tenancy: Tenancy) -> None:
    """A row in zero-knowledge mode cannot hold a copy under the KEK, whoever writes it."""
    async with served_hub(database) as served:
        ada = await in_zero_knowledge(served)
    account = ada.person.account.account_id
    async with connected(database.owner_url) as owner:
        for statement in ("kek_wrap = 'x'", "mode = 'standard'"):
            with pytest.raises(Exception, match="accounts_check"):
                await owner.execute(
                    f"update mana.accounts set {statement} where account_id = $1", account
                )


async def test_another_identity(database: Database) -> None:
    """Another identity signs for itself, certifies every device that stands, and keeps the one
    before; a device then has both certificates."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        _, _, second = new_device(ada.keys.identity, now_ms=START_MS)
        assert (await ada.person.call("POST", "/api/v1/me/devices", second)).status_code == 201
        held = await ada.vault()
        made = await ada.prepared(identity=True)
        before, new = ada.keys.identity.signing_key, made.keys.identity.signing_key
        _, _, unknown = new_device(made.keys.identity, now_ms=START_MS)
        other = replace(made.change.devices[0], created_at="2026-01-01T00:00:00.000Z")
        spoilt_changes = {
            "a device less": replace(made.change, devices=made.change.devices[:1]),
            "a device twice": replace(
                made.change, devices=[*made.change.devices, made.change.devices[0]]
            ),
            "a device more": replace(made.change, devices=[*made.change.devices, unknown]),
            "the old certificate": replace(
                made.change,
                devices=[
                    second if one.device_id == second.device_id else one
                    for one in made.change.devices
                ],
            ),
            "another moment": replace(made.change, devices=[other, made.change.devices[1]]),
            "no former identity": restated(
                replace(made.change, formers=Formers()),
                before,
                own=new,
                formers=formers_hash([], []),
            ),
            "the old seal": restated(
                replace(made.change, sealed_private=held.identity.sealed_private),
                before,
                own=new,
                sealed_private=text_hash(held.identity.sealed_private),
            ),
            "keys of another form": restated(made.change, before, own=None, hpke_key="AAAA"),
        }
        for name, change in spoilt_changes.items():
            assert code(await ada.put(change)) == "400 VAULT_REFUSED", name
        for signature in (made.change.signed.signature, None):
            unsigned = replace(made.change.signed, own_signature=signature)
            answer = await ada.put(replace(made.change, signed=unsigned))
            assert code(answer) == "403 PROOF_REFUSED"
        assert await ada.vault() == held
        await ada.changed(identity=True)
        found = await ada.devices()
        by_new, by_old = found[::2], found[1::2]
        assert {one.signature for one in by_old} == {
            ada.person.account.certificate.signature,
            second.signature,
        }
        assert {one.device_id for one in by_new} == {one.device_id for one in by_old}


async def test_identity_moves_once(database: Database) -> None:
    """While a space still names the identity before, another change of identity waits, and the
    former one is not dropped; everything else can change."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        await ada.changed(identity=True)
        with_one = await ada.vault()
        devices = (await ada.devices())[::2]
        made = await ada.prepared(identity=True, devices=devices)
        assert code(await ada.put(made.change)) == "409 IDENTITY_MOVING"
        keeps = await ada.prepared(code=True)
        dropped = restated(
            replace(keeps.change, formers=Formers()),
            ada.keys.identity.signing_key,
            formers=formers_hash([], []),
        )
        assert code(await ada.put(dropped)) == "409 IDENTITY_MOVING"
        assert await ada.vault() == with_one
        await ada.changed(password=new_password("ada", "another"))


async def test_a_device_that_came_meanwhile(database: Database) -> None:
    """A change that does not know a device which was registered since is told to look again."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        made = await ada.prepared(identity=True)
        _, _, second = new_device(ada.keys.identity, now_ms=START_MS)
        assert (await ada.person.call("POST", "/api/v1/me/devices", second)).status_code == 201
        assert code(await ada.put(made.change)) == "409 VAULT_MOVED"
        await ada.changed(identity=True)


async def test_a_device_of_the_identity_before(database: Database) -> None:
    """A device that only the identity before certified is not registered any more."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        _, _, late = new_device(ada.keys.identity, now_ms=START_MS)
        await ada.changed(identity=True)
        answer = await ada.person.call("POST", "/api/v1/me/devices", late)
        assert code(answer) == "400 SIGNATURE_REJECTED"
        assert ("device-added", False, "SIGNATURE_REJECTED") in await ada.events()


async def test_what_the_log_tells(database: Database) -> None:
    """Every change and every refused attempt is on the security log, with what it was about."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        for wish in ("password", "recovery", "grants", "mode"):
            made = await ada.changed(**WISHES[wish])
            assert code(await ada.put(made.change)) == "409 VAULT_MOVED"
        assert await ada.events() == [
            ("sign-up", True, ""),
            ("password", True, "revision 1"),
            ("master", False, "VAULT_MOVED"),
            ("recovery", True, "revision 2"),
            ("master", False, "VAULT_MOVED"),
            ("grants", True, "revision 3"),
            ("master", False, "VAULT_MOVED"),
            *(
                (action, True, "revision 4")
                for action in ("mode", "identity", "master", "recovery")
            ),
            ("master", False, "VAULT_MOVED"),
        ]


async def test_proofs(database: Database, tenancy: Tenancy) -> None:
    """A proof is good for one action of the account, over the challenge that stands, once; one
    that is refused does not use it up."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        challenge = (await ada.vault()).challenge
        account = ada.person.account.account_id
        session = Session(account, ada.person.session_id, 0)
        body: dict[str, Any] = {"name": "phone"}
        key = ada.keys.identity.signing_key

        def proof(**other: Any) -> MasterProof:
            said = {"action": "factor-begin", "challenge": challenge, "body": body, **other}
            signed = sign_proof(
                said.get("key", key), account, said["action"], said["challenge"], said["body"]
            )
            return MasterProof(challenge=said["challenge"], signature=b64(signed))

        async def ask(given: MasterProof) -> None:
            async with tenancy.transaction(Tenant(account)) as tx:
                await require_proof(tx, session, "factor-begin", body, given)

        eve = stranger(account)
        for wrong in (
            proof(action="factor-remove"),
            proof(body={"name": "other"}),
            proof(challenge=b64(bytes(32))),
            proof(key=eve.signing_key),
            MasterProof(challenge=challenge, signature="?"),
        ):
            with pytest.raises(ProofRefused):
                await ask(wrong)
        assert (await ada.vault()).challenge == challenge
        both = await asyncio.gather(ask(proof()), ask(proof()), return_exceptions=True)
        assert sorted(type(one).__name__ for one in both) == ["NoneType", "ProofRefused"]
        assert (await ada.vault()).challenge != challenge
        assert key_check(ada.keys.master_key, account, 1) == (await ada.vault()).master_check


async def test_old_statements_cannot_be_changed(database: Database, tenancy: Tenancy) -> None:
    """The hub's own role can neither change nor remove a statement or a line of the log."""
    async with served_hub(database) as served:
        ada = await signed_up(served)
        await ada.changed(code=True)
    for table in ("vault_statements", "security_events"):
        for statement in (f"delete from mana.{table}", f"update mana.{table} set account_id = ''"):
            with pytest.raises(AccessRefused):
                async with tenancy.transaction(Tenant(ada.person.account.account_id)) as tx:
                    await tx.execute(statement)


@pytest.mark.parametrize(
    "wish",
    [
        {"grants": False},
        {
            "mode": "zero-knowledge",
            "master": True,
            "identity": True,
            "code": True,
            "grants": False,
        },
    ],
    ids=["standard", "zero-knowledge"],
)
async def test_grants_end_with_the_switch(database: Database, wish: dict[str, Any]) -> None:
    """Switching grants off ends every grant of the account, the one that is being made too: its
    sealed keys are erased, its missions wait and nothing of them is queued; another change of the vault ends none."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        await made.mission()
        ada = vaulted(made.ada)
        await made.grant()
        await ada.changed(code=True)
        before = (await made.ada.call("GET", "/api/v1/me/ai-mission-grants")).json()["grants"]
        assert [one["state"] for one in before] == ["active"]
        await made.run_now()
        pending = await made.header()
        await ada.changed(**wish)
        after = (await made.ada.call("GET", "/api/v1/me/ai-mission-grants")).json()["grants"]
        assert [one["state"] for one in after] == ["revoked"]
        assert (await made.status()).hold == "revoked"
        async with connected(database.owner_url) as owner:
            states = await owner.fetch(
                "select state, sealed_keys, wrapped_key from mana_ai.grants where grant_id = $1"
                " or sealed_keys is not null",
                pending.grant_id,
            )
            queued = await owner.fetch(
                "select occurrence_id from mana_ai.occurrences where state = 'queued'"
            )
        assert [tuple(one) for one in states] == [("revoked", None, None)]
        assert queued == []


async def test_a_grant_that_overlaps_the_switch(database: Database, monkeypatch: Any) -> None:
    """A header that was asked for just before grants were switched off is never completed: the
    switch waits for it, and ends it too."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        await made.mission()
        ada = vaulted(made.ada)
        change = (await ada.prepared(grants=False)).change
        add, reached, going = Register.add, asyncio.Event(), asyncio.Event()

        async def slow(self: Register, grant: Any) -> None:
            reached.set()
            await going.wait()
            await add(self, grant)

        monkeypatch.setattr(Register, "add", slow)
        asking = asyncio.create_task(made.header())
        await reached.wait()
        switching = asyncio.create_task(ada.put(change))
        await until_waiting(database)
        going.set()
        header = await asking
        assert (await switching).status_code == 200
        path = f"/api/v1/me/ai-mission-grant/{header.grant_id}/complete"
        answer = await made.ada.call("POST", path, await made.completion(header))
        assert code(answer) == "409 GRANT_ENDED"


async def test_a_check_value_has_its_form(database: Database) -> None:
    """Where the hub cannot compare a check value with a key, it still takes none of another form."""
    async with served_hub(database) as served:
        ada = await in_zero_knowledge(served)
        made = await ada.prepared(master=True, code=True)
        for wrong in ("AAAA", "?", b64(bytes(15)) + "="):
            change = restated(made.change, ada.keys.identity.signing_key, master_check=wrong)
            assert code(await ada.put(change)) == "400 VAULT_REFUSED", wrong
        assert (await ada.put(made.change)).status_code == 200
