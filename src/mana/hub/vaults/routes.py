"""The endpoints of vaults."""

from __future__ import annotations

from typing import Final

from mana.hub.http.endpoints import Call, Endpoint, Reply, WholeQuery
from mana.hub.vaults.service import VaultService
from mana.protocol.messages import Vault, VaultChange, VaultLog

CHANGE_BYTES_MAX: Final = 2 * 1024 * 1024
"""A change with the certificates of a thousand devices."""
AFTER: Final = WholeQuery("after", "The newest revision that the device knows", high=2**31 - 1)


def vault_routes(vaults: VaultService) -> list[Endpoint]:
    """Return the endpoints of the vault and its statements."""

    async def vault(call: Call) -> Reply:
        return await vaults.vault(call.tenant)

    async def change(call: Call) -> Reply:
        return await vaults.change(call.session, call.message(VaultChange))

    async def log(call: Call) -> Reply:
        return await vaults.statements(call.tenant, after=call.whole("after"))

    path = "/api/v1/me/vault"
    return [
        Endpoint("GET", path, vault, "What unlocks the account's keys", answer=Vault),
        Endpoint(
            "PUT",
            path,
            change,
            "Change the vault by a signed statement",
            body=VaultChange,
            answer=Vault,
            bytes_max=CHANGE_BYTES_MAX,
        ),
        Endpoint(
            "GET", f"{path}/log", log, "The vault's statements", answer=VaultLog, query=(AFTER,)
        ),
    ]
