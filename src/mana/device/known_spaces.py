"""What a device knows of its account's spaces: logs and keys, and the certificates of who writes.

Read from the hub, checked by the vault, and kept durably, because offline nothing else is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from mana.crypto.authority import Authority, authority_among
from mana.device.ends import Ends
from mana.device.kept import SPACES, keep_sealed, open_sealed
from mana.device.replica import Tx
from mana.device.views import Notice
from mana.domain.encoding import sha256
from mana.domain.errors import Conflict, NotFound
from mana.protocol.messages import DeviceCertificate, DevicesAnswer, SpacesAnswer

_CERTIFICATES: Final = "certificates:"
_ASKED_MAX: Final = 3
_NO_DEVICES: Final = DevicesAnswer(devices=[])


class KnownSpaces:
    """The spaces of one unlocked account. `is_stale`: something moved since they were read.

    `is_hook_due`: they were read, and what follows from it was not done yet. `read_ms`: when they
    were read last, in ms; 0 never.
    """

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self.is_stale = True
        self.is_hook_due = False
        self.read_ms = 0
        self._seen = b""
        self._kept = b""
        self._kept_sealed: str | None = None
        self._certificates: dict[str, DevicesAnswer] = {}
        self._certified: set[str] = set()
        self._authorities: dict[str, tuple[int, Authority]] = {}

    @property
    def are_read(self) -> bool:
        """Say whether the hub's answer about them was taken since the account was unlocked."""
        return bool(self._seen)

    def authority(self, space_id: str) -> Authority:
        """Return who may decide in a space, as far as certificates are known here."""
        space = self._ends.vault.spaces.get(space_id)
        if space is None:
            raise NotFound("no such space is kept here")
        length, found = self._authorities.get(space_id, (0, None))
        if found is None or length != len(space.log):
            known = self._certificates.get(space_id, _NO_DEVICES)
            certificates = [*known.devices, self._ends.sealer.device.certificate]
            found = authority_among(
                space_id, space.members, certificates, known.revoked, entries=space.entries
            )
            self._authorities[space_id] = (len(space.log), found)
        return found

    async def load(self) -> None:
        """Read what was kept: spaces and certificates. Needs no hub."""
        spaces = self._ends.vault.spaces

        def work(tx: Tx) -> dict[str, str | None]:
            self._keep_rows(tx)
            self._kept_sealed = tx.meta(SPACES)
            return {name: tx.meta(f"{_CERTIFICATES}{name}") for name in spaces}

        for space_id, kept in (await self._ends.replica.write(work)).items():
            self._take_certificates(space_id, _decode_devices(kept))

    async def keep(self) -> None:
        """Keep what the vault knows of the spaces, durably; begin new ones, end left ones.

        Called after the vault took an answer of the hub about one.
        """
        kept = self._ends.vault.kept_spaces()
        digest = sha256(kept)
        if digest == self._kept:
            return

        def work(tx: Tx) -> str | None:
            keep_sealed(tx, self._ends.vault, SPACES, kept)
            self._keep_rows(tx)
            return tx.meta(SPACES)

        self._kept_sealed = await self._ends.replica.write(work)
        self._kept = digest
        for space_id in [name for name in self._certified if name not in self._ends.vault.spaces]:
            self._certified.discard(space_id)
        self._ends.emit(Notice("spaces"))
        await self._ends.announce()

    def _keep_rows(self, tx: Tx) -> None:
        rows = {row.space: row for row in tx.spaces()}
        for space in self._ends.vault.spaces.values():
            row = rows.get(space.space_id)
            if not space.former and (row is None or row.state != "active"):
                tx.add_space(space.space_id, space.type)
            elif space.former and row is not None and row.state == "active":
                tx.leave_space(space.space_id, now_ms=self._ends.now_ms())

    async def read(self) -> None:
        """Take which spaces there are, their logs and keys; nothing if any of it is wrong."""
        self.is_stale = False
        try:
            answer = await self._ask()
            digest = sha256(msgspec.json.encode(answer))
            if digest != self._seen:
                before = self._lengths()
                self._ends.vault.take_spaces(answer)
                for name, one in self._ends.vault.spaces.items():
                    if before.get(name) != len(one.log):
                        self._certified.discard(name)
                self._seen = digest
            await self.keep()
        except BaseException:
            self.is_stale = True
            raise
        self.read_ms = self._ends.now_ms()
        self.is_hook_due = True

    async def _ask(self) -> SpacesAnswer:
        """Return an answer during which nothing else was learned of the spaces.

        What this or another process learned meanwhile is newer than the answer, which would look
        like one that forgets.
        """
        for _ in range(_ASKED_MAX):
            await self.take_kept()
            before = self._lengths()
            answer = await self._ends.hub.spaces()
            await self.take_kept()
            if self._lengths() == before:
                return answer
        raise Conflict("the spaces move faster than they are read")

    def _lengths(self) -> dict[str, int]:
        return {name: len(space.log) for name, space in self._ends.vault.spaces.items()}

    async def take_kept(self) -> None:
        """Take what another process of this machine has learned of the spaces."""
        seen = self._kept_sealed

        def work(tx: Tx) -> tuple[str | None, bytes | None]:
            sealed = tx.meta(SPACES)
            return sealed, None if sealed == seen else open_sealed(tx, self._ends.vault, SPACES)

        sealed, kept = await self._ends.replica.read(work)
        if kept is None:
            return
        self._ends.vault.restore_spaces(kept)
        self._kept_sealed = sealed
        self._ends.emit(Notice("spaces"))

    def devices_moved(self) -> None:
        """Say that devices may have come or been revoked: certificates are read again."""
        self._certified.clear()

    async def _refresh_certificates(self, space_id: str) -> None:
        found = _with_revoked(
            await self._ends.hub.space_devices(space_id), self._certificates.get(space_id)
        )
        kept = msgspec.json.encode(found).decode()
        await self._ends.replica.write(lambda tx: tx.set_meta(f"{_CERTIFICATES}{space_id}", kept))
        self._take_certificates(space_id, found)
        self._certified.add(space_id)

    def _take_certificates(self, space_id: str, found: DevicesAnswer) -> None:
        self._certificates[space_id] = found
        self._authorities.pop(space_id, None)

    async def meet(self, space_id: str, signers: Iterable[str]) -> None:
        """Fetch certificates if somebody signed whose device is not known here."""
        authority = self.authority(space_id)
        known = {**authority.devices, **authority.former}
        if any(not signer.startswith("runner:") and signer not in known for signer in signers):
            await self._refresh_certificates(space_id)

    async def certify(self, space_id: str) -> None:
        """Read the certificates of a space, if not all of its members' are known."""
        if space_id not in self._certified:
            await self._refresh_certificates(space_id)

    async def forget(self, space_id: str) -> None:
        """Remove everything of a space that was left from this device; SpaceStillHeld else."""
        self._ends.vault.forget_space(space_id)

        def work(tx: Tx) -> None:
            tx.forget_space(space_id)
            tx.set_meta(f"{_CERTIFICATES}{space_id}", None)

        await self._ends.replica.write(work)
        await self.keep()
        self._certificates.pop(space_id, None)
        self._authorities.pop(space_id, None)


def _decode_devices(kept: str | None) -> DevicesAnswer:
    """Return the devices that were kept; an older version kept a list of certificates."""
    if kept is None:
        return _NO_DEVICES
    if kept.startswith("["):
        return DevicesAnswer(devices=msgspec.json.decode(kept, type=list[DeviceCertificate]))
    return msgspec.json.decode(kept, type=DevicesAnswer)


def _with_revoked(found: DevicesAnswer, known: DevicesAnswer | None) -> DevicesAnswer:
    """Return what the hub says of devices, with all that was seen before: it unsays nothing.

    A device of somebody who has left still vouches for what they decided before.
    """
    if known is None:
        return found
    unsaid = [one for one in known.revoked if one not in found.revoked]
    named = {(one.account_id, one.device_id) for one in found.devices}
    gone = [one for one in known.devices if (one.account_id, one.device_id) not in named]
    return DevicesAnswer(devices=[*found.devices, *gone], revoked=[*found.revoked, *unsaid])
