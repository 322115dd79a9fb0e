"""The wraps of master keys under the hub's KEK, of all accounts; through the doors made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mana.hub.db import Tenancy, load_queries, retried
from mana.hub.secrets import KekRing

Q: Final = load_queries("mana.hub.operating")


class KekStore:
    """Makes wraps anew, a batch in a transaction."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def left(self, kek_id: str) -> int:
        """Return how many wraps name another KEK than this one."""
        async with self._tenancy.door() as tx:
            found: int = await tx.value(Q["kek_left"], kek_id)
        return found

    async def rewrap(self, keks: KekRing, kek_id: str, limit: int) -> int:
        """Bring some wraps under the KEK in force, which is `kek_id`; return how many.

        Raises SecretsUnusable, and changes none of them, if one does not open.
        """

        async def once() -> int:
            async with self._tenancy.door() as tx:
                rows = await tx.all(Q["kek_batch"], kek_id, limit)
                for row in rows:
                    account = row["account_id"]
                    master_key = keks.unwrap(row["kek_wrap"], row["kek_id"], account)
                    made = keks.wrap(master_key, account)
                    await tx.execute(Q["set_kek_wrap"], account, made.wrapped, made.kek_id)
            return len(rows)

        return await retried(once)

    async def finish(self, kek_id: str, destroy: Callable[[], None]) -> bool:
        """Call `destroy` if no wrap names another KEK; return whether it was called.

        Every transaction that wraps holds the lock until it commits, so none can commit later
        under a KEK that it read before; those that begin later read the file anew.
        """
        async with self._tenancy.door() as tx:
            await tx.value(Q["hold_kek"])
            if await tx.value(Q["kek_left"], kek_id):
                return False
            destroy()
        return True
