"""Rows of spaces: the membership logs, the account's own key wraps, the members' devices.

A move of the membership takes the lock of the space's head, as a push does: so what a member
who was removed sends after it is refused, and two moves never follow one entry.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from mana.crypto.primitives import unb64
from mana.crypto.signatures import VerifyKey
from mana.crypto.vaults import verify_private_keys
from mana.domain.clock import parse_iso_ms
from mana.domain.errors import Conflict, CryptoFailed, Invalid, NotFound
from mana.domain.ids import MissionId, SpaceId
from mana.domain.spaces import MembershipRefused, Role, entry_from_wire
from mana.hub.accounts.founding import CheckedSpace
from mana.hub.accounts.store import devices_answer, insert_space
from mana.hub.db import AlreadyExists, Isolation, Row, Tenancy, Transaction, load_queries
from mana.hub.moments import moment
from mana.hub.runner import scheduling
from mana.hub.runner.store import Ledger
from mana.hub.spaces.moving import (
    Acceptance,
    Head,
    Move,
    check_invited,
    check_move,
    check_private_wraps,
    check_wraps,
    hash_of,
    log_to_wire,
)
from mana.hub.tenants import Tenant
from mana.protocol.errors import ProofRefused, SpaceUndeletable
from mana.protocol.messages import (
    Departure,
    DevicesAnswer,
    KeyWrap,
    MembershipAppend,
    PrivateKeys,
    SignedEntry,
    SpaceInfo,
    SpacesAnswer,
)

Q: Final = load_queries("mana.hub.spaces")
LOG_BYTES_MAX: Final = 24 * 1024 * 1024
"""Above this nobody is added to a space: every device has to read its whole log."""


RETIRED_AFTER_MS: Final = 30 * 24 * 60 * 60 * 1_000
"""How long a wrap of a replaced key is kept: as long as devices keep what was overwritten."""


class KeyInUse(Conflict):
    """Something is still sealed under this key of the space, or may be read under it."""

    code = "KEY_IN_USE"
    advice = "Wait; devices bring what is left under the newest key by themselves."


class SpaceStore:
    """The only code that speaks SQL about spaces and who is in them."""

    def __init__(self, tenancy: Tenancy) -> None:
        self._tenancy = tenancy

    async def spaces(self, tenant: Tenant) -> SpacesAnswer:
        """Return the spaces of the account with their logs and its own wraps, and those it left.

        All is of one moment: a space that the account is leaving must be here or there.
        """
        async with self._tenancy.transaction(tenant, isolation=Isolation.ONE_MOMENT) as tx:
            spaces = await _infos(tx, await tx.all(Q["spaces"]))
            departed = [
                Departure(space_id=row["space_id"], log=msgspec.convert(row["log"], _Log))
                for row in await tx.all(Q["departed"])
            ]
        return SpacesAnswer(spaces=spaces, departed=departed)

    async def devices(self, tenant: Tenant, space_id: SpaceId) -> DevicesAnswer:
        """Return the certificates of the members' devices; NotFound for who is no member."""
        async with self._tenancy.transaction(tenant) as tx:
            await role_of(tx, space_id)
            return devices_answer(await tx.all(Q["devices"], space_id))

    async def identity(self, tenant: Tenant) -> tuple[str, str]:
        """Return the account's public keys, signing and HPKE, in Base64."""
        async with self._tenancy.transaction(tenant) as tx:
            row = await tx.one(Q["identity"])
        if row is None:
            raise NotFound("the account is gone")
        return row["signing_key"], row["hpke_key"]

    async def create(self, tenant: Tenant, space: CheckedSpace, *, now_ms: int) -> SpaceInfo:
        """Store a space that the account founds; the same one again changes nothing."""
        try:
            async with self._tenancy.transaction(tenant) as tx:
                found = await _infos(tx, await tx.all(Q["space"], space.space_id))
                if found:
                    return found[0]
                if await tx.value(Q["has_departed"], space.space_id):
                    raise AlreadyExists("23505", "departures")
                await insert_space(tx, tenant.account, space, moment(now_ms))
                await tx.all(Q["notify"], [tenant.account])
                return (await _infos(tx, await tx.all(Q["space"], space.space_id)))[0]
        except AlreadyExists:
            raise AlreadyExists("23505", "spaces") from None

    async def append(
        self,
        tenant: Tenant,
        space_id: SpaceId,
        append: MembershipAppend,
        *,
        now_ms: int,
    ) -> SpaceInfo:
        """Append the next entry of a log with all that follows from it, or nothing.

        The newest entry again changes nothing. For who left, the role of the answer is empty.
        """
        async with self._moving(tenant, space_id) as (tx, head):
            if hash_of(append.entry) != head.hash:
                move = check_move(space_id, head, append.entry, tenant.account)
                if not move.accounts:
                    raise _closing("a space is closed by the call that removes it")
                await self._append(tx, tenant, space_id, head, move, append, now_ms=now_ms)
            found = await _infos(tx, await tx.all(Q["space"], space_id))
        if found:
            return found[0]
        return SpaceInfo(space_id=space_id, type=head.entry.space_type, role="", log=[], wraps=[])

    async def _append(
        self,
        tx: Transaction,
        tenant: Tenant,
        space_id: SpaceId,
        head: Head,
        move: Move,
        append: MembershipAppend,
        *,
        now_ms: int,
    ) -> None:
        invitations = await _admitted(tx, space_id, move)
        check_wraps(move, append.wraps)
        await _check_rekeyed(tx, space_id, move, append.private_wraps)
        if move.gone:
            # While they are still members: the policies let nobody write for anybody else.
            await _depart(tx, space_id, move, now_ms=now_ms)
        await _store_entry(tx, space_id, head, move)
        await _end_grants(tx, space_id, move.without("owner", "admin", "member"))
        waiting = await tx.all(
            Q["end_invitations"], space_id, move.without("owner", "admin"), move.without("owner")
        )
        await tx.execute(Q["remove_members"], space_id, move.gone)
        await tx.value(Q["moving"], space_id)
        version = move.entry.key_version
        await tx.execute(Q["move_space"], space_id, move.accounts, version)
        if tenant.account not in move.gone:
            await _admit(tx, space_id, move, append, invitations)
        told = {row["account_id"] for row in waiting if row["account_id"] is not None}
        await tx.all(Q["notify"], sorted({*move.concerned, *told}))

    async def close(
        self, tenant: Tenant, space_id: SpaceId, signed: SignedEntry, *, now_ms: int
    ) -> None:
        """Remove everything of a space; its members keep the log that says so."""
        async with self._moving(tenant, space_id) as (tx, head):
            if head.entry.space_type in ("personal", "user"):
                raise SpaceUndeletable("a space of one person is never closed")
            move = check_move(space_id, head, signed, tenant.account)
            if move.accounts:
                raise _closing("an entry with members closes no space")
            await _depart(tx, space_id, move, now_ms=now_ms)
            await tx.execute(Q["delete_space"], space_id)
            await tx.all(Q["notify"], move.concerned)

    async def add_private_keys(self, tenant: Tenant, space_id: SpaceId, keys: PrivateKeys) -> None:
        """Store the account's next private keys of a space; raise AlreadyExists for older ones.

        ProofRefused unless the account's identity signed them.
        """
        async with self._moving(tenant, space_id) as (tx, _):
            await _require_signed(tx, tenant, space_id, keys)
            newest = await tx.value(Q["newest_private_key"], space_id)
            for number, wrap in enumerate(keys.wraps, newest + 1):
                if wrap.version < number:
                    raise AlreadyExists("23505", "space_keys")
                if wrap.version > number:
                    raise Invalid("versions of private keys have no gap")
                await tx.execute(Q["add_private_key"], space_id, wrap.version, wrap.wrapped)

    async def retire_key(
        self, tenant: Tenant, space_id: SpaceId, kind: str, version: int, *, now_ms: int
    ) -> None:
        """Forget the account's own wrap of an older key that nothing counts on any more.

        Raises KeyInUse while a record that the account sees is sealed under it, while it is the
        newest, and, for a space's key, until a month after the next one was made.
        """
        async with self._moving(tenant, space_id) as (tx, head):
            newest = head.entry.key_version
            if kind == "p":
                newest = await tx.value(Q["newest_private_key"], space_id)
            if version >= newest:
                raise KeyInUse("the newest key is in use")
            if kind == "s":
                since = await tx.value(Q["newer_since"], space_id, version)
                if since is None or parse_iso_ms(since) + RETIRED_AFTER_MS > now_ms:
                    raise KeyInUse("a device that was away may still need this key")
            classes = "[sm]" if kind == "s" else "p"
            if await tx.value(Q["key_counts"], space_id, f'"enc:2:{classes}{version}:'):
                raise KeyInUse("a record is sealed under this key")
            await tx.execute(Q["retire_key"], space_id, kind, version)

    @contextlib.asynccontextmanager
    async def _moving(
        self, tenant: Tenant, space_id: SpaceId
    ) -> AsyncIterator[tuple[Transaction, Head]]:
        """Lock a space of the account and read where its log ends."""
        async with self._tenancy.transaction(tenant) as tx:
            await lock_space(tx, space_id)
            row = await tx.one(Q["newest"], space_id)
            if row is None:
                raise NotFound("there is no such space here")
            yield tx, Head(row["number"], entry_from_wire(row["entry"]), row["hash"])


