"""The device's copy of its records, in one SQLite file per account. Nothing else speaks SQL here."""

from mana.device.replica.database import Replica
from mana.device.replica.marker import CopyState, certify_place, inspect_place
from mana.device.replica.tables import OutboxRow, Space, Tx

__all__ = [
    "CopyState",
    "OutboxRow",
    "Replica",
    "Space",
    "Tx",
    "certify_place",
    "inspect_place",
]
