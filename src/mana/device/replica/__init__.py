"""The device's copy of its records, in one SQLite file per account. Nothing else speaks SQL here."""

from mana.device.replica.database import Replica
from mana.device.replica.marker import CopyState, certify_place, inspect_place
from mana.device.replica.outbox import Outbox
from mana.device.replica.shapes import HUB_TIME, OutboxRow, Overwritten, Space, Watch
from mana.device.replica.state import Resend
from mana.device.replica.transaction import Tx

__all__ = [
    "HUB_TIME",
    "CopyState",
    "Outbox",
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
