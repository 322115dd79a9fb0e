"""Shared spaces of people with books, made with the wire's own calls, at a time that a test says."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable

from mana.crypto.invitations import acceptance_mac, invitation_token, new_secret, token_hash
from mana.crypto.primitives import b64
from mana.device import membership
from mana.device.records import RecordBook
from mana.device.rotation import signed_private_keys
from mana.device.vault import SpaceKeys, found_space
from mana.domain.clock import iso_ms
from mana.domain.spaces import Member, Role, SpaceType
from mana.hub.db.errors import AlreadyExists
from mana.protocol.messages import AcceptInvitation, MembershipAppend, NewInvitation
from tests.hub.client import START_MS

Build = Callable[[SpaceKeys, membership.Hand], MembershipAppend]


def hand(book: RecordBook, *, now_ms: int = START_MS) -> membership.Hand:
    return membership.Hand(book.inner().vault.identity, now_ms)


async def found(
    owner: RecordBook, space_type: SpaceType = "team", *, now_ms: int = START_MS
) -> RecordBook:
    """Found a shared space; return its owner's book of it."""
    inner = owner.inner()
    made, new = found_space(inner.vault.identity, inner.vault.master_key, space_type, now_ms=now_ms)
    inner.vault.take_space(await owner.hub.create_space(new))
    await inner.syncer.keep_spaces()
    return owner.in_space(made.space_id)


async def join(
    owner: RecordBook, newcomer: RecordBook, role: Role = "member", *, now_ms: int = START_MS
) -> RecordBook:
    """Let somebody into the owner's space, with their private key; return their book of it."""
    space_id, invitation, secret = owner.space, str(uuid.uuid4()), new_secret()
    token = invitation_token(secret, space_id, invitation)
    await owner.hub.create_invitation(
        space_id,
        NewInvitation(
            invitation_id=invitation,
            role=role if role != "owner" else "admin",
            token_hash=token_hash(token),
            expires_at=iso_ms(now_ms + 86_400_000),
        ),
    )
    public = newcomer.inner().vault.identity.public()
    signing_key, hpke_key = b64(public.signing_key.to_bytes()), b64(public.hpke_key.to_bytes())
    mac = acceptance_mac(
        secret,
        space_id,
        invitation,
        account_id=newcomer.account_id,
        signing_key=signing_key,
        hpke_key=hpke_key,
    )
    await newcomer.hub.accept_invitation(
        invitation, AcceptInvitation(space_id=space_id, token=b64(token), mac=b64(mac))
    )
    member = Member(newcomer.account_id, role, signing_key, hpke_key)
    await append(owner, lambda space, by: membership.add(space, by, member), now_ms=now_ms)
    inner = newcomer.inner()
    await inner.syncer.refresh_spaces()
    if not inner.vault.space(space_id).private_keys:
        wrap = inner.vault.new_private_key(space_id)
        keys = signed_private_keys(inner.vault, space_id, [wrap])
        # A device that learns of the space meanwhile adds its key by itself: either one will do.
        with contextlib.suppress(AlreadyExists):
            await newcomer.hub.add_private_keys(space_id, keys)
        await inner.syncer.refresh_spaces()
    return newcomer.in_space(space_id)


async def append(by: RecordBook, build: Build, *, now_ms: int = START_MS) -> None:
    """Append to the log of this book's space, as a device of this person does."""
    inner = by.inner()
    entry = build(by.keys, hand(by, now_ms=now_ms))
    inner.vault.take_space(await by.hub.append_member(by.space, entry))
    await inner.syncer.keep_spaces()


async def rotate(by: RecordBook) -> None:
    await append(by, membership.rotate)


async def remove(by: RecordBook, account_id: str) -> None:
    await append(by, lambda space, hand: membership.remove(space, hand, account_id))
