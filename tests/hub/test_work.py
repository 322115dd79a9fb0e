"""Stops and caps of an account: a session tightens them, and only a device's signature loosens them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from mana.crypto.errors import Malformed
from mana.crypto.identity import revoke_device
from mana.crypto.primitives import b64
from mana.crypto.signatures import SigningKey
from mana.crypto.work import REVISION_MAX, Limits, WorkWord
from mana.domain.clock import iso_ms
from mana.protocol.messages import DeviceRevocation, Problem, SetWork, WorkState
from mana.testing.postgres import Database, connected
from mana.testing.work import next_word, signed_work
from tests.hub.client import Person, served_hub

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

WORK = "/api/v1/me/ai-work"
CAPS = Limits(tokens_per_day_max=1_000, cost_per_day_max=5)


@contextlib.asynccontextmanager
async def person(database: Database) -> AsyncIterator[Person]:
    async with served_hub(database) as served:
        yield await served.sign_up("ada")


async def state(ada: Person) -> WorkState:
    answer = await ada.call("GET", WORK)
    return msgspec.json.decode(answer.content, type=WorkState)


async def told(ada: Person, asked: SetWork | dict[str, object]) -> str:
    """Return the status of a change, and the code where it is refused."""
    answer = await ada.call("PUT", WORK, asked)
    code = "" if answer.is_success else msgspec.json.decode(answer.content, type=Problem).code
    return f"{answer.status_code} {code}".strip()


async def signed(ada: Person, limits: Limits) -> SetWork:
    """Return these limits as a device of the account signs them now."""
    return signed_work(ada.account, next_word(ada.account, await state(ada), limits))


async def test_a_session_alone_loosens_nothing(database: Database) -> None:
    """A stolen token stops and lowers at once, and neither raises, removes, nor lets anything go on."""
    async with person(database) as ada:
        assert await told(ada, await signed(ada, CAPS)) == "200"
        assert await told(ada, {"tokensPerDayMax": 900, "stopped": True}) == "200"
        held = await state(ada)
        assert (held.tokens_per_day_max, held.stopped_at is None) == (900, False)
        for looser in (
            {"tokensPerDayMax": 901},
            {"tokensPerDayMax": -1},
            {"costPerDayMax": -1},
            {"stopped": False},
            {"stopped": False, "costPerDayMax": 1},
        ):
            assert await told(ada, looser) == "403 WORK_NOT_SIGNED"
        assert await state(ada) == held
        assert await told(ada, {"tokensPerDayMax": -2}) == "400 BAD_REQUEST"
        # Where nothing was signed nothing is capped, and a session may begin to.
        eve = await ada.served.sign_up("eve")
        assert (
            await told(eve, {"stopped": False, "tokensPerDayMax": -1, "costPerDayMax": 7}) == "200"
        )


async def test_what_a_device_signed_is_all_that_holds(database: Database) -> None:
    """A word raises, removes and lets go on; it is kept as it was signed, and nothing stands beside it."""
    async with person(database) as ada:
        assert await told(ada, await signed(ada, replace(CAPS, stopped=True))) == "200"
        first = await state(ada)
        assert first.stopped_at is not None
        word = await signed(ada, Limits(cost_per_day_max=9))
        assert await told(ada, msgspec.structs.replace(word, stopped=True)) == "400 BAD_REQUEST"
        assert await told(ada, word) == "200"
        held = await state(ada)
        assert (held.stopped_at, held.tokens_per_day_max, held.cost_per_day_max) == (None, None, 9)
        assert held.signed == word.signed
        assert (await state(await ada.served.sign_up("eve"))).signed is None


async def test_an_older_word_is_refused(database: Database) -> None:
    """What was signed before is no word any more, nor what was signed before somebody stopped."""
    async with person(database) as ada:
        older = await signed(ada, Limits())
        assert await told(ada, await signed(ada, CAPS)) == "200"
        assert await told(ada, older) == "409 WORK_MOVED"
        raised = await signed(ada, Limits())
        assert await told(ada, {"stopped": True}) == "200"
        assert await told(ada, raised) == "409 WORK_MOVED"
        unseen = await signed(ada, Limits())
        assert await told(ada, msgspec.structs.replace(unseen, seen=1)) == "409 WORK_MOVED"
        assert await told(ada, await signed(ada, Limits())) == "200"


async def test_only_devices_of_the_account_sign(database: Database) -> None:
    """A word for another account or hub, by another key, or by a revoked device changes nothing."""
    async with person(database) as ada:
        eve = await ada.served.sign_up("eve")
        word = next_word(ada.account, await state(ada), CAPS)
        theirs = signed_work(eve.account, word)
        assert theirs.signed is not None
        refused = [
            signed_work(ada.account, replace(word, account_id=eve.account.account_id)),
            signed_work(ada.account, replace(word, hub="0" * 64)),
            signed_work(ada.account, word, key=SigningKey.generate()),
            signed_work(ada.account, replace(word, revision=0)),
            theirs,
        ]
        for one in refused:
            assert await told(ada, one) == "400 WORK_WORD_REFUSED"
        mine = signed_work(ada.account, word)
        await revoke(ada)
        assert await told(ada, mine) == "400 WORK_WORD_REFUSED"
        assert (await state(ada)).tokens_per_day_max is None


async def test_no_word_uses_up_the_numbers(database: Database) -> None:
    """A device that is taken away signs nothing that no later word can follow, and a brake holds
    wherever the count stands."""
    async with person(database) as ada:
        word = next_word(ada.account, await state(ada), Limits(stopped=True))
        far = signed_work(ada.account, replace(word, revision=REVISION_MAX))
        assert await told(ada, far) == "400 WORK_WORD_REFUSED"
        assert await told(ada, await signed(ada, CAPS)) == "200"
        async with connected(database.owner_url) as owner:
            await owner.execute("update mana_ai.account_work set revision = $1", REVISION_MAX)
        assert await told(ada, {"stopped": True}) == "200"
        held = await state(ada)
        assert (held.stopped_at is None, held.revision) == (False, REVISION_MAX)


async def revoke(ada: Person) -> None:
    """Revoke the account's first device, in whose session nothing else is registered."""
    made = revoke_device(
        ada.account.identity.signing_key,
        ada.account.account_id,
        ada.account.device_id,
        iso_ms(ada.served.clock.now_ms),
    )
    tokens = msgspec.json.decode((await ada.log_in()).content, type=type(ada.tokens))
    body = DeviceRevocation(
        account_id=made.account_id,
        device_id=made.device_id,
        revoked_at=made.revoked_at,
        signature=b64(made.signature),
    )
    ada.tokens = tokens
    answer = await ada.call("POST", f"/api/v1/me/devices/{made.device_id}/revoke", body)
    assert answer.is_success, answer.text


