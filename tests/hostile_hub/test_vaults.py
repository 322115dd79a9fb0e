"""A hub that lies about the vault: to a device that follows it, and to one that is new."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import msgspec
import pytest

from mana.crypto.identity import PrivateIdentity
from mana.crypto.keys import key_check, new_key, wrap_master_key
from mana.crypto.primitives import b64
from mana.crypto.vaults import (
    VaultStatement,
    recovery_code,
    recovery_keys,
    seal_former_master,
    sign_statement,
)
from mana.device.vaults import Wish, statement_of
from mana.protocol.messages import NewFactor, Vault, VaultChange
from mana.testing.postgres import Cluster
from tests.hostile_hub.tools import (
    FACTORS,
    KDF,
    LOGIN,
    RESET,
    SPACES,
    VAULT,
    VAULT_LOG,
    Body,
    Mouth,
    Scene,
    book_of,
    code_of,
    is_refused,
    opened,
    picture,
    scene_on,
)

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

Lie: TypeAlias = Callable[["Known", Body], Body]


@dataclass
class Known:
    """A scene, with what the hub has of Ada's vault: as it was before, and as it is."""

    scene: Scene
    code: bytes
    signed_up: Body
    before: Body
    now: Body
    log: list[Body]
    other: Body
    """The vault of another account."""

    @property
    def account(self) -> str:
        return self.scene.ada.account_id


@pytest.fixture(scope="module")
async def known(postgres: Cluster) -> AsyncIterator[Known]:
    async with scene_on(postgres) as scene:
        keeper = book_of(scene.ada).inner().keeper
        await scene.ada.sync_now()
        before = scene.mouth.last(VAULT)

        async def wish(_standing: Vault) -> Wish:
            return Wish(code=True)

        code = await keeper.change(wish)
        assert code is not None
        await keeper.code_seen()
        for one in (scene.ada, scene.away):
            await one.sync_now()
        now = scene.mouth.last(VAULT)
        log = msgspec.to_builtins(await book_of(scene.ada).hub.vault_log(0, now["revision"]))
        other = msgspec.to_builtins(await book_of(scene.bob).hub.vault())
        yield Known(scene, code, scene.signed_up, before, now, log, other)


def stated(
    known: Known,
    body: Body,
    by: PrivateIdentity,
    *,
    own: PrivateIdentity | None = None,
    **parts: Any,
) -> Body:
    """Return a next vault with these parts, and a statement of it that `by` has signed."""
    draft = {**body, **parts, "revision": body["revision"] + 1}
    before = VaultStatement.from_wire(body["statement"]["statement"])
    vault = msgspec.convert({**draft, "statement": None}, Vault)
    statement = statement_of(
        vault, previous=before.hash(), challenge=body["challenge"], changed_at=before.changed_at
    )
    draft["statement"] = {
        "statement": statement.to_wire(),
        "signature": b64(sign_statement(by.signing_key, statement)),
    }
    if own is not None:
        draft["statement"]["ownSignature"] = b64(sign_statement(own.signing_key, statement))
    return draft


def own_wrap(
    known: Known, purpose: Literal["unlock", "recovery"] = "unlock", key_id: str = "k1"
) -> str:
    """Return a master key of the hub's own, wrapped under a key of the hub's own."""
    return wrap_master_key(new_key(), new_key(), purpose, known.account, key_id)


def own_recovery(known: Known) -> Body:
    keys = recovery_keys(new_key(), "ada")
    return {"keyId": keys.key_id, "wrapped": own_wrap(known, "recovery", keys.key_id)}


def kdf(**members: Any) -> Lie:
    return lambda known, body: {**body, "kdf": {**body["kdf"], **members}}


def part(**members: Any) -> Lie:
    return lambda known, body: {**body, **members}


def without(*names: str) -> Lie:
    return lambda known, body: {name: one for name, one in body.items() if name not in names}


def identity(known: Known, body: Body, **members: Any) -> Body:
    return {**body, "identity": {**body["identity"], **members}}


def restated(known: Known, body: Body) -> Body:
    statement = {**body["statement"]["statement"], "changedAt": "2027-01-01T00:00:00.000Z"}
    return {**body, "statement": {**body["statement"], "statement": statement}}


