"""The chain of a vault's statements: what follows is taken, and nothing else, whoever says it."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mana.crypto.identity import PrivateIdentity
from mana.crypto.keys import SpaceKeyName, private_key, wrap_space_key
from mana.crypto.passwords import PasswordKeys
from mana.crypto.primitives import b64
from mana.crypto.vaults import VaultStatement, new_challenge, sign_statement
from mana.device.errors import PrivateKeyMissing
from mana.device.vault import (
    OpenedVault,
    VaultKeys,
    found_space,
    new_account,
    new_kdf,
    open_with_master,
)
from mana.device.vaults import (
    STANDARD,
    ZERO_KNOWLEDGE,
    FormersFull,
    NewPassword,
    Prepared,
    Wish,
    head_of,
    prepare,
    require_alone,
    require_following,
    statement_of,
)
from mana.domain.errors import Invalid
from mana.domain.ids import AccountId
from mana.protocol.messages import Formers, KeyWrap, SignedStatement, SpaceInfo, Vault
from mana.protocol.replication import HubDistrusted
from mana.testing.accounts import CHEAP, PASSWORD
from mana.testing.postgres import Database
from tests.device.rig import Rig, note, rig_on, titles
from tests.device.vaulting import security, standing
from tests.hub.client import START_MS

WISHES: Final = ("password", "master", "identity", "code", "no-code", "private", "open", "grants")


@cache
def signed_up() -> tuple[Vault, VaultKeys]:
    keys = PasswordKeys(os.urandom(32), os.urandom(32))
    made = new_account(
        "ada", keys, new_kdf(CHEAP), mode=STANDARD, demo=False, invite=None, now_ms=START_MS
    )
    return msgspec.structs.replace(made.wire, challenge=new_challenge()), made.vault.keys


def wish(name: str, vault: Vault) -> Wish:
    """Return one wish that the vault as it stands allows; something harmless else."""
    is_private = vault.mode == ZERO_KNOWLEDGE
    match name:
        case "password":
            keys = PasswordKeys(os.urandom(32), os.urandom(32))
            return Wish(password=NewPassword(new_kdf(CHEAP), keys))
        case "master":
            return Wish(master=True, code=True, unlock_key=os.urandom(32))
        case "identity":
            return Wish(identity=True)
        case "code":
            return Wish(code=True)
        case "no-code" if not is_private:
            return Wish(code=False)
        case "private" if not is_private:
            return Wish(
                mode=ZERO_KNOWLEDGE,
                master=True,
                identity=True,
                code=True,
                grants=False,
                unlock_key=os.urandom(32),
            )
        case "open" if is_private:
            return Wish(mode=STANDARD, grants=True)
        case _:
            return Wish(grants=not vault.grants)


def lived(names: list[str]) -> tuple[list[Prepared], list[Vault]]:
    """Return the changes of an account, and the vault after each, as signed up first."""
    vault, keys = signed_up()
    changes, vaults = [], [vault]
    for name in names:
        made = prepare(vault, keys, wish(name, vault), now_ms=START_MS)
        vault, keys = msgspec.structs.replace(made.vault, challenge=new_challenge()), made.keys
        changes.append(made)
        vaults.append(vault)
    return changes, vaults


def log(changes: list[Prepared], after: int, upto: int) -> list[SignedStatement]:
    return [one.change.signed for one in changes[after:upto]]


lives = st.lists(st.sampled_from(WISHES), min_size=1, max_size=5)


@given(names=lives)
@settings(max_examples=25, deadline=None)
def test_every_later_vault_follows_from_every_earlier_one(names: list[str]) -> None:
    """Whatever is changed, a device that saw any state takes any later one, and a new device the
    newest; each opens with its master key, and every former key with it."""
    changes, vaults = lived(names)
    for after, earlier in enumerate(vaults):
        for upto in range(after, len(vaults)):
            require_following(earlier, vaults[upto], log(changes, after, upto))
            if upto > after:
                with pytest.raises(HubDistrusted):
                    require_following(vaults[upto], earlier, [])
    for upto, vault in enumerate(vaults):
        require_alone(vault, log(changes, 0, upto))
    for made in changes:
        opened = open_with_master(made.vault, made.keys.master_key)
        assert opened.keys.former_masters == made.keys.former_masters
        assert [one.public() for one in opened.identities] == [
            one.public() for one in (made.keys.identity, *made.keys.former_identities)
        ]


@given(names=lives)
@settings(max_examples=25, deadline=None)
def test_the_master_key_is_sent_to_a_standard_vault_alone(names: list[str]) -> None:
    """Never where the mode that comes is zero-knowledge; else exactly where the hub lacks it."""
    changes, vaults = lived(names)
    for before, made in zip(vaults, changes, strict=False):
        is_new = made.vault.master_check != before.master_check
        lacks = is_new or before.mode == ZERO_KNOWLEDGE
        assert (made.change.master_key is not None) == (made.vault.mode == STANDARD and lacks)
        assert made.vault.mode == STANDARD or made.vault.recovery is not None


def _another(vault: Vault, part: str) -> Vault:
    """Return a vault with one part that nobody stated."""
    first = signed_up()[0]
    match part:
        case "master_wrap" | "master_check":
            return cast("Vault", msgspec.structs.replace(vault, **{part: f"{first.master_wrap}x"}))
        case "mode":
            mode = STANDARD if vault.mode == ZERO_KNOWLEDGE else ZERO_KNOWLEDGE
            return msgspec.structs.replace(vault, mode=mode)
        case "kdf":
            return msgspec.structs.replace(vault, kdf=new_kdf(CHEAP))
        case "grants":
            return msgspec.structs.replace(vault, grants=not vault.grants)
        case "recovery":
            return msgspec.structs.replace(vault, recovery=None)
        case "formers":
            return msgspec.structs.replace(vault, formers=Formers())
        case "signing_key" | "hpke_key" | "sealed_private":
            identity = msgspec.structs.replace(vault.identity, **{part: b64(b"x" * 32)})
            return msgspec.structs.replace(vault, identity=identity)
        case "statement":
            return msgspec.structs.replace(vault, statement=None)
        case "revision":
            return msgspec.structs.replace(vault, revision=vault.revision + 1)
        case _:
            return msgspec.structs.replace(vault, account_id="another")


@pytest.mark.parametrize(
    "part",
    [
        "master_wrap",
        "master_check",
        "mode",
        "kdf",
        "grants",
        "recovery",
        "formers",
        "signing_key",
        "hpke_key",
        "sealed_private",
        "statement",
        "revision",
        "account_id",
    ],
)
def test_a_part_that_is_not_stated_is_refused(part: str) -> None:
    """A vault with any one part of another value than its statement names is not taken, neither
    by a device that follows nor by a new one."""
    changes, vaults = lived(["private", "password"])
    forged = _another(vaults[-1], part)
    assert forged != vaults[-1]
    for take in (
        lambda: require_following(vaults[0], forged, log(changes, 0, 2)),
        lambda: require_following(vaults[2], forged, []),
        lambda: require_alone(forged, log(changes, 0, 2)),
    ):
        with pytest.raises(HubDistrusted):
            take()


@pytest.mark.parametrize("part", ["mode", "kdf", "master_wrap", "sealed_private"])
def test_what_was_signed_up_stands_until_it_is_stated(part: str) -> None:
    """Before the first statement, a vault with another part than was seen is not taken."""
    vault = signed_up()[0]
    require_following(vault, msgspec.structs.replace(vault, challenge=new_challenge()), [])
    with pytest.raises(HubDistrusted):
        require_following(vault, _another(vault, part), [])


def _forged(made: Prepared, vault: Vault, by: PrivateIdentity) -> tuple[Vault, SignedStatement]:
    """Return a vault and its statement signed by another hand."""
    read = VaultStatement.from_wire(made.change.signed.statement)
    statement = statement_of(
        vault, previous=read.previous, challenge=read.challenge, changed_at=read.changed_at
    )
    signed = SignedStatement(
        statement=statement.to_wire(), signature=b64(sign_statement(by.signing_key, statement))
    )
    return msgspec.structs.replace(vault, statement=signed), signed


def test_a_chain_with_anything_else_in_it_is_refused() -> None:
    """A missing, doubled or swapped statement, a fork at a known revision, another signature and
    a new identity that the old one did not sign: none of them leads anywhere."""
    changes, vaults = lived(["code", "password", "identity", "grants"])
    whole = log(changes, 0, 4)
    broken: list[list[SignedStatement]] = [
        [],
        whole[1:],
        whole[:-1],
        [whole[0], whole[0], *whole[2:]],
        [whole[1], whole[0], *whole[2:]],
    ]
    for one in broken:
        with pytest.raises(HubDistrusted):
            require_following(vaults[0], vaults[4], one)
        with pytest.raises(HubDistrusted):
            require_alone(vaults[4], one)
    eve = PrivateIdentity.generate(vaults[0].account_id)
    forged, signed = _forged(changes[1], changes[1].vault, eve)
    with pytest.raises(HubDistrusted):
        require_following(vaults[1], forged, [signed])
    unsigned = msgspec.structs.replace(whole[2], own_signature=None)
    with pytest.raises(HubDistrusted):
        require_following(vaults[2], vaults[3], [unsigned])
    fork = prepare(vaults[1], changes[0].keys, wish("grants", vaults[1]), now_ms=START_MS)
    require_following(vaults[1], fork.vault, [fork.change.signed])
    with pytest.raises(HubDistrusted):
        require_following(vaults[2], fork.vault, [])
    with pytest.raises(HubDistrusted):
        require_following(vaults[2], vaults[4], [fork.change.signed, *whole[3:]])


def test_a_new_device_takes_a_chain_whose_first_identity_is_gone() -> None:
    """Once a former identity was dropped, what it signed is taken for the word of the one that it
    names, which signed it too."""
    changes, vaults = lived(["identity"])
    dropped = msgspec.structs.replace(changes[0].vault, formers=Formers(), revision=2)
    statement = statement_of(
        dropped, previous=head_of(vaults[1]).hash, challenge="", changed_at="2026-01-01T00:00:00Z"
    )
    key = changes[0].keys.identity.signing_key
    second = SignedStatement(
        statement=statement.to_wire(), signature=b64(sign_statement(key, statement))
    )
    found = msgspec.structs.replace(dropped, statement=second)
    require_alone(found, [changes[0].change.signed, second])
    stranger = SignedStatement(
        statement=changes[0].change.signed.statement,
        signature=changes[0].change.signed.signature,
        own_signature=second.signature,
    )
    with pytest.raises(HubDistrusted):
        require_alone(found, [stranger, second])


def test_what_a_change_needs_is_asked_for() -> None:
    """Another master key needs the password, zero-knowledge mode a code, and there is an end to
    the former keys that an account carries."""
    vault, keys = signed_up()
    with pytest.raises(Invalid):
        prepare(vault, keys, Wish(master=True), now_ms=START_MS)
    with pytest.raises(Invalid):
        prepare(vault, keys, Wish(mode=ZERO_KNOWLEDGE), now_ms=START_MS)
    coded = prepare(vault, keys, Wish(code=True), now_ms=START_MS)
    alone = Wish(master=True, unlock_key=os.urandom(32))
    bare = prepare(coded.vault, coded.keys, alone, now_ms=START_MS)
    assert bare.vault.recovery is None, "the code before wraps the master key before"
    many = msgspec.structs.replace(vault, formers=Formers())
    full = VaultKeys(keys.mode, keys.master_key, keys.identity, None, (os.urandom(32),) * 16)
    more = Wish(master=True, unlock_key=os.urandom(32))
    with pytest.raises(FormersFull):
        prepare(many, full, more, now_ms=START_MS)
    made = prepare(many, full, replace(more, spares_master=True), now_ms=START_MS)
    assert len(made.vault.formers.masters) == len(made.keys.former_masters) == 16
    assert made.keys.former_masters[0] == keys.master_key


def test_a_former_master_key_brings_no_private_key_back() -> None:
    """Whoever knows a former master key, as the hub does after the switch to zero-knowledge mode,
    cannot have anything sealed under a key that it gives; what is there is read with it."""
    before, after = os.urandom(32), os.urandom(32)
    identity = PrivateIdentity.generate(str(uuid.uuid4()))
    info, _ = found_space(identity, before, "team", now_ms=START_MS)
    space_id = info.space_id

    def vault() -> OpenedVault:
        return OpenedVault(
            account_id=AccountId(identity.account_id),
            login="ada",
            mode=ZERO_KNOWLEDGE,
            login_key=None,
            master_key=after,
            identity=identity,
            former_masters=[before],
        )

    def wrap(master_key: bytes, version: int) -> KeyWrap:
        name = SpaceKeyName("p", space_id, version, identity.account_id)
        key = private_key(master_key, space_id, version)
        wrapped = wrap_space_key(key, identity.public().hpke_key, name)
        return KeyWrap(kind="p", version=version, wrapped=wrapped)

    def given(*wraps: KeyWrap) -> SpaceInfo:
        return msgspec.structs.replace(info, wraps=[*info.wraps, *wraps])

    opened = vault()
    space = opened.take_space(info)
    assert (space.owes_private_key, set(space.private_keys)) == (True, {1})
    with pytest.raises(PrivateKeyMissing):
        _ = space.private_version
    assert opened.new_private_key(space_id).version == 2
    later = opened.take_space(given(wrap(before, 2)))
    assert later.owes_private_key
    assert vault().take_space(given(wrap(after, 2))).private_version == 2
    for forged in (
        [wrap(after, 2), wrap(before, 3)],
        [wrap(after, 2), wrap(os.urandom(32), 3)],
        [wrap(os.urandom(32), 2)],
    ):
        with pytest.raises(HubDistrusted):
            vault().take_space(given(*forged))
    unknown = msgspec.structs.replace(info, wraps=[info.wraps[0], wrap(os.urandom(32), 1)])
    with pytest.raises(HubDistrusted):
        vault().take_space(unknown)


# Against a hub that lies


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


LIES: Final = (
    "older",
    "forgotten",
    "mode",
    "wrap",
    "identity",
    "recovery",
    "grants",
    "statement",
    "account",
    "log",
)


def _lie(lie: str, vault: dict[str, Any], older: dict[str, Any]) -> dict[str, Any]:
    """Return what the hub says of a vault instead; a lie about the log leaves the vault."""
    match lie:
        case "older":
            return older
        case "forgotten":
            return {**vault, "statement": None, "revision": 0}
        case "mode":
            return {**vault, "mode": "zero-knowledge"}
        case "wrap":
            return {**vault, "masterWrap": f"{vault['masterWrap']}x"}
        case "identity":
            return {**vault, "identity": {**vault["identity"], "signingKey": b64(b"x" * 32)}}
        case "recovery":
            return {**vault, "recovery": None}
        case "grants":
            return {**vault, "grants": True}
        case "statement":
            return {**vault, "statement": older["statement"]}
        case "account":
            return {**vault, "accountId": "another"}
        case _:
            return vault


@pytest.mark.anyio
@pytest.mark.postgres
async def test_the_vault_has_the_password_parameters_that_were_used(rig: Rig) -> None:
    """A hub that names other parameters in the vault than before log-in makes no new device."""
    machine, other = rig.machine(), rig.machine()
    await machine.sign_up()

    async def falsify(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.url.path != "/api/v1/me/vault":
            return None
        response = await under.handle_async_request(request)
        body = msgspec.json.decode(await response.aread())
        body["kdf"] = msgspec.to_builtins(new_kdf(CHEAP))
        return httpx.Response(response.status_code, json=body)

    other.wire.on_request = falsify
    with pytest.raises(HubDistrusted):
        await other.sign_in()
    assert other.accounts.known() == []


@pytest.mark.anyio
@pytest.mark.postgres
@pytest.mark.parametrize("lie", LIES)
async def test_a_hub_that_lies_about_the_vault_is_found_out(rig: Rig, lie: str) -> None:
    """A lower revision, a statement that is missing or of another vault, and any part that is not
    as stated: the device sends nothing, says HUB_DISTRUSTED and goes on once the hub is honest;
    a new device is not even made."""
    machine, other, third = rig.machine(), rig.machine(), rig.machine()
    book, there = await machine.sign_up(), await other.sign_in()
    guard = security(book, machine)
    await guard.new_recovery_code()
    await there.sync_now()
    older = msgspec.to_builtins(await book.hub.vault())
    await guard.allow_grants(False)
    if lie == "older":
        await there.sync_now()

    async def falsify(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        path = request.url.path
        if not path.endswith(("/me/vault", "/me/vault/log")):
            return None
        response = await under.handle_async_request(request)
        body = msgspec.json.decode(await response.aread())
        if path.endswith("/me/vault"):
            body = _lie(lie, body, older)
        elif lie == "log":
            body["statements"] = []
        return httpx.Response(response.status_code, json=body)

    seen = standing(there)
    other.wire.on_request = third.wire.on_request = falsify
    await note(there, "n1", title="waits")
    for _ in range(2):
        with pytest.raises(HubDistrusted):
            await there.sync_now()
    status = await there.status()
    assert (status.trouble, status.waiting) == ("HUB_DISTRUSTED", 1)
    assert standing(there) == seen
    with pytest.raises(HubDistrusted):
        await security(there, other).refresh(PASSWORD)
    if lie != "older":  # who never saw the account can be shown an older vault
        with pytest.raises(HubDistrusted):
            await third.sign_in()
        assert third.accounts.known() == []
    other.wire.on_request = None
    assert (await there.sync_now()).waiting == 0
    await book.sync_now()
    assert await titles(book) == {"n1": "waits"}
