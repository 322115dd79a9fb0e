"""What follows from a change of keys, in every space, until nothing counts on the keys before.

Nothing of it is remembered. What is to be done stands in the logs, in the wraps and in the records
themselves, so any device of the account can go on at any step, after a crash as well as beside
another device that does the same. Normative: docs/protocol/vault.md, 7, and sync.md, 6.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mana.crypto.identity import DeviceRevocation as Revocation
from mana.crypto.identity import PrivateIdentity, revoke_device, verify_revocation
from mana.crypto.keys import SpaceKeyName, unwrap_space_key
from mana.crypto.primitives import b64, unb64
from mana.crypto.vaults import sign_private_keys
from mana.device import membership
from mana.device.membership import Hand
from mana.device.moves import Moves
from mana.device.opened import Opened
from mana.device.resealing import Progress, Resealing
from mana.device.vault import OpenedVault, SpaceKeys
from mana.device.views import RotationView
from mana.domain.clock import parse_iso_ms
from mana.domain.errors import Conflict, CryptoFailed, NotFound
from mana.domain.spaces import entry_from_wire
from mana.protocol.messages import (
    Departure,
    DeviceRevocation,
    KeyWrap,
    MembershipAppend,
    PrivateKeys,
    SpaceInfo,
)

RETIRED_AFTER_MS: Final = 30 * 24 * 60 * 60 * 1_000
"""How long the hub keeps a wrap of a replaced key; it would refuse to forget it before."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What still counts on keys before: signing keys of identities (base64), and former masters."""

    identities: frozenset[str]
    masters: bool


