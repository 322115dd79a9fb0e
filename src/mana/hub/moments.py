"""Milliseconds since 1970, as the database takes them and gives them back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from mana.domain.clock import iso_ms


def moment(ms: int) -> datetime:
    """Return milliseconds since 1970 as the driver takes them."""
    return datetime.fromtimestamp(ms // 1_000, UTC) + timedelta(milliseconds=ms % 1_000)


def millis(at: datetime) -> int:
    """Return a moment of the database as milliseconds since 1970."""
    return round(at.timestamp() * 1_000)


def iso_of(at: datetime) -> str:
    """Return a moment of the database as it is on the wire: ISO 8601, milliseconds, Z."""
    return iso_ms(millis(at))
