"""Pushes what waits, and does with each change what the hub's answer asks for.

Normative: docs/protocol/sync.md, 4 and 8.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from mana.device.ends import CLOCK_OFFSET, Ends
from mana.device.renewals import renamer, resealer, restamper
from mana.device.replica import OutboxRow, Tx
from mana.device.views import Notice
from mana.domain.clock import Stamp
from mana.domain.errors import Invalid
from mana.protocol.messages import ChangeMessage, PushRequest
from mana.protocol.replication import HubDistrusted, Queued, Verdict, time_of, units, verdicts

_RESTAMPS_MAX: Final = 3


class Pushing:
    """The way to the hub. `read_on` reads the spaces, and one space's log, after an old key."""

    def __init__(self, ends: Ends, read_on: Callable[[str], Awaitable[None]]) -> None:
        self._ends = ends
        self._read_on = read_on
        self._sealed_for: dict[str, tuple[int, int]] = {}

    async def push(self, space_id: str) -> None:
        """Send what waits for a space, batch by batch, until nothing does."""
        units_max: int | None = None
        restamps = 0
        await self._reseal_waiting(space_id)
        while not self._ends.vault.space(space_id).spoiled:
            rows = await self._batch(space_id, units_max)
            if not rows:
                return
            sent = [row.message for row in rows]
            try:
                answer = await self._ends.hub.push(space_id, await self._request(space_id, sent))
            except Invalid as error:
                if error.code not in ("BAD_REQUEST", "TOO_LARGE"):
                    raise
                if len(_units(rows)) > 1:
                    # One change is at fault: the others must not wait for it.
                    units_max = 1
                    await self._ends.replica.write(lambda tx: tx.unsend(space_id))
                    continue
                await self._park(rows, error.code.lower().replace("_", "-"))
                continue
            found = verdicts(sent, answer)
            hub_ms = time_of(answer.hub_time)
            if any(verdict.fate == "restamp" for verdict in found):
                restamps += 1
                if restamps > _RESTAMPS_MAX:
                    raise HubDistrusted("the hub refuses every stamp")
                await self._set_back(hub_ms)
            await self._settle(space_id, found, hub_ms)
            if any(verdict.again and verdict.code == "stale-key" for verdict in found):
                await self._renew(space_id, hub_ms)
            await self._ends.announce()
            self._ends.emit(Notice("sync"))

    async def _reseal_waiting(self, space_id: str) -> None:
        """Bring what waits under keys that are new here before it is sent.

        Sent as it is, an older change would be refused where a newer one of the same record is
        taken, and would come after it in the log.
        """
        space = self._ends.vault.space(space_id)
        if space.spoiled:
            return
        versions = (space.version, max(space.private_keys, default=0))
        if self._sealed_for.get(space_id) == versions:
            return
        await self._reseal(space_id, self._ends.now_ms())
        self._sealed_for[space_id] = versions

    async def _batch(self, space_id: str, units_max: int | None) -> list[OutboxRow]:
        return await self._ends.replica.write(lambda tx: tx.batch(space_id, units_max=units_max))

    async def _settle(self, space_id: str, found: list[Verdict], hub_ms: int) -> None:
        anew = restamper(self._ends.sealer, hub_ms)
        rename = renamer(self._ends.sealer, self._ends.new_id)
        await self._ends.replica.write(
            lambda tx: tx.settle(
                space_id,
                found,
                now_ms=hub_ms,
                restamp=anew,
                rename=rename,
                account_id=self._ends.vault.account_id,
            )
        )

    async def _renew(self, space_id: str, hub_ms: int) -> None:
        """Seal what waits under the keys and for the visibilities that stand by now."""
        await self._read_on(space_id)
        if not self._ends.vault.space(space_id).spoiled:
            await self._reseal(space_id, hub_ms)

    async def _reseal(self, space_id: str, now_ms: int) -> None:
        anew = resealer(self._ends.sealer)
        await self._ends.replica.write(lambda tx: tx.reseal(space_id, anew, now_ms=now_ms))

    async def _request(self, space_id: str, sent: list[ChangeMessage]) -> PushRequest:
        space = await self._ends.replica.read(lambda tx: tx.space(space_id))
        heads = {space_id: space.cursor} if space is not None and space.cursor is not None else {}
        return PushRequest(device_id=self._ends.sealer.device.device_id, changes=sent, heads=heads)

    async def _park(self, rows: list[OutboxRow], code: str) -> None:
        now_ms = self._ends.now_ms()
        await self._ends.replica.write(lambda tx: tx.park(rows, code, now_ms=now_ms))
        await self._ends.announce()
        self._ends.emit(Notice("sync"))

    async def _set_back(self, hub_ms: int) -> None:
        """Follow the hub's time from now on, because this machine's clock is ahead."""
        offset = str(hub_ms - self._ends.now_ms())
        stamp = Stamp(hub_ms, 0, self._ends.sealer.device.device_id)

        def work(tx: Tx) -> None:
            tx.set_meta(CLOCK_OFFSET, offset)
            tx.set_clock(stamp)

        await self._ends.replica.write(work)


def _units(rows: list[OutboxRow]) -> list[list[Queued]]:
    return units(Queued(row.position, 0, row.message.group) for row in rows)
