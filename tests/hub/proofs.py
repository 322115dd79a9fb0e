"""What a person's device signs to show that it has opened the vault."""

from __future__ import annotations

from collections.abc import Mapping

from mana.crypto.identity import PrivateIdentity
from mana.crypto.primitives import b64
from mana.crypto.vaults import sign_proof
from mana.domain.encoding import Json
from mana.protocol.messages import MasterProof
from tests.hub.client import Person


async def proof(
    person: Person,
    action: str,
    body: Mapping[str, Json],
    *,
    identity: PrivateIdentity | None = None,
) -> MasterProof:
    """Sign an action over the challenge that stands; `identity`: by another hand."""
    challenge = (await person.call("GET", "/api/v1/me/vault")).json()["challenge"]
    account = person.account
    key = (identity or account.identity).signing_key
    signature = sign_proof(key, account.account_id, action, challenge, body)
    return MasterProof(challenge=challenge, signature=b64(signature))