def by_the_hub(known: Known, body: Body) -> Body:
    return stated(known, body, PrivateIdentity.generate(known.account), masterWrap=own_wrap(known))


def taken_over(known: Known, body: Body) -> Body:
    mine = PrivateIdentity.generate(known.account)
    master = new_key()
    public = mine.public()
    made = {
        "signingKey": b64(public.signing_key.to_bytes()),
        "hpkeKey": b64(public.hpke_key.to_bytes()),
        "sealedPrivate": mine.seal(master),
    }
    return stated(
        known,
        body,
        mine,
        own=mine,
        identity=made,
        masterCheck=key_check(master, known.account, 1),
        masterWrap=own_wrap(known),
    )


def former_of_the_hub(known: Known, body: Body) -> Body:
    check, sealed = seal_former_master(new_key(), new_key(), known.account)
    masters = [*body["formers"]["masters"], {"check": check, "sealed": sealed}]
    return {**body, "formers": {**body["formers"], "masters": masters}}


LIES: dict[str, Lie] = {
    "an older vault, as it was": lambda known, body: copy.deepcopy(known.before),
    "the vault of before zero-knowledge": lambda known, body: copy.deepcopy(known.signed_up),
    "another statement of this revision": restated,
    "no statement": without("statement"),
    "a newer revision of which nobody said anything": lambda known, body: {
        **body,
        "revision": body["revision"] + 1,
    },
    "a newer vault that the hub has stated": by_the_hub,
    "a newer vault with an identity of the hub's own": taken_over,
    "standard mode": part(mode="standard"),
    "no grants allowed": part(grants=False),
    "another wrap of the master key": lambda known, body: {**body, "masterWrap": own_wrap(known)},
    "another check value of the master key": lambda known, body: {
        **body,
        "masterCheck": key_check(new_key(), known.account, 1),
    },
    "weaker password parameters": kdf(mKib=4),
    "costlier password parameters": kdf(t=1_000),
    "another salt": kdf(salt=b64(bytes(16))),
    "a recovery wrap of the hub's own": lambda known, body: {
        **body,
        "recovery": own_recovery(known),
    },
    "no recovery wrap": without("recovery", "recoverySetAt"),
    "no former keys": without("formers"),
    "a former master key of the hub's own": former_of_the_hub,
    "another signing key": lambda known, body: identity(
        known, body, signingKey=known.other["identity"]["signingKey"]
    ),
    "another key for wraps": lambda known, body: identity(
        known, body, hpkeKey=known.other["identity"]["hpkeKey"]
    ),
    "the sealed identity of somebody else": lambda known, body: identity(
        known, body, sealedPrivate=known.other["identity"]["sealedPrivate"]
    ),
    "the vault of somebody else": lambda known, body: copy.deepcopy(known.other),
}


OLDER: Final = frozenset({"an older vault, as it was", "the vault of before zero-knowledge"})


def tell(known: Known, mouth: Mouth, lie: Lie) -> None:
    """Have the hub tell a lie about the vault, with a log that goes with it as far as it can."""
    told = lie(known, copy.deepcopy(known.now))
    revision = told.get("revision", 0)
    log = [one for one in known.log if one["statement"]["revision"] <= revision]
    if "statement" in told and revision > len(log):
        log.append(told["statement"])

    def statements(body: Body) -> Body:
        is_known = known.scene.mouth is mouth
        return {"statements": log[known.now["revision"] if is_known else 0 :]}

    mouth.lie(VAULT, lambda body: lie(known, body))
    mouth.lie(VAULT_LOG, statements)


@pytest.mark.parametrize("name", LIES)
async def test_a_device_follows_no_vault_but_its_own(known: Known, name: str) -> None:
    """Whatever does not follow, signed, from the vault that a device holds is refused by it."""
    scene = known.scene
    await is_refused(scene, lambda: tell(known, scene.mouth, LIES[name]), "HUB_DISTRUSTED")


@pytest.mark.parametrize("name", sorted(LIES.keys() - OLDER))
async def test_a_new_device_takes_no_vault_that_was_not_stated(known: Known, name: str) -> None:
    """A device that sees the account for the first time takes no vault with a part of the hub's."""
    place, mouth = known.scene.newcomer()
    tell(known, mouth, LIES[name])
    assert await known.scene.signs_in(place) == ("HUB_DISTRUSTED", None)


