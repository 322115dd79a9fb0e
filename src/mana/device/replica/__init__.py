"""The device's copy of its records, in one SQLite file per account. Nothing else speaks SQL here."""

from mana.device.replica.database import Replica
from mana.device.replica.marker import CopyState, certify_place, inspect_place
from mana.device.replica.tables import HUB_TIME, OutboxRow, Overwritten, Resend, Space, Tx, Watch

__all__ = [
    "HUB_TIME",
    "CopyState",
    "OutboxRow",
    "Overwritten",
    "Replica",
    "Resend",
    "Space",
    "Tx",
    "Watch",
    "certify_place",
    "inspect_place",
]
