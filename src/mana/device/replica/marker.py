"""Whether a replica is still where it was made, or a copy of one that lives on elsewhere.

Two replicas that stamp under one device id would write the same stamp for different values. So
beside the database lies a mark that names its file and machine; a copied or restored database
does not fit it, and takes a new device id.
"""

from __future__ import annotations

import json
import os
import uuid
from enum import Enum
from pathlib import Path

from mana.domain.encoding import length_prefixed, sha256


class CopyState(Enum):
    """What the mark beside a database says."""

    ORIGINAL = "original"
    COPY = "copy"


def inspect_place(database: Path, marker: str | None) -> CopyState:
    """Say whether the database with this marker is the one that was made here."""
    try:
        found = json.loads(_mark_path(database).read_text("utf-8"))
    except (OSError, ValueError):
        return CopyState.COPY
    if marker is None or found != _facts(database, marker):
        return CopyState.COPY
    return CopyState.ORIGINAL


def certify_place(database: Path, marker: str) -> None:
    """Write the mark of this database in this place."""
    path = _mark_path(database)
    draft = path.with_name(f"{path.name}.new")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(_facts(database, marker), file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _mark_path(database: Path) -> Path:
    return database.with_suffix(".place")


def _facts(database: Path, marker: str) -> dict[str, object]:
    return {"marker": marker, "inode": database.stat().st_ino, "machine": _machine()}


def _machine() -> str:
    """Return what tells this machine from others, hashed."""
    for name in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            known = Path(name).read_text("ascii").strip()
        except (OSError, ValueError):
            continue
        if known:
            return sha256(length_prefixed("mana-machine:v1", known)).hex()
    # Absent on some systems; the hardware address stands in, and 0 where it would be random.
    node = uuid.getnode()
    address = "0" if node >> 40 & 1 else str(node)
    return sha256(length_prefixed("mana-machine:v1", address)).hex()
