"""Grants end by a signed word that everybody can check, by their time, and never come back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mana.crypto.grants import (
    GrantHashes,
    SealedGrant,
    end_grant,
    verify_grant_ended,
    verify_grant_hashes,
)
from mana.crypto.primitives import b64, unb64
from mana.domain.errors import CryptoFailed
from mana.domain.grants import GrantHeader, header_from_wire
from mana.hub.db import Pool, Tenancy
from mana.hub.db.errors import AccessRefused
from mana.hub.tenants import Tenant
from mana.protocol.messages import GrantInfo, GrantsAnswer, RevokeGrant, Signature
from mana.testing.postgres import Database, connected
from tests.hub.client import Person
from tests.runner.test_membership import shared
from tests.runner.world import World, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

PATH = "/api/v1/me/ai-mission-grant"


def word(person: Person, header: GrantHeader) -> RevokeGrant:
    """Return the word of a person's device that a grant has ended."""
    value = end_grant(person.account.device_key, header.grant_id, header.canonical())
    return RevokeGrant(Signature(signer=person.account.device_id, value=b64(value)))


async def ended(person: Person, header: GrantHeader, said: RevokeGrant) -> tuple[int, str]:
    answer = await person.call("POST", f"{PATH}/{header.grant_id}/revoke", said)
    return answer.status_code, answer.json()["code"] if answer.content else ""


async def listed(person: Person, header: GrantHeader) -> GrantInfo:
    answer = await person.call("GET", f"{PATH}s")
    found = msgspec.json.decode(answer.content, type=GrantsAnswer).grants
    return next(one for one in found if one.header["grantId"] == header.grant_id)


async def test_word_ends_a_grant_for_all_to_check(database: Database) -> None:
    """A signed revocation erases the keys at once; word, signature and hashes stay to be checked."""
    async with world(database) as made:
        header = await made.ready()
        done = await listed(made.ada, header)
        assert (await ended(made.ada, header, word(made.ada, header))) == (204, "")
        found = await listed(made.ada, header)
        assert (found.state, done.state) == ("revoked", "active")
        assert found.signature == done.signature is not None
        assert found.revocation == word(made.ada, header).signature
        device = made.ada.account.device_key.public()
        raw = header_from_wire(found.header).canonical()
        hashes = GrantHashes(str(found.wrapped_key_hash), str(found.sealed_keys_hash))
        verify_grant_hashes(raw, hashes, unb64(found.signature.value), device=device)
        value = unb64(found.revocation.value)
        verify_grant_ended(header.grant_id, raw, value, device=device)
        async with connected(database.owner_url) as owner:
            assert await owner.fetchval("select count(sealed_keys) from mana_ai.grants") == 0
        assert (await made.status()).hold == "revoked"


