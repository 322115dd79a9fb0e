"""What the runner remembers beside the database, because a database can be put back.

Grants that it saw end, the newest stamp at which a mission named its grant, and the newest
audit head that it wrote for each account. Every entry only grows, so that several runners
share one file by joining what they know; an entry goes when no grant that it could refuse
can be alive. Decision 0011.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from mana.domain.errors import Unavailable
from mana.domain.grants import LIFE_MS_MAX
from mana.hub.runner.files import locked, write_secret
from mana.hub.runner.keys import FOLDER, now_by_machine
from mana.hub.runner.settings import RunnerSettings

MEMORY_FILE: Final = f"{FOLDER}/memory.json"
LOCK_FILE: Final = f"{FOLDER}/memory.lock"
SLACK_MS: Final = 24 * 60 * 60 * 1_000
"""How far the clocks of machine and database may be apart before an entry goes too early."""
KEPT_MS: Final = LIFE_MS_MAX + SLACK_MS


class MemoryUnusable(Unavailable):
    """The runner's memory is there and cannot be read or written."""

    code = "RUNNER_MEMORY_UNUSABLE"
    advice = (
        "Restore `secrets/runner/memory.json` from a backup, or make room on the disk. Without "
        "it, remove the folder `secrets/runner`: every person grants anew."
    )


class _Known(msgspec.Struct, forbid_unknown_fields=True):
    """By grant: its signed end. By mission: stamp, kept until. By account: head, kept until."""

    version: int = 1
    ended: dict[str, int] = msgspec.field(default_factory=dict)
    named: dict[str, tuple[str, int]] = msgspec.field(default_factory=dict)
    heads: dict[str, tuple[int, str, int]] = msgspec.field(default_factory=dict)

    def join(self, other: _Known) -> None:
        """Take in what another one knows."""
        for grant, until_ms in other.ended.items():
            self.ended[grant] = max(until_ms, self.ended.get(grant, 0))
        for mission, name in other.named.items():
            self.named[mission] = max(name, self.named.get(mission, name))
        for account, head in other.heads.items():
            self.heads[account] = max(head, self.heads.get(account, head))

    def prune(self, now_ms: int) -> None:
        """Drop what can refuse nothing any more."""
        self.ended = {one: at for one, at in self.ended.items() if at + SLACK_MS > now_ms}
        self.named = {one: name for one, name in self.named.items() if name[-1] > now_ms}
        self.heads = {one: head for one, head in self.heads.items() if head[-1] > now_ms}


class RunnerMemory:
    """The memory of the runners that share a folder. What it is told is on the disk on return."""

    def __init__(
        self, settings: RunnerSettings, *, now_ms: Callable[[], int] = now_by_machine
    ) -> None:
        self._path = settings.secrets_dir / MEMORY_FILE
        self._lock = settings.secrets_dir / LOCK_FILE
        self._now_ms = now_ms
        self._changing = threading.Lock()
        self._known = _Known()
        self._is_ahead = False
        self._seen: tuple[int, int, int] | None = None
        self._refresh()

    def has_ended(self, grant_id: str) -> bool:
        """Say whether a grant was seen to end before its time."""
        self._refresh()
        return grant_id in self._known.ended

    def named_at(self, space_id: str, mission_id: str) -> str:
        """Return the newest stamp at which a mission named its grant; empty if none is known."""
        self._refresh()
        return self._known.named.get(_mission(space_id, mission_id), ("", 0))[0]

    def head(self, account_id: str) -> tuple[int, str] | None:
        """Return number and hash of the newest audit row that was written for an account."""
        self._refresh()
        found = self._known.heads.get(account_id)
        return None if found is None else found[:2]

    async def saw_end(self, ends: Mapping[str, int]) -> None:
        """Remember grants that ended, by id, each until its signed end (milliseconds)."""
        await self._take(_Known(ended=dict(ends)))

    async def saw(
        self,
        account_id: str,
        *,
        space_id: str,
        mission_id: str,
        named_at: str,
        head: tuple[int, str],
    ) -> None:
        """Remember an audit head that was written, and when its mission named its grant."""
        until_ms = self._now_ms() + KEPT_MS
        named = {_mission(space_id, mission_id): (named_at, until_ms)} if named_at else {}
        await self._take(_Known(named=named, heads={account_id: (*head, until_ms)}))

    async def _take(self, news: _Known) -> None:
        self._refresh()
        is_known = set(news.ended) <= set(self._known.ended)
        if is_known and not (news.named or news.heads or self._is_ahead):
            return
        await asyncio.to_thread(self._join, news)

    def _join(self, news: _Known) -> None:
        with self._changing:
            try:
                with locked(self._lock):
                    found = self._read()
                    found.join(self._known)
                    found.join(news)
                    found.prune(self._now_ms())
                    write_secret(self._path, msgspec.json.encode(found).decode("ascii"))
            except OSError:
                raise MemoryUnusable("the runner's memory cannot be written") from None
            self._known, self._seen, self._is_ahead = found, self._mark(), False

    def _refresh(self) -> None:
        """Read again what another runner wrote."""
        mark = self._mark()
        if mark != self._seen:
            disk, found = self._read(), _Known()
            # What was known stays known, also if the file is an older one by now, or is gone.
            for known in (disk, self._known):
                found.join(known)
            self._known, self._seen, self._is_ahead = found, mark, found != disk

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def _read(self) -> _Known:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Known)
        except FileNotFoundError:
            return _Known()
        except (OSError, msgspec.MsgspecError):
            raise MemoryUnusable("the runner's memory cannot be read") from None


def _mission(space_id: str, mission_id: str) -> str:
    return f"{space_id}:{mission_id}"
