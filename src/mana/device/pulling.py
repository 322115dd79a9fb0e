"""Pulls what is new of a space, checked before any of it is taken.

Normative: docs/protocol/sync.md, 5 and 8.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mana.crypto.authority import NotAMember, facts_of
from mana.crypto.primitives import unb64
from mana.crypto.signatures import verify_change
from mana.device.ends import CLOCK_OFFSET, Ends
from mana.device.known_spaces import KnownSpaces
from mana.device.renewals import differs, resealer, restamper
from mana.device.replica import HUB_TIME, Space, Tx, Watch
from mana.device.resending import resender
from mana.device.views import Notice
from mana.domain.clock import DRIFT_MS_MAX, Stamp, observe, parse_stamp
from mana.domain.errors import CryptoFailed, Invalid, TooLarge
from mana.protocol.messages import (
    PULL_LIMIT_MAX,
    ChangeMessage,
    LoggedChange,
    PullAnswer,
    StateRecord,
)
from mana.protocol.replication import (
    HubDistrusted,
    check_authors,
    check_pull,
    check_state,
    newest_stamp,
    own_flips,
    time_of,
)

_HUB_TIME_STEP_MS: Final = 60_000


class Pulling:
    """The way from the hub. `known` names the tables that are installed here."""

    def __init__(self, ends: Ends, spaces: KnownSpaces, known: frozenset[str]) -> None:
        self._ends = ends
        self._spaces = spaces
        self._known = known

    async def pull(self, space_id: str) -> None:
        """Read a space's state if it is new, and its log from the cursor on."""
        while True:
            space = await self._ends.replica.read(lambda tx: tx.space(space_id))
            if space is None or space.cursor is not None:
                break
            await self._pull_state(space)
        limit = PULL_LIMIT_MAX
        more = True
        while more:
            space = await self._ends.replica.read(lambda tx: tx.space(space_id))
            if space is None or space.cursor is None:
                return
            try:
                answer = await self._ends.hub.pull(space_id, space.cursor, limit)
            except TooLarge:
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            check_pull(
                answer,
                after=space.cursor,
                limit=limit,
                space_type=space.type,
                now_ms=self._ends.now_ms(),
            )
            await self._take_changes(space, answer)
            more = answer.more
        await self._fetch_wanted(space_id)

    async def _fetch_wanted(self, space_id: str) -> None:
        """Ask for the whole of records that were restored after this device let go of them."""
        keys = await self._ends.replica.read(lambda tx: tx.wanted(space_id))
        for key in keys:
            space = await self._ends.replica.read(lambda tx: tx.space(space_id))
            if space is None:
                return
            answer = await self._ends.hub.record_state(space_id, *key)
            check_state(answer, space_type=space.type, now_ms=self._ends.now_ms())
            check_authors(answer.records, account_id=self._ends.vault.account_id)
            if [(one.table, one.id) for one in answer.records] not in ([], [key]):
                raise HubDistrusted("the hub answered another record than was asked for")
            found = answer.records[0] if answer.records else None
            hub_ms = time_of(answer.hub_time)
            await self._ends.replica.write(
                lambda tx, key=key, found=found, hub_ms=hub_ms: tx.take_record(  # type: ignore[misc]
                    space_id, key, found, hub_ms=hub_ms
                )
            )
        if keys:
            await self._ends.announce()

    async def _verify_flips(self, space_id: str, flips: list[ChangeMessage]) -> None:
        """Raise HubDistrusted unless devices of this account signed these flips of its records.

        A hub that could show a private record as shared would have its author's own device seal
        the next edit for everybody.
        """
        signers = {flip.signature.signer for flip in flips if flip.signature is not None}
        await self._spaces.meet(space_id, signers)
        authority = self._spaces.authority(space_id)
        for flip in flips:
            signature = flip.signature
            if signature is None:
                raise HubDistrusted("a record of one's own is shown to others by nobody's word")
            newest = max((write.at for write in flip.fields.values()), default="")
            try:
                account, key = authority.signer(signature.signer, newest=newest)
                if account != self._ends.vault.account_id:
                    raise NotAMember("another account's device")
                verify_change(key, facts_of(space_id, flip), unb64(signature.value))
            except NotAMember:
                raise HubDistrusted(
                    "a record of one's own is shown to others by nobody's word"
                ) from None
            except CryptoFailed:
                raise HubDistrusted("the signature of a flip does not hold") from None

    async def _take_changes(self, space: Space, answer: PullAnswer) -> None:
        flips = own_flips(answer.changes, account_id=self._ends.vault.account_id)
        if flips:
            await self._verify_flips(space.space, flips)
        hub_ms = time_of(answer.hub_time)
        newest = newest_stamp(answer.changes)
        watch = Watch(
            self._ends.vault.account_id,
            self._ends.sealer.device.device_id,
            hub_ms,
            differs(self._ends.sealer, space.space),
        )
        anew, restamp = resealer(self._ends.sealer), restamper(self._ends.sealer, hub_ms)

        def work(tx: Tx) -> bool | None:
            self._follow_hub(tx, hub_ms)
            standing = tx.space(space.space)
            if standing is None or standing.cursor != space.cursor:
                return None  # another process took this page meanwhile
            if newest is not None:
                self._observe(tx, newest, hub_ms)
            if answer.cursor == space.cursor:
                return None
            return tx.take_changes(
                space.space,
                answer.changes,
                answer.cursor,
                known=self._known.__contains__,
                hidden=answer.hidden,
                watch=watch,
                anew=anew,
                restamp=restamp,
            )

        overwrote = await self._ends.replica.write(work)
        if overwrote is None:
            return
        await self._ends.announce()
        if overwrote:
            self._ends.emit(Notice("conflicts"))
        await self._spaces.meet(space.space, _signers_of_changes(answer.changes))

    async def _pull_state(self, space: Space) -> None:
        try:
            answer = await self._ends.hub.state(space.space, space.page)
        except Invalid:
            if space.page is None:
                raise
            # The hub does not know this page any more: read the state from its beginning.
            await self._ends.replica.write(lambda tx: tx.restart_state(space.space))
            return
        check_state(answer, space_type=space.type, now_ms=self._ends.now_ms())
        check_authors(answer.records, account_id=self._ends.vault.account_id)
        hub_ms = time_of(answer.hub_time)
        # The first page's head counts: it was read before any record of the state.
        head = answer.head if space.head is None else space.head
        stamps = [entry.at for record in answer.records for entry in record.fields.values()]
        resend = resender(self._ends.sealer, self._ends.new_id, hub_ms)

        def work(tx: Tx) -> bool:
            if tx.space(space.space) != space:
                return False
            if stamps:
                self._observe(tx, parse_stamp(max(stamps)), hub_ms)
            tx.take_state(
                space.space,
                answer.records,
                head=head,
                page=answer.next,
                known=self._known.__contains__,
                resend=resend,
                hub_ms=hub_ms,
                account_id=self._ends.vault.account_id,
            )
            return True

        if await self._ends.replica.write(work) and answer.records:
            await self._ends.announce()
            await self._spaces.meet(space.space, _signers_of_state(answer.records))

    def _observe(self, tx: Tx, seen: Stamp, hub_ms: int) -> None:
        last = tx.clock(self._ends.sealer.device.device_id)
        after = observe(last, seen, hub_ms=hub_ms)
        if after != last:
            tx.set_clock(after)

    def _follow_hub(self, tx: Tx, hub_ms: int) -> None:
        """Note the hub's time, and trust this machine's clock again once it is near it."""
        # Each write is a synchronisation of the disk, so a little behind is near enough.
        if hub_ms - int(tx.meta(HUB_TIME) or 0) >= _HUB_TIME_STEP_MS:
            tx.set_meta(HUB_TIME, str(hub_ms))
        if (
            tx.meta(CLOCK_OFFSET) is not None
            and abs(hub_ms - self._ends.now_ms()) < DRIFT_MS_MAX // 2
        ):
            tx.set_meta(CLOCK_OFFSET, None)


def _signers_of_changes(changes: Iterable[LoggedChange]) -> set[str]:
    return {
        logged.change.signature.signer for logged in changes if logged.change.signature is not None
    }


def _signers_of_state(records: Iterable[StateRecord]) -> set[str]:
    return {proof.signature.signer for record in records for proof in record.proofs.values()}
