"""A person whose vault changes: what a device makes of a wish, sent to a hub as it is or spoilt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
import msgspec

from mana.crypto.identity import PrivateIdentity
from mana.crypto.passwords import KdfParameters, derive_password_keys
from mana.crypto.primitives import b64
from mana.crypto.signatures import SigningKey
from mana.crypto.vaults import VaultStatement, recovery_keys, sign_statement
from mana.device.vault import VaultKeys
from mana.device.vaults import NewPassword, Prepared, Wish, prepare
from mana.protocol.messages import (
    DeviceCertificate,
    DevicesAnswer,
    SecurityEvents,
    SignedStatement,
    Tokens,
    Vault,
    VaultChange,
)
from mana.protocol.messages import KdfParameters as WireKdf
from mana.testing.accounts import CHEAP
from mana.testing.postgres import Database, connected
from tests.hub.client import Person, Served

VAULT = "/api/v1/me/vault"


@dataclass
class Vaulted:
    """Someone who is signed in and whose vault is open, on a device that follows it."""

    person: Person
    keys: VaultKeys
    unlock_key: bytes
    code: bytes | None = None

    async def vault(self) -> Vault:
        answer = await self.person.call("GET", VAULT)
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=Vault)

    async def devices(self) -> list[DeviceCertificate]:
        answer = await self.person.call("GET", "/api/v1/me/devices")
        return msgspec.json.decode(answer.content, type=DevicesAnswer).devices

    async def prepared(self, **wish: Any) -> Prepared:
        """Return the change that a device would send for a wish."""
        if wish.get("master"):
            wish.setdefault("unlock_key", self.unlock_key)
        if wish.get("identity"):
            wish.setdefault("devices", await self.devices())
        standing = await self.vault()
        return prepare(standing, self.keys, Wish(**wish), now_ms=self.person.served.clock.now_ms)

    async def put(self, change: VaultChange) -> httpx.Response:
        return await self.person.call("PUT", VAULT, change)

    async def changed(self, **wish: Any) -> Prepared:
        """Let a change stand, and go on with the keys that it made."""
        made = await self.prepared(**wish)
        answer = await self.put(made.change)
        assert answer.status_code == 200, answer.text
        self.keys = made.keys
        self.code = made.code or self.code
        if wish.get("password") is not None:
            self.unlock_key = wish["password"].keys.unlock_key
        return made

    async def events(self) -> list[tuple[str, bool, str]]:
        """Return the security log, oldest first: action, whether it was done, detail."""
        answer = await self.person.call("GET", "/api/v1/me/security?limit=200")
        assert answer.status_code == 200, answer.text
        found = msgspec.json.decode(answer.content, type=SecurityEvents).events
        return [(one.action, one.ok, one.detail) for one in reversed(found)]

    async def standing_as(self, made: Prepared) -> bool:
        """Say whether the vault on the hub is the one that a change names, in every part."""
        found = await self.vault()
        return (
            msgspec.structs.replace(found, challenge="", recovery_set_at=made.vault.recovery_set_at)
            == made.vault
        )


def vaulted(person: Person, *, mode: str = "standard") -> Vaulted:
    """Return a person with the keys of their sign-up."""
    account = person.account
    keys = VaultKeys(mode, account.master_key, account.identity, account.login_key)
    return Vaulted(person, keys, account.unlock_key)


async def signed_up(served: Served, login: str = "ada") -> Vaulted:
    return vaulted(await served.sign_up(login))


async def in_zero_knowledge(served: Served, login: str = "ada") -> Vaulted:
    """Return a person who has switched to zero-knowledge mode."""
    found = await signed_up(served, login)
    await found.changed(mode="zero-knowledge", master=True, identity=True, code=True)
    return found


def new_password(login: str, password: str) -> NewPassword:
    kdf = KdfParameters.new(floor=CHEAP)
    keys = derive_password_keys(password, login, kdf, floor=CHEAP)
    return NewPassword(msgspec.convert(kdf.to_wire(), WireKdf), keys)


def restated(
    change: VaultChange,
    key: SigningKey,
    *,
    own: SigningKey | None = None,
    wire: Mapping[str, Any] | None = None,
    **stated: Any,
) -> VaultChange:
    """Return a change whose statement says something else, signed by `key`.

    `own`: signs too, as a new identity does. `wire`: members that the statement's form refuses.
    """
    statement = replace(VaultStatement.from_wire(change.signed.statement), **stated)
    made = SignedStatement(
        statement={**statement.to_wire(), **(wire or {})},
        signature=b64(sign_statement(key, statement)),
        own_signature=None if own is None else b64(sign_statement(own, statement)),
    )
    return msgspec.structs.replace(change, signed=made)


def recovery_key(code: bytes, login: str) -> str:
    """Return the key that signs in with a recovery code."""
    return b64(recovery_keys(code, login).login_key)


def session_of(served: Served, person: Person, answer: httpx.Response) -> Person:
    """Return the same person in the session that an answer began."""
    content = msgspec.json.decode(answer.content)
    tokens = msgspec.convert(content.get("tokens", content), Tokens)
    return Person(served, person.account, tokens)


def stranger(account_id: str) -> PrivateIdentity:
    """Return an identity that somebody made for an account of which they know nothing."""
    return PrivateIdentity.generate(account_id)


async def until_waiting(database: Database, number: int = 1, *tasks: asyncio.Task[Any]) -> None:
    """Return once so many wait for a lock in this database, or one of the tasks is done."""
    query = (
        "select count(*) from pg_stat_activity"
        " where wait_event_type = 'Lock' and datname = current_database()"
    )
    async with connected(database.owner_url) as owner:
        waiting = 0
        while waiting < number and not any(task.done() for task in tasks):
            await asyncio.sleep(0.01)
            waiting = await owner.fetchval(query)
