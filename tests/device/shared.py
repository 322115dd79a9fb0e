"""A shared space of the rig's people, made with the wire's own calls."""

from __future__ import annotations

import uuid

from mana.crypto.invitations import acceptance_mac, invitation_token, new_secret, token_hash
from mana.crypto.primitives import b64
from mana.device import membership
from mana.device.records import RecordBook
from mana.device.vault import found_space
from mana.domain.clock import iso_ms
from mana.domain.spaces import Member, Role, SpaceType
from mana.protocol.messages import AcceptInvitation, MembershipAppend, NewInvitation
from tests.hub.client import START_MS


def hand(book: RecordBook) -> membership.Hand:
    return membership.Hand(book.inner().vault.identity, START_MS)


async def found(owner: RecordBook, space_type: SpaceType = "team") -> RecordBook:
    """Found a shared space; return its owner's book of it."""
    inner = owner.inner()
    made, new = found_space(
        inner.vault.identity, inner.vault.master_key, space_type, now_ms=START_MS
    )
    inner.vault.take_space(await owner.hub.create_space(new))
    await inner.syncer.keep_spaces()
    return owner.in_space(made.space_id)


async def join(owner: RecordBook, newcomer: RecordBook, role: Role = "member") -> RecordBook:
    """Let somebody into the owner's space; return the newcomer's book of it."""
    space_id, invitation, secret = owner.space, str(uuid.uuid4()), new_secret()
    token = invitation_token(secret, space_id, invitation)
    await owner.hub.create_invitation(
        space_id,
        NewInvitation(
            invitation_id=invitation,
            role=role if role != "owner" else "admin",
            token_hash=token_hash(token),
            expires_at=iso_ms(START_MS + 86_400_000),
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
    await append(owner, membership.add(owner.keys, hand(owner), member))
    inner = newcomer.inner()
    await inner.syncer.refresh_spaces()
    await newcomer.hub.add_private_keys(space_id, [inner.vault.new_private_key(space_id)])
    await inner.syncer.refresh_spaces()
    return newcomer.in_space(space_id)


async def append(by: RecordBook, entry: MembershipAppend) -> None:
    """Append an entry to the log of this book's space."""
    inner = by.inner()
    inner.vault.take_space(await by.hub.append_member(by.space, entry))
    await inner.syncer.keep_spaces()


async def rotate(by: RecordBook) -> None:
    await append(by, membership.rotate(by.keys, hand(by)))


async def remove(by: RecordBook, account_id: str) -> None:
    await append(by, membership.remove(by.keys, hand(by), account_id))