async def test_every_byte_of_a_word_counts(database: Database) -> None:
    """A word with any other byte, for another grant, or by another's device, ends nothing."""
    async with world(database) as made:
        header, eve = await made.ready(), await made.served.sign_up("eve")
        said = word(made.ada, header).signature
        raw = unb64(said.value)
        forged = [
            Signature(
                signer=said.signer, value=b64(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            )
            for at in range(len(raw))
        ]
        other = await made.header()
        forged += [
            Signature(signer=eve.account.device_id, value=said.value),
            word(eve, header).signature,
            word(made.ada, other).signature,
        ]
        for one in forged:
            assert await ended(made.ada, header, RevokeGrant(one)) == (400, "GRANT_REFUSED")
        assert await ended(eve, header, word(eve, header)) == (404, "NOT_FOUND")
        assert (await listed(made.ada, header)).state == "active"


async def test_first_word_stays(database: Database) -> None:
    """An ended grant takes one signed word, and neither another call nor a statement changes it."""
    async with world(database) as made:
        header = await made.ready()
        await made.revoke(header)
        assert (await listed(made.ada, header)).revocation is None
        assert await ended(made.ada, header, word(made.ada, header)) == (204, "")
        first = await listed(made.ada, header)
        assert first.revocation is not None
        assert await ended(made.ada, header, word(made.ada, header)) == (204, "")
        assert await listed(made.ada, header) == first
        for change in (
            "revocation = 'x'",
            "revoker = 'x'",
            "revocation = null, revoker = null",
            "signature = 'x'",
            "hub_signature = 'x'",
            "wrapped_key_hash = 'x'",
            "state = 'active', ended_at = null, sealed_keys = 'x', wrapped_key = 'x'",
        ):
            with pytest.raises(AccessRefused):
                await app_runs(database, made, f"update mana_ai.grants set {change}")


async def app_runs(database: Database, made: World, statement: str) -> None:
    async with Pool(database.app_url) as pool:
        async with Tenancy(pool).transaction(Tenant(made.ada.account.account_id)) as tx:
            await tx.execute(statement)


async def test_who_may_end_another_members_grant(database: Database) -> None:
    """An owner ends a member's grant by a word of their own; a member not that of another."""
    async with world(database) as made:
        here = await shared(made)
        assert here.bob is not None
        header = await here.ready()
        assert await ended(here.bob, header, word(here.ada, header)) == (400, "GRANT_REFUSED")
        assert await ended(here.bob, header, word(here.bob, header)) == (204, "")
        found = await listed(here.ada, header)
        assert found.revocation is not None
        assert found.revocation.signer == here.bob.account.device_id
        here.ada, here.bob = here.bob, here.ada
        again = await here.grant()
        assert await ended(here.bob, again, word(here.bob, again)) == (403, "FORBIDDEN")


async def test_a_grant_minted_anew_never_undoes_another(database: Database) -> None:
    """A completion that names what it replaces counts only while that is the active grant."""
    async with world(database) as made:
        first = await made.ready()
        late = await made.header()
        done = msgspec.structs.replace(await made.completion(late), replaces=first.grant_id)
        newer = await made.grant()
        path = f"{PATH}/{late.grant_id}/complete"
        answer = await made.ada.call("POST", path, done)
        assert (answer.status_code, answer.json()["code"]) == (409, "GRANT_ENDED")
        await made.revoke(newer)
        replacing = msgspec.structs.replace(done, replaces=newer.grant_id)
        assert (await made.ada.call("POST", path, replacing)).status_code == 409


async def test_time_erases_where_nobody_looks(database: Database) -> None:
    """The sealed keys of a grant whose time has come go at the runner's next pass, in any account;
    so do headers that nobody completed."""
    async with world(database) as made:
        await made.ready()
        await made.header()
        async with connected(database.owner_url) as owner:
            await owner.execute("alter table mana_ai.grants disable trigger guard_grant")
            await owner.execute(
                "update mana_ai.grants set expires_at = now() - interval '1 s',"
                " created_at = now() - interval '2 hours'"
            )
            await owner.execute("alter table mana_ai.grants enable trigger guard_grant")
            async with made.runner() as runner:
                await runner.scheduler.tick()
            rows = await owner.fetch("select state, wrapped_key, sealed_keys from mana_ai.grants")
        assert [tuple(row) for row in rows] == [("expired", None, None)]


async def test_the_person_decides_in_zero_knowledge(database: Database) -> None:
    """Whether a vault may grant is the person's word, whatever its mode."""
    async with world(database) as made:
        await made.agent()
        await made.note("note-1")
        await made.mission()
        async with connected(database.owner_url) as owner:
            await owner.execute("update mana.accounts set grants = false")
            body: Any = {
                "missionId": "mission-1",
                "tables": ["notes"],
                "recordIds": ["notes:note-1"],
                "endpoints": ["rules:offline"],
            }
            answer = await made.ada.call("POST", PATH, body)
            assert (answer.status_code, answer.json()["code"]) == (409, "ZK_ACTIVE")
            await owner.execute(
                "update mana.accounts set grants = true, mode = 'zero-knowledge', kek_wrap = null"
            )
            assert (await made.ada.call("POST", PATH, body)).status_code == 201


async def test_every_byte_of_what_stays_counts(database: Database) -> None:
    """Header, hashes and signature of a grant that is listed verify together or not at all."""
    async with world(database) as made:
        header = await made.ready()
        found = await listed(made.ada, header)
        assert found.signature is not None
        device, raw = made.ada.account.device_key.public(), header.canonical()
        hashes = [str(found.wrapped_key_hash), str(found.sealed_keys_hash)]
        signature = unb64(found.signature.value)
        done = await made.completion(header)
        sealed = SealedGrant(unb64(done.wrapped_key), done.sealed_keys, unb64(done.signature.value))
        assert GrantHashes.of(sealed) != GrantHashes(*hashes)

        def holds(raw: bytes, one: str, two: str, signature: bytes) -> bool:
            try:
                verify_grant_hashes(raw, GrantHashes(one, two), signature, device=device)
            except CryptoFailed:
                return False
            return True

        assert holds(raw, *hashes, signature)
        for at in range(len(raw)):
            assert not holds(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], *hashes, signature)
        for at in range(len(signature)):
            flipped = signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
            assert not holds(raw, *hashes, flipped)
        for which in (0, 1):
            for at in range(64):
                changed = [*hashes]
                text = changed[which]
                changed[which] = text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]
                assert not holds(raw, *changed, signature)
