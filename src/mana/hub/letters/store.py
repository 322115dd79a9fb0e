"""Rows of letters: who wants them, sealed addresses, and which letter is due."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mana.hub.db import Row, Tenancy, Transaction, load_queries
from mana.hub.tenants import Tenant

Q: Final = load_queries("mana.hub.letters")
CHANNEL: Final = "mana_letters"


@dataclass(frozen=True, slots=True)
class Wish:
    """What an account asked for; the address as it is sealed."""

    address: str = field(repr=False)
    confirmed: bool
    enabled: bool


@dataclass(frozen=True, slots=True)
class DueLetter:
    """A letter to be sent; `attempts` counts this one. `code`: sealed, of one that brings a code."""

    account_id: str
    address: str = field(repr=False)
    attempts: int
    code: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AskedCode:
    """A code for an address. `place`: by which the address is counted, for whomever it is."""

    address: str = field(repr=False)
    place: bytes = field(repr=False)
    code: str = field(repr=False)
    code_hash: bytes = field(repr=False)


async def letter_waits(tx: Transaction) -> None:
    """Let a letter go to the account of this transaction, if it wants letters.

    At most one is on its way, and an hour lies between two.
    """
    await tx.execute(Q["wait"])


class LetterStore:
    """The only code that speaks SQL about letters, but for `letter_waits`."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def wish(self, tenant: Tenant) -> Wish | None:
        """Return what the account asked for."""
        async with self._tenancy.transaction(tenant) as tx:
            return _wish(await tx.one(Q["one"]))

    async def ask(
        self, tenant: Tenant, asked: AskedCode, *, codes_max: int, codes_to_max: int
    ) -> bool:
        """Keep an address that is not confirmed yet, and let its code go out.

        False: too many codes went out for this account within an hour. Where as many as
        `codes_to_max` went to the address within a day, none goes out, and nothing tells of it.
        """
        async with self._tenancy.transaction(tenant) as tx:
            is_asked = await tx.value(
                Q["ask"], asked.address, asked.code_hash, codes_max, asked.place
            )
            if is_asked:
                await tx.execute(Q["post_code"], asked.code, asked.place, codes_to_max)
            return bool(is_asked)

    async def try_code(self, tenant: Tenant, *, tries_max: int) -> bytes | None:
        """Count a try and return the hash of the code, None if none is in force any more.

        Committed by itself, so that a try counts whatever becomes of it.
        """
        async with self._tenancy.transaction(tenant) as tx:
            found: bytes | None = await tx.value(Q["try"], tries_max)
            return found

    async def confirm(self, tenant: Tenant, code_hash: bytes) -> bool:
        """Take the address that this code went to as the account's, and begin to write to it.

        False: another address was given meanwhile.
        """
        async with self._tenancy.transaction(tenant) as tx:
            return bool(await tx.value(Q["confirm"], code_hash))

    async def switch(self, tenant: Tenant, *, enabled: bool) -> bool:
        """Switch letters on or off; False: there is no confirmed address."""
        async with self._tenancy.transaction(tenant) as tx:
            return bool(await tx.value(Q["switch"], enabled))

    async def forget(self, tenant: Tenant) -> None:
        """Remove the address and switch letters off; what went out within the hour still counts."""
        async with self._tenancy.transaction(tenant) as tx:
            await tx.execute(Q["forget"])

    async def take(self, limit: int) -> list[DueLetter]:
        """Take letters that are due; what is not ended comes again, later each time."""
        async with self._tenancy.door() as tx:
            rows = await tx.all(Q["take"], limit)
        return [
            DueLetter(row["account_id"], row["address"], row["attempts"], row["code"])
            for row in rows
        ]

    async def end(self, account_id: str, *, sent: bool, place: bytes | None = None) -> None:
        """Say that a letter was sent, to an address that is counted by `place`, or is given up."""
        async with self._tenancy.door() as tx:
            await tx.value(Q["end"], account_id, sent, place)

    async def end_code(self, account_id: str, code: str) -> None:
        """Say that a code was sent, or can never be."""
        async with self._tenancy.door() as tx:
            await tx.value(Q["end_code"], account_id, code)

    async def wait_ms(self) -> int | None:
        """Return how long until the next letter is due; None: none is."""
        async with self._tenancy.door() as tx:
            found = await tx.value(Q["next"])
        return None if found is None else max(0, int(found))


def _wish(row: Row | None) -> Wish | None:
    return None if row is None else Wish(row["address"], row["confirmed"], row["enabled"])
