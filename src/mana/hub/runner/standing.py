"""Who may decide in a space, and what of theirs was verified, as long as a worker lives.

Many runs of an account read the same agent and the same memory under the same log of members.
What was verified once is remembered by a hash of all of it, sealed as it came: another byte, or
another log, certificate or revocation, is verified anew.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mana.crypto.authority import Authority, authority_of, verify_record
from mana.domain.encoding import sha256
from mana.domain.tables import Table
from mana.hub.runner.dialogue import Standing
from mana.protocol.messages import StateRecord
from mana.protocol.replication import apply_state

OBEYED_MAX: Final = 1_024
"""How many records a worker remembers as verified; beyond it, it begins anew."""


class Space:
    """One space as one `Standing` tells of it."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._authority: Authority | None = None
        self._obeyed: set[bytes] = set()

    def authority(self) -> Authority:
        """Return what the signed log and certificates come to; raise as `authority_of` does."""
        if self._authority is None:
            told = self._standing
            self._authority = authority_of(
                told.space_id, told.log, told.certificates, told.revocations
            )
        return self._authority

    def require_obeyed(self, record: StateRecord, table: Table) -> None:
        """Raise, as `verify_record` does, unless all of a record is to be obeyed."""
        digest = sha256(msgspec.msgpack.encode(record))
        if digest in self._obeyed:
            return
        verify_record(self.authority(), apply_state(None, record, guarded=by_stamp), table)
        if len(self._obeyed) >= OBEYED_MAX:
            self._obeyed.clear()
        self._obeyed.add(digest)


def by_stamp(_table: str, _path: str) -> bool:
    """Say that no path is guarded: a record that is read alone stands as it is."""
    return False