async def lock_space(tx: Transaction, space_id: SpaceId) -> Role:
    """Let nobody else move this space until the end; return the account's role, or NotFound.

    The role is read by a statement of its own: one that waits for the lock goes on with the
    rows of before.
    """
    await tx.value(Q["lock"], space_id)
    return await role_of(tx, space_id)


async def role_of(tx: Transaction, space_id: SpaceId) -> Role:
    """Return the account's role in a space; raise NotFound for who is no member."""
    role: Role | None = await tx.value(Q["role"], space_id)
    if role is None:
        raise NotFound("there is no such space here")
    return role


_Log = list[SignedEntry]


def _closing(message: str) -> MembershipRefused:
    return MembershipRefused(message, detail={"reason": "closing"})


async def _infos(tx: Transaction, rows: Sequence[Row]) -> list[SpaceInfo]:
    ids = [row["space_id"] for row in rows]
    logs: dict[str, list[SignedEntry]] = {space_id: [] for space_id in ids}
    wraps: dict[str, list[KeyWrap]] = {space_id: [] for space_id in ids}
    for row in await tx.all(Q["entries"], ids):
        logs[row["space_id"]].append(_signed(row))
    for row in await tx.all(Q["keys"], ids):
        wraps[row["space_id"]].append(
            KeyWrap(kind=row["kind"], version=row["version"], wrapped=row["wrapped"])
        )
    return [
        SpaceInfo(
            space_id=row["space_id"],
            type=row["type"],
            role=row["role"],
            log=logs[row["space_id"]],
            wraps=wraps[row["space_id"]],
        )
        for row in rows
    ]


