"""Stops and caps of an account: a session tightens them, and a device's signature loosens them."""

from __future__ import annotations

from dataclasses import replace

from mana.crypto.primitives import unb64
from mana.crypto.work import REVISION_MAX, REVISIONS_AHEAD_MAX, Limits, WorkWord, verify_work
from mana.domain.errors import CryptoFailed, Invalid
from mana.domain.ids import AccountId
from mana.hub.accounts.store import device_key
from mana.hub.tenants import Tenant
from mana.hub.work.store import Work, WorkStore
from mana.protocol.errors import WorkMoved, WorkNotSigned, WorkWordRefused
from mana.protocol.messages import SetWork, SignedWork, WorkState


class WorkService:
    """Answers for the work of one account at a time."""

    def __init__(self, store: WorkStore) -> None:
        self._store = store

    async def state(self, tenant: Tenant) -> WorkState:
        """Return what holds, and what a device signed last."""
        async with self._store.work(tenant) as work:
            return await work.state()

    async def set(self, tenant: Tenant, asked: SetWork) -> WorkState:
        """Tighten what holds, or put what a device signed in its place; return what holds then.

        Raises WorkNotSigned, WorkMoved, WorkWordRefused.
        """
        async with self._store.work(tenant) as work:
            if asked.signed is None:
                await self._tighten(work, asked)
            else:
                await self._obey(work, tenant.account, asked, asked.signed)
            return await work.state()

    async def _tighten(self, work: Work, asked: SetWork) -> None:
        """Let what is asked hold, if nothing of it is looser than what holds."""
        now = await work.held(stops=bool(asked.stopped))
        wanted = _wanted(asked, now.limits)
        if not now.limits.covers(wanted):
            raise WorkNotSigned("this lets more happen, and no device signed it")
        if wanted != now.limits:
            # A brake holds however often the work has moved.
            await work.put(wanted, revision=min(now.revision + 1, REVISION_MAX))

    async def _obey(
        self, work: Work, account: AccountId, asked: SetWork, signed: SignedWork
    ) -> None:
        """Let a signed word hold, if it is newer than all that was seen."""
        if (asked.stopped, asked.tokens_per_day_max, asked.cost_per_day_max) != (None, None, None):
            raise Invalid("what was signed is all that holds; name nothing beside it")
        try:
            word = WorkWord.from_wire(signed.word)
            if (word.account_id, word.hub) != (account, self._store.place.hub):
                raise WorkWordRefused("the word is for another account or hub")
            key = await device_key(work.tx, signed.signature.signer, account)
            verify_work(key, word, unb64(signed.signature.value))
        except CryptoFailed as error:
            raise WorkWordRefused(
                "the word does not verify", detail={"cause": error.code}
            ) from None
        now = await work.held(stops=word.limits.stopped)
        # A session that stops or lowers moves the revision, so that no word undoes what whoever
        # signed it did not know of.
        if word.revision <= now.revision or asked.seen not in (None, now.revision):
            raise WorkMoved("something else holds by now", detail={"revision": now.revision})
        if word.revision - now.revision > REVISIONS_AHEAD_MAX:
            raise WorkWordRefused("the word's revision is too far ahead of what holds")
        await work.put(word.limits, revision=word.revision)
        await work.put_word(word, signed.signature)


def _wanted(asked: SetWork, now: Limits) -> Limits:
    """Return what would hold after a change; -1 removes a cap, None leaves it."""
    wanted = now
    if asked.stopped is not None:
        wanted = replace(wanted, stopped=asked.stopped)
    if asked.tokens_per_day_max is not None:
        wanted = replace(wanted, tokens_per_day_max=_cap(asked.tokens_per_day_max))
    if asked.cost_per_day_max is not None:
        wanted = replace(wanted, cost_per_day_max=_cap(asked.cost_per_day_max))
    return wanted


def _cap(asked: int) -> int | None:
    return None if asked < 0 else asked
