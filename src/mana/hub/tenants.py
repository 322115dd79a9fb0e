"""Whose data a transaction may touch: a plain value that every layer of the hub passes on."""

from __future__ import annotations

from dataclasses import dataclass

from mana.domain.ids import AccountId, require_uuid


@dataclass(frozen=True, slots=True)
class Tenant:
    """One account, checked to be a UUID, so that it can never carry anything into a query."""

    account: AccountId

    def __post_init__(self) -> None:
        require_uuid(self.account, "account id")