def _signed(row: Mapping[str, Any]) -> SignedEntry:
    return SignedEntry(entry=row["entry"], signature=row["signature"])


async def _admitted(tx: Transaction, space_id: SpaceId, move: Move) -> list[str]:
    """Return the invitations that this move uses up."""
    if not move.added:
        return []
    if (await tx.value(Q["log_bytes"], space_id) or 0) > LOG_BYTES_MAX:
        raise MembershipRefused("the log is too long", detail={"reason": "too-many"})
    added = [one.account_id for one in move.added]
    rows = await tx.all(Q["acceptances"], space_id, added)
    return check_invited(
        move,
        (
            Acceptance(
                row["invitation_id"],
                row["account_id"],
                row["role"],
                row["signing_key"],
                row["hpke_key"],
            )
            for row in rows
        ),
    )


async def _check_rekeyed(
    tx: Transaction, space_id: SpaceId, move: Move, private_wraps: Sequence[KeyWrap]
) -> None:
    """Raise unless the author's new keys are those of their account, and their wraps come along."""
    standing: list[int] = []
    if move.rekeyed is not None:
        held = await tx.one(Q["identity_held"])
        if held is None or move.rekeyed.keys != (held["signing_key"], held["hpke_key"]):
            raise MembershipRefused(
                "a member has the keys of their account", detail={"reason": "keys-changed"}
            )
        rows = await tx.all(Q["versions_held"], space_id)
        standing = [row["version"] for row in rows if row["kind"] == "p"]
    check_private_wraps(move, private_wraps, standing)