def test_limits_are_compared_one_by_one() -> None:
    """What covers another is no looser in any of the three, and no cap is looser than any."""
    assert Limits().covers(CAPS)
    assert not CAPS.covers(Limits())
    assert CAPS.covers(replace(CAPS, stopped=True, cost_per_day_max=0))
    assert not CAPS.covers(replace(CAPS, tokens_per_day_max=1_001, cost_per_day_max=0))
    assert not Limits(stopped=True).covers(Limits(cost_per_day_max=0))


def test_a_word_has_one_form() -> None:
    """A word is read exactly as it is signed; anything more, less or other is none."""
    word = WorkWord("account", "hub", 3, CAPS, "2026-11-21T05:23:00.123Z")
    wire = word.to_wire()
    assert WorkWord.from_wire(wire) == word
    for other in (
        {"more": 1},
        {"version": "v2"},
        {"revision": 0},
        {"revision": True},
        {"revision": 2**53},
        {"stopped": None},
        {"tokensPerDayMax": -1},
        {"tokensPerDayMax": True},
        {"costPerDayMax": 10**12 + 1},
        {"costPerDayMax": 1.5},
        {"at": "today"},
    ):
        with pytest.raises(Malformed):
            WorkWord.from_wire({**wire, **other})
    with pytest.raises(Malformed):
        WorkWord.from_wire({name: value for name, value in wire.items() if name != "at"})