class Rotation:
    """Follows a change of keys in the spaces of one unlocked account."""

    def __init__(self, opened: Opened, moves: Moves, resealing: Resealing) -> None:
        self._opened = opened
        self._moves = moves
        self._resealing = resealing
        self._forgotten: set[tuple[str, str]] = set()

    async def rotate_space(self, space_id: str) -> None:
        """Give a space its next key; owners and admins. Needs the hub.

        What stands is brought under it in the background. Nothing happens if somebody else gave
        it one meanwhile. Raises MembershipRefused, MembershipMoved.
        """
        version = self._moves.space(space_id).version

        def build(space: SpaceKeys, hand: Hand) -> MembershipAppend | None:
            return membership.rotate(space, hand) if space.version == version else None

        await self._moves.append(space_id, build)

    async def follow(self, space_id: str) -> bool:
        """Name this account's identity and make its private key in a space, if it owes them.

        Says whether anything was changed. Raises Offline, to be called again.
        """
        moved = await self._moves.append(space_id, self._renamed)
        if self._moves.space(space_id).owes_private_key:
            await self._make_private_key(space_id)
            moved = True
        return moved

    async def views(self) -> list[RotationView]:
        """Return what is under way, and which records hold on to an older key; reads all records."""
        spaces = self._spaces()
        followed = sum(self._is_followed(space) for space in spaces)
        views = []
        if followed < len(spaces):
            number = len(self._moves.vault.identities)
            views.append(RotationView("", "identity", number, followed, len(spaces)))
        for space in spaces:
            progress = await self._resealing.progress(space.space_id)
            views += _views_of(space, progress)
        return views

    async def retire(self) -> int:
        """Have the hub forget this account's wraps of keys on which nothing counts any more.

        Returns how many. The hub looks itself, at more than this device holds; what it refuses is
        asked again after the next unlock or re-seal. Keys that are held here stay here.
        """
        unused: dict[str, set[str]] = {}
        for space in self._spaces():
            names = await self._unused(space)
            if names:
                unused[space.space_id] = names
        if not unused:
            return 0
        answer = await self._opened.hub.spaces()
        done = 0
        for info in answer.spaces:
            for name in sorted(unused.get(info.space_id, set()) & _names(info)):
                done += await self._forget(info.space_id, name)
        return done

    async def revoke_anew(self) -> int:
        """Say by the identity in force what former ones said of revoked devices; return how many.

        Only once every space names it: before that, their logs know nothing of its word.
        """
        vault = self._moves.vault
        if not vault.keys.former_identities or not all(map(self._is_followed, self._spaces())):
            return 0
        done = 0
        for revoked in (await self._opened.hub.own_devices()).revoked:
            if _signer_of(revoked, vault) in ("", _signing_key(vault.identity)):
                continue
            anew = revoke_device(
                vault.identity.signing_key, vault.account_id, revoked.device_id, revoked.revoked_at
            )
            await self._opened.hub.revoke_device(
                DeviceRevocation(
                    account_id=anew.account_id,
                    device_id=anew.device_id,
                    revoked_at=anew.revoked_at,
                    signature=b64(anew.signature),
                )
            )
            done += 1
        return done

    async def counted(self) -> Counted:
        """Return on which keys before something of this account still counts. Needs the hub.

        A space that was left counts too: what is private there is to be had again by joining. So
        does an invitation that waits: whoever made it may let the account in with the keys of
        then. And the word that a device is revoked, until the identity of now has repeated it.
        """
        answer, vault = await self._opened.hub.spaces(), self._moves.vault
        waiting = await self._opened.hub.my_invitations()
        revoked = (await self._opened.hub.own_devices()).revoked
        held = {info.space_id: info for info in answer.spaces}
        identities = {named for one in answer.departed if (named := _last_named(one, vault))}
        identities |= {one.signing_key or "" for one in waiting if one.state == "accepted"}
        identities |= {_signer_of(one, vault) for one in revoked}
        masters = False
        for space in vault.spaces.values():
            if space.closed:
                continue
            info = held.get(space.space_id)
            names = _names(info) if info is not None else {f"p{one}" for one in space.private_keys}
            masters = masters or any(f"p{one}" in names for one in space.outdated_private)
            identities.add(_named(space, vault))
            if info is not None:
                identities |= _wrapped_to(vault, info)
        former = {_signing_key(one) for one in vault.keys.former_identities}
        return Counted(frozenset(identities & former), masters)

    # Within

    def _spaces(self) -> list[SpaceKeys]:
        spaces = [space for space in self._moves.vault.spaces.values() if not space.former]
        return sorted(spaces, key=lambda space: space.space_id)

    def _is_followed(self, space: SpaceKeys) -> bool:
        return _names_identity(space, self._moves.vault)

    def _renamed(self, space: SpaceKeys, hand: Hand) -> MembershipAppend | None:
        vault = self._moves.vault
        if _names_identity(space, vault):
            return None
        return membership.rekey(space, hand, vault.identity)

    async def _make_private_key(self, space_id: str) -> None:
        vault = self._moves.vault
        keys = signed_private_keys(vault, space_id, [vault.new_private_key(space_id)])
        with contextlib.suppress(Conflict):
            # Another device of this account may have been first, with the same key.
            await self._opened.hub.add_private_keys(space_id, keys)
        await self._moves.refresh()

    async def _unused(self, space: SpaceKeys) -> set[str]:
        """Return the names of older keys that no record here bears and that are old enough."""
        now_ms = self._opened.now_ms()
        shared = [
            version
            for version in range(1, space.version)
            if _replaced_ms(space, version) + RETIRED_AFTER_MS <= now_ms
        ]
        private = sorted(space.private_keys)[:-1]
        wanted = {f"s{version}" for version in shared} | {f"p{version}" for version in private}
        wanted = {name for name in wanted if (space.space_id, name) not in self._forgotten}
        if not wanted:
            return set()
        return wanted - await self._resealing.borne(space.space_id)

    async def _forget(self, space_id: str, name: str) -> int:
        try:
            await self._opened.hub.retire_key(space_id, name)
        except (Conflict, NotFound):
            return 0
        self._forgotten.add((space_id, name))
        return 1