async def _require_signed(
    tx: Transaction, tenant: Tenant, space_id: SpaceId, keys: PrivateKeys
) -> None:
    """Raise ProofRefused unless the identity that stands signed these private keys."""
    row = await tx.one(Q["identity_held"])
    try:
        key = VerifyKey(unb64("" if row is None else row["signing_key"]))
        wraps = [(wrap.version, wrap.wrapped) for wrap in keys.wraps]
        verify_private_keys(key, unb64(keys.signature), tenant.account, space_id, wraps)
    except CryptoFailed:
        raise ProofRefused("the identity of the account has not signed these keys") from None


async def _store_entry(tx: Transaction, space_id: SpaceId, head: Head, move: Move) -> None:
    entry, signature = move.entry.to_wire(), move.signed.signature
    await tx.execute(Q["append"], space_id, head.number + 1, entry, signature, move.hash)


async def _depart(tx: Transaction, space_id: SpaceId, move: Move, *, now_ms: int) -> None:
    """Leave to each who goes the log that says so."""
    log = log_to_wire(await tx.all(Q["entries"], [space_id]), move.signed)
    await tx.execute(Q["depart"], move.gone, space_id, log, moment(now_ms))


async def _end_grants(tx: Transaction, space_id: SpaceId, accounts: Sequence[str]) -> None:
    """Revoke what accounts granted who may not write here any more, and hold their missions."""
    if not accounts:
        return
    ledger = Ledger(tx)
    await ledger.lock_granted(accounts, space_id)
    held = {
        row["mission_id"]: "no-grant" for row in await tx.all(Q["missions_of"], space_id, accounts)
    }
    for row in await tx.all(Q["end_grants"], space_id, accounts):
        if row["was_active"]:
            held[row["mission_id"]] = "revoked"
    for mission, reason in sorted(held.items()):
        await scheduling.hold(ledger, space_id, MissionId(mission), reason)
        await ledger.cancel_queued(space_id, MissionId(mission), manual_too=True)


async def _admit(
    tx: Transaction,
    space_id: SpaceId,
    move: Move,
    append: MembershipAppend,
    invitations: Sequence[str],
) -> None:
    added, changed = move.added, move.reroled
    for query, members in ((Q["add_members"], added), (Q["change_roles"], changed)):
        accounts, roles = [one.account_id for one in members], [one.role for one in members]
        await tx.execute(query, space_id, accounts, roles)
    rekeyed = move.rekeyed.account_id if move.rekeyed is not None else None
    others = [wrap for wrap in append.wraps if wrap.account_id != rekeyed]
    await tx.execute(
        Q["add_wraps"],
        space_id,
        [wrap.account_id for wrap in others],
        [wrap.version for wrap in others],
        [wrap.wrapped for wrap in others],
    )
    own = [("s", one.version, one.wrapped) for one in append.wraps if one.account_id == rekeyed]
    own += [("p", one.version, one.wrapped) for one in append.private_wraps]
    await tx.execute(
        Q["replace_wraps"],
        space_id,
        [kind for kind, _, _ in own],
        [version for _, version, _ in own],
        [wrapped for _, _, wrapped in own],
    )
    if added:
        await tx.execute(Q["joined"], space_id, invitations)
        await tx.execute(Q["returned"], space_id, [one.account_id for one in added])
