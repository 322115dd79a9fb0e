"""Last writer wins, per path, as a pure function.

Commutative, associative and idempotent: any two replicas that saw the same entries agree,
whatever came first, how often and in which grouping. Guarded fields stand outside: the hub's
order decides them (docs/protocol/sync.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from mana.domain.encoding import canonical_json
from mana.domain.records import Entry, key_version


def rank(entry: Entry) -> tuple[str, int, bytes, bytes, str, str]:
    """Return the total order of entries: stamp, key version, then bytes.

    A re-sealed value keeps its stamp and takes a newer key version, so it replaces the old
    envelope and never beats an edit. Equal stamps carry different bytes only if a device was
    cloned; the rest of the tuple then picks one, the same on every replica.
    """
    return (
        entry.at,
        key_version(entry.value),
        canonical_json(entry.value),
        canonical_json(entry.actor.to_wire()),
        entry.origin,
        entry.change_id,
    )


def later(ours: Entry, theirs: Entry) -> Entry:
    """Return the entry that stands when both were written to one path."""
    # Stamps differ nearly always; the bytes are compared only when they do not.
    if ours.at != theirs.at:
        return ours if ours.at > theirs.at else theirs
    return ours if rank(ours) >= rank(theirs) else theirs


def merge_entries(ours: Mapping[str, Entry], theirs: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entries by path after both sides were seen."""
    merged = dict(ours)
    for path, entry in theirs.items():
        mine = merged.get(path)
        merged[path] = entry if mine is None else later(mine, entry)
    return merged
