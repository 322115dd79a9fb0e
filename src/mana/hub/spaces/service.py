"""Spaces, between the edge and the store."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from mana.domain.errors import Invalid, NotFound
from mana.domain.spaces import SHARED_TYPES
from mana.hub.accounts.founding import check_space, check_wrap
from mana.hub.spaces.store import SpaceStore
from mana.hub.sync.service import space_of
from mana.hub.tenants import Tenant
from mana.protocol.messages import (
    CloseSpace,
    DevicesAnswer,
    MembershipAppend,
    NewSpace,
    PrivateKeys,
    SpaceInfo,
    SpacesAnswer,
)

_KEY: Final = re.compile(r"[sp][1-9][0-9]{0,8}")


class SpaceService:
    """What members ask about their spaces, and how they change who is in them."""

    def __init__(self, store: SpaceStore, *, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._now_ms = now_ms

    async def spaces(self, tenant: Tenant) -> SpacesAnswer:
        """Return the spaces of the account, and those that it is no longer in."""
        return await self._store.spaces(tenant)

    async def devices(self, tenant: Tenant, space: str) -> DevicesAnswer:
        """Return the devices of the members of a space."""
        return await self._store.devices(tenant, space_of(space))

    async def create(self, tenant: Tenant, new: NewSpace) -> SpaceInfo:
        """Found a shared space with the account as its only owner."""
        signing_key, hpke_key = await self._store.identity(tenant)
        checked = check_space(new, tenant.account, signing_key, hpke_key)
        if checked.entry.space_type not in SHARED_TYPES:
            raise Invalid("an account has one personal space and one user scope")
        return await self._store.create(tenant, checked, now_ms=self._now_ms())

    async def append(self, tenant: Tenant, space: str, append: MembershipAppend) -> SpaceInfo:
        """Append the next entry of a membership log."""
        return await self._store.append(tenant, space_of(space), append, now_ms=self._now_ms())

    async def close(self, tenant: Tenant, space: str, closing: CloseSpace) -> None:
        """Close a space and remove everything of it."""
        await self._store.close(tenant, space_of(space), closing.entry, now_ms=self._now_ms())

    async def add_private_keys(self, tenant: Tenant, space: str, keys: PrivateKeys) -> None:
        """Keep the account's own private keys of a space; raise ProofRefused."""
        for wrap in keys.wraps:
            if wrap.kind != "p":
                raise Invalid("only private keys are an account's own to add")
            check_wrap(wrap.wrapped)
        await self._store.add_private_keys(tenant, space_of(space), keys)

    async def retire_key(self, tenant: Tenant, space: str, key: str) -> None:
        """Forget the account's own wrap of a key, by its name in envelopes: `s3`, `p1`."""
        if _KEY.fullmatch(key) is None:
            raise NotFound("no such key is kept here")
        await self._store.retire_key(
            tenant, space_of(space), key[0], int(key[1:]), now_ms=self._now_ms()
        )
