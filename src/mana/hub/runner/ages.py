"""How old what the runner keeps is: counted by the machine, not read off its clock.

A wall clock that jumps a year ahead would end keys that people granted to an hour ago and have
the runner forget what it saw, and one that is set back would keep a key for ever. So age is time
since the machine started, which nobody
sets, added up in a file; a clock is asked only how long the machine was off, and believed for so
many days. Normative: docs/protocol/grants.md, 8.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

from mana.hub.runner.files import write_secret

DAY_MS: Final = 24 * 60 * 60 * 1_000
OFF_MS_MAX: Final = 7 * DAY_MS
"""For how long the machine is believed to have been off, whatever its clock says."""
WRITTEN_EVERY_MS: Final = 60 * 60 * 1_000
_BOOT_FILE: Final = Path("/proc/sys/kernel/random/boot_id")


class Reading(NamedTuple):
    """What clocks say in one moment. `up_ms`: since `boot`; `wall_ms`: what anybody may set."""

    boot: str
    up_ms: int
    wall_ms: int


def now_by_machine() -> int:
    """Return the machine's wall clock in milliseconds."""
    return time.time_ns() // 1_000_000


class MachineClocks:
    """The clocks of this machine."""

    def __init__(self) -> None:
        try:
            self._boot = _BOOT_FILE.read_text(encoding="ascii").strip()
            self._clock = time.CLOCK_BOOTTIME
        except (OSError, AttributeError):
            # What another process counted from is not known here.
            self._boot = f"process-{uuid.uuid4()}"
            self._clock = time.CLOCK_MONOTONIC

    def __call__(self) -> Reading:
        """Return what they say now."""
        up_ms = time.clock_gettime_ns(self._clock) // 1_000_000
        return Reading(self._boot, up_ms, now_by_machine())


class Count(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What was counted up to a moment, and what the clocks said then. Milliseconds."""

    counted_ms: int
    boot: str
    up_ms: int
    newest_ms: int

    @classmethod
    def begun(cls, now: Reading, *, counted_ms: int = 0) -> Self:
        """Begin to count."""
        return cls(counted_ms, now.boot, now.up_ms, now.wall_ms)

    def ms_at(self, now: Reading) -> int:
        """Return what is counted by now."""
        if now.boot == self.boot and now.up_ms >= self.up_ms:
            return self.counted_ms + now.up_ms - self.up_ms
        off_ms = now.wall_ms - self.newest_ms
        return self.counted_ms + min(max(off_ms, 0), OFF_MS_MAX)

    def at(self, now: Reading) -> Count:
        """Return what is counted by now, to go on from."""
        return Count(self.ms_at(now), now.boot, now.up_ms, max(now.wall_ms, self.newest_ms))


class _Kept(Count, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The file: what was counted when it was written, and at which count each key was made."""

    made: dict[str, int] = msgspec.field(default_factory=dict)
    version: int = 1


class Ages:
    """The ages of the keys of one folder. `read` and `write` are called under the folder's lock."""

    def __init__(self, path: Path, clocks: Callable[[], Reading]) -> None:
        self._path = path
        self._clocks = clocks
        self._kept = self._begun()

    def read(self) -> None:
        """Take what the runners of this folder counted so far."""
        try:
            self._kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except (OSError, msgspec.MsgspecError):
            # Nothing secret, and no key is lost with it: each is then as old as its file says.
            self._kept = self._begun()

    def write(self, key_ids: Iterable[str]) -> None:
        """Keep what is counted, and of these keys since when."""
        count = self._kept.at(self._clocks())
        made = {one: self._kept.made.get(one, count.counted_ms) for one in key_ids}
        self._kept = _Kept(**msgspec.structs.asdict(count), made=made)
        write_secret(self._path, msgspec.json.encode(self._kept).decode("ascii"))

    def know(self, key_id: str, *, made_ms: int, age_ms_max: int) -> None:
        """Take a key of which nothing is kept: as old as the clock says, but no older than this."""
        if key_id in self._kept.made:
            return
        now = self._clocks()
        by_clock = now.wall_ms - made_ms
        # One from the future was made by a clock that was wrong: its age is not known.
        age_ms = age_ms_max if by_clock < -DAY_MS else min(max(by_clock, 0), age_ms_max)
        self._kept.made[key_id] = self._kept.ms_at(now) - age_ms

    def age_ms(self, key_id: str) -> int:
        """Return for how long a known key has been in use."""
        return self._kept.ms_at(self._clocks()) - self._kept.made[key_id]

    def is_stale(self) -> bool:
        """Say whether what was counted since is more than a crash should lose."""
        return self._kept.ms_at(self._clocks()) - self._kept.counted_ms >= WRITTEN_EVERY_MS

    def wall_ms(self) -> int:
        """Return what the wall clock says."""
        return self._clocks().wall_ms

    def _begun(self) -> _Kept:
        return _Kept.begun(self._clocks())