async def test_a_new_device_can_be_shown_an_older_vault(known: Known) -> None:
    """What stays possible: an older vault, with the password of that time, until the truth is told."""
    place, mouth = known.scene.newcomer()
    tell(known, mouth, LIES["an older vault, as it was"])
    code, device = await known.scene.signs_in(place)
    assert code == ""
    assert device is not None
    assert book_of(device).inner().keeper.standing.revision == known.before["revision"]
    mouth.honest()
    await device.sync_now()
    assert await picture(device) == await picture(known.scene.ada)


@pytest.mark.parametrize("spaces_too", [False, True])
async def test_a_new_device_can_be_shown_the_account_of_before(
    known: Known, spaces_too: bool
) -> None:
    """A copy of the account from before zero-knowledge has to be whole, and says its old mode.

    With spaces of now it is refused. Told the truth, the device that was taken in stops writing.
    """
    scene = known.scene
    place, mouth = scene.newcomer()
    tell(known, mouth, LIES["the vault of before zero-knowledge"])
    if spaces_too:
        mouth.lie(SPACES, lambda body: copy.deepcopy(scene.spaces_before))
        mouth.instead("/api/v1/me/devices", {})
    code, device = await scene.signs_in(place)
    assert code == ("" if spaces_too else "HUB_DISTRUSTED")
    if device is None:
        return
    assert (await device.status()).mode == "standard"
    mouth.honest()
    assert await code_of(device.sync_now()) == "VAULT_MOVED"
    assert (await device.status()).sync.trouble == "VAULT_MOVED"
    await device.create("notes", {"title": "Not sent"})
    pushed = len([path for path, _ in mouth.asked if path.endswith("/changes")])
    assert await code_of(device.sync_now()) == "VAULT_MOVED"
    assert len([path for path, _ in mouth.asked if path.endswith("/changes")]) == pushed


PARAMETERS: dict[str, tuple[Body, str]] = {
    "weaker": ({"mKib": 4}, "KDF_TOO_WEAK"),
    "fewer passes": ({"t": 0}, "KDF_TOO_WEAK"),
    "costlier": ({"mKib": 2**30}, "KDF_TOO_COSTLY"),
    "more passes": ({"t": 2**20}, "KDF_TOO_COSTLY"),
    "a short salt": ({"salt": b64(bytes(4))}, "CRYPTO_MALFORMED"),
    "another salt": ({"salt": b64(bytes(16))}, "INVALID_CREDENTIALS"),
}


@pytest.mark.parametrize("name", PARAMETERS)
async def test_parameters_of_the_hub_get_no_password(known: Known, name: str) -> None:
    """Before it signs in a device derives nothing cheap enough to guess by, or too dear to bear."""
    members, code = PARAMETERS[name]
    place, mouth = known.scene.newcomer()
    mouth.lie(KDF, lambda body: {**body, **members}, method="POST")
    assert await known.scene.signs_in(place) == (code, None)
    assert mouth.told
    assert bool([path for path, _ in mouth.asked if path == LOGIN]) == (name == "another salt")


@pytest.mark.parametrize("lies_on", [False, True])
async def test_a_salt_of_the_hubs_is_found_out(known: Known, lies_on: bool) -> None:
    """A hub that takes a login key under its own salt is found out by the vault's statement."""
    place, mouth = known.scene.newcomer()
    given = {"salt": b64(bytes(16))}
    mouth.lie(KDF, lambda body: {**body, **given}, method="POST")
    login_key = opened(known.scene.ada).login_key
    assert login_key is not None
    mouth.pass_on(LOGIN, lambda body: {**body, "loginKey": b64(login_key)})
    if lies_on:
        mouth.lie(VAULT, lambda body: kdf(**given)(known, body))
    assert await known.scene.signs_in(place) == ("HUB_DISTRUSTED", None)


