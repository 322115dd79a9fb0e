"""What shows the hub that the vault is open here: a signature by the identity over its challenge.

A session alone proves nothing, for a token can be stolen. Normative: docs/protocol/vault.md, 3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from mana.crypto.keys import key_check
from mana.crypto.primitives import b64
from mana.crypto.vaults import sign_proof
from mana.device.hub_client import HubClient
from mana.device.vault import OpenedVault
from mana.domain.encoding import Json
from mana.protocol.errors import ProofRefused, VaultMoved
from mana.protocol.messages import MasterProof
from mana.protocol.replication import HubDistrusted

_AGAIN: Final = 2
_T = TypeVar("_T")


async def proved(
    hub: HubClient,
    vault: OpenedVault,
    action: str,
    body: Mapping[str, Json],
    send: Callable[[MasterProof], Awaitable[_T]],
) -> _T:
    """Call `send` with a proof of this action over the hub's standing challenge.

    Each use of a challenge, by any device, draws another: then it is proved again. Raises
    VaultMoved if the keys in force are no longer those that are open here.
    """
    for _ in range(_AGAIN):
        with contextlib.suppress(ProofRefused):
            return await send(await _proof(hub, vault, action, body))
    return await send(await _proof(hub, vault, action, body))


async def _proof(
    hub: HubClient, vault: OpenedVault, action: str, body: Mapping[str, Json]
) -> MasterProof:
    wire = await hub.vault()
    if wire.account_id != vault.account_id:
        raise HubDistrusted("the hub gave the vault of another account")
    if wire.master_check != key_check(vault.master_key, vault.account_id, 1):
        raise VaultMoved("the master key was changed by another device")
    key = vault.identity.signing_key
    if wire.identity.signing_key != b64(key.public().to_bytes()):
        raise VaultMoved("the identity was changed by another device")
    signature = sign_proof(key, vault.account_id, action, wire.challenge, body)
    return MasterProof(challenge=wire.challenge, signature=b64(signature))