def _names_identity(space: SpaceKeys, vault: OpenedVault) -> bool:
    """Say whether a space's log names this account's identity of now, by both of its keys."""
    own = space.entries[-1].member(vault.account_id)
    public = vault.identity.public()
    keys = b64(public.signing_key.to_bytes()), b64(public.hpke_key.to_bytes())
    return own is not None and own.keys == keys


def _views_of(space: SpaceKeys, progress: Progress) -> Iterable[RotationView]:
    done, whole = progress.shared.get(space.version, 0), sum(progress.shared.values())
    if done < whole or progress.fixed:
        yield RotationView(space.space_id, "key", space.version, done, whole, progress.fixed)
    newest = progress.private_version
    done, whole = progress.private.get(newest, 0), sum(progress.private.values())
    if done < whole or space.owes_private_key:
        done, newest = (0, newest + 1) if space.owes_private_key else (done, newest)
        yield RotationView(space.space_id, "private", newest, done, max(whole, 1))


def _replaced_ms(space: SpaceKeys, version: int) -> int:
    """Return when the next version of a key was made, by the word of who made it."""
    return parse_iso_ms(next(one.created_at for one in space.entries if one.key_version > version))


def _names(info: SpaceInfo) -> set[str]:
    return {f"{wrap.kind}{wrap.version}" for wrap in info.wraps}


def _signing_key(identity: PrivateIdentity) -> str:
    return b64(identity.signing_key.public().to_bytes())


def _named(space: SpaceKeys, vault: OpenedVault) -> str:
    """Return the signing key by which a log last named this account."""
    named = [one for entry in space.entries if (one := entry.member(vault.account_id)) is not None]
    return named[-1].signing_key


def _last_named(departure: Departure, vault: OpenedVault) -> str:
    """Return the signing key by which a space that was left last named this account.

    Empty where nothing of it is to be had again, because it was closed.
    """
    entries = [entry_from_wire(signed.entry) for signed in departure.log]
    named = [one for entry in entries if (one := entry.member(vault.account_id)) is not None]
    return named[-1].signing_key if named and entries[-1].members else ""


def _wrapped_to(vault: OpenedVault, info: SpaceInfo) -> set[str]:
    """Return the signing keys of the identities to which the hub's wraps were made."""
    found = set()
    for wrap in info.wraps:
        kind: Literal["s", "p"] = "s" if wrap.kind == "s" else "p"
        name = SpaceKeyName(kind, info.space_id, wrap.version, vault.account_id)
        for identity in vault.identities:
            with contextlib.suppress(CryptoFailed):
                unwrap_space_key(wrap.wrapped, identity.hpke_key, name)
                found.add(_signing_key(identity))
                break
    return found


def _signer_of(revoked: DeviceRevocation, vault: OpenedVault) -> str:
    """Return the signing key of the identity of this account that revoked a device; empty: none."""
    signers = (one for one in vault.identities if _is_word_of(one, revoked))
    return next(map(_signing_key, signers), "")


def _is_word_of(identity: PrivateIdentity, revoked: DeviceRevocation) -> bool:
    """Say whether this identity signed that a device of its account is revoked."""
    try:
        word = Revocation(
            revoked.account_id, revoked.device_id, revoked.revoked_at, unb64(revoked.signature)
        )
        verify_revocation(word, identity.signing_key.public(), identity.account_id)
    except CryptoFailed:
        return False
    return True


def signed_private_keys(vault: OpenedVault, space_id: str, wraps: Sequence[KeyWrap]) -> PrivateKeys:
    """Return the account's own private keys of a space, as the hub takes them."""
    signature = sign_private_keys(
        vault.identity.signing_key,
        vault.account_id,
        space_id,
        [(wrap.version, wrap.wrapped) for wrap in wraps],
    )
    return PrivateKeys(wraps=list(wraps), signature=b64(signature))