RECOVERIES: dict[str, tuple[Lie, str]] = {
    "a recovery wrap of the hub's own": (
        lambda known, body: {**body, "recovery": own_recovery(known)},
        "HUB_DISTRUSTED",
    ),
    "no recovery wrap": (without("recovery", "recoverySetAt"), "HUB_DISTRUSTED"),
    "the wrap of an older code": (
        lambda known, body: copy.deepcopy(known.before),
        "HUB_DISTRUSTED",
    ),
    "the vault of somebody else": (
        lambda known, body: copy.deepcopy(known.other),
        "HUB_DISTRUSTED",
    ),
    "another check value": (LIES["another check value of the master key"], "HUB_DISTRUSTED"),
}


@pytest.mark.parametrize("name", RECOVERIES)
async def test_a_recovery_code_opens_no_other_vault(known: Known, name: str) -> None:
    """Whoever recovers is given nothing of the hub's own, and sets no password over it."""
    lie, code = RECOVERIES[name]
    place, mouth = known.scene.newcomer()
    tell(known, mouth, lie)
    accounts = place.host._accounts
    recovering = accounts.recover("ada", recovery_code(known.code), "another password")
    assert await code_of(recovering) == code
    assert (place.host.accounts(), _changes(mouth)) == ([], [])


async def test_a_reset_with_a_key_of_the_hubs_own_opens_nothing(known: Known) -> None:
    """In zero-knowledge mode a hub that resets all the same has no key that fits."""
    place, mouth = known.scene.newcomer()
    tokens = await book_of(known.scene.ada).hub.login(
        "ada", opened(known.scene.ada).login_key or b""
    )
    forged = {"tokens": msgspec.to_builtins(tokens), "masterKey": b64(new_key())}
    mouth.instead(RESET, forged)
    resetting = place.host._accounts.reset("ada", "token", "another password")
    assert await code_of(resetting) == "HUB_DISTRUSTED"
    assert (place.host.accounts(), _changes(mouth)) == ([], [])


async def test_a_session_of_somebody_else_is_none(known: Known) -> None:
    """A device keeps no account for which the hub gave another's session."""
    place, mouth = known.scene.newcomer()
    mouth.lie(LOGIN, lambda body: {**body, "accountId": known.scene.bob.account_id}, method="POST")
    assert await known.scene.signs_in(place) == ("HUB_DISTRUSTED", None)


async def test_a_change_that_the_hub_takes_and_drops_is_missed(known: Known) -> None:
    """A password that was changed is not changed back by putting the rows back."""
    scene = known.scene
    keeper = book_of(scene.ada).inner().keeper
    async with scene.put_back("mana.accounts", "mana.vault_statements") as rows:

        async def wish(standing: Vault) -> Wish:
            return Wish(grants=False)

        await keeper.change(wish)
        before = await picture(scene.ada)
        newest = await rows.swap()
        assert await code_of(scene.ada.sync_now()) == "HUB_DISTRUSTED"
        assert (await scene.ada.status()).sync.trouble == "HUB_DISTRUSTED"
        assert await picture(scene.ada) == before
        await rows.swap(newest)

    async def back(standing: Vault) -> Wish:
        return Wish(grants=True)

    await keeper.change(back)
    await scene.away.sync_now()


async def test_what_was_sent_counts_once(known: Known) -> None:
    """A statement and a proof that somebody between sends again is refused."""
    scene = known.scene
    hub = book_of(scene.ada).hub

    async def wish(standing: Vault) -> Wish:
        return Wish(code=True)

    await book_of(scene.ada).inner().keeper.change(wish)
    await book_of(scene.ada).inner().keeper.code_seen()
    (sent, *_) = _changes(scene.mouth)[::-1]
    assert await code_of(hub.change_vault(msgspec.convert(sent, VaultChange))) == "VAULT_MOVED"
    setup = await scene.ada.sessions.begin_totp("Telephone")
    assert setup.secret
    (asked,) = [body for path, body in scene.mouth.asked if path == FACTORS]
    assert await code_of(hub.begin_factor(msgspec.convert(asked, NewFactor))) == "PROOF_REFUSED"
    await scene.away.sync_now()


def _changes(mouth: Mouth) -> list[Body]:
    """Return the changes of the vault that a device has sent."""
    return [body for path, body in mouth.asked if path == VAULT]
