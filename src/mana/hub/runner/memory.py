"""What the runner remembers beside the database, because a database can be put back.

Grants that it saw end, the newest stamp at which a mission named its grant, the newest audit head
that it wrote for each account, the newest word that an account signed on its work, and the newest
stamps of what a space lifts. Every entry only grows, so that several runners share it by joining
what they know. What concerns grants goes when no grant that it could refuse can be alive; words
and lifts are kept for a year and more. How long that is is counted, as the ages of keys are, from
what the clock said when the memory began: a clock that is set makes it forget nothing. Decisions
0011 and 0015.

News are lines at the end of a journal, so that their cost does not grow with what is known; now
and then the journal is folded into the memory's file. Whatever is told at the same time goes to
the disk together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from mana.domain.errors import Unavailable
from mana.domain.grants import LIFE_MS_MAX
from mana.hub.runner.ages import Count, MachineClocks, Reading
from mana.hub.runner.files import append_line, locked, write_secret
from mana.hub.runner.keys import FOLDER
from mana.hub.runner.settings import RunnerSettings

MEMORY_FILE: Final = f"{FOLDER}/memory.json"
JOURNAL_FILE: Final = f"{FOLDER}/memory.log"
LOCK_FILE: Final = f"{FOLDER}/memory.lock"
SLACK_MS: Final = 24 * 60 * 60 * 1_000
"""How far what is counted and the database's clock may be apart before an entry goes too early."""
KEPT_MS: Final = LIFE_MS_MAX + 2 * SLACK_MS
RENEWED_MS: Final = LIFE_MS_MAX + SLACK_MS
"""An entry that is kept for less than this from now on is written anew when it is told again."""
WORD_KEPT_MS: Final = 400 * 24 * 60 * 60 * 1_000
WORD_RENEWED_MS: Final = WORD_KEPT_MS // 2
JOURNAL_BYTES_MAX: Final = 1_048_576
FOLDED_EVERY_MS: Final = 60 * 60 * 1_000


class MemoryUnusable(Unavailable):
    """The runner's memory is there and cannot be read or written."""

    code = "RUNNER_MEMORY_UNUSABLE"
    advice = (
        "Restore `secrets/runner/memory.json` and `memory.log` from a backup, or make room on the "
        "disk. Without them, remove the folder `secrets/runner`: every person grants anew."
    )


class _Known(msgspec.Struct, forbid_unknown_fields=True):
    """What is known, each with the moment until which it is kept.

    By grant: its signed end, or a later moment. By mission: a stamp. By account: a head, and
    revision and hash of a word. By space: stamps by path. `count`: by which these moments are
    reckoned, in the memory's file only.
    """

    version: int = 1
    count: Count | None = None
    ended: dict[str, int] = msgspec.field(default_factory=dict)
    named: dict[str, tuple[str, int]] = msgspec.field(default_factory=dict)
    heads: dict[str, tuple[int, str, int]] = msgspec.field(default_factory=dict)
    words: dict[str, tuple[int, str, int]] = msgspec.field(default_factory=dict)
    lifted: dict[str, tuple[dict[str, str], int]] = msgspec.field(default_factory=dict)

    def join(self, other: _Known) -> None:
        """Take in what another one knows."""
        for grant, until_ms in other.ended.items():
            self.ended[grant] = max(until_ms, self.ended.get(grant, 0))
        for mission, name in other.named.items():
            self.named[mission] = max(name, self.named.get(mission, name))
        for account, head in other.heads.items():
            self.heads[account] = max(head, self.heads.get(account, head))
        for account, word in other.words.items():
            self.words[account] = max(word, self.words.get(account, word))
        for space, (stamps, until_ms) in other.lifted.items():
            known, kept_ms = self.lifted.get(space, ({}, 0))
            self.lifted[space] = (_newest(known, stamps), max(until_ms, kept_ms))

    def __bool__(self) -> bool:
        """Say whether anything is known."""
        return bool(self.ended or self.named or self.heads or self.words or self.lifted)

    def prune(self, now_ms: int) -> None:
        """Drop what can refuse nothing any more."""
        self.ended = {one: at for one, at in self.ended.items() if at + SLACK_MS > now_ms}
        self.named = {one: name for one, name in self.named.items() if name[-1] > now_ms}
        self.heads = {one: head for one, head in self.heads.items() if head[-1] > now_ms}
        self.words = {one: word for one, word in self.words.items() if word[-1] > now_ms}
        self.lifted = {one: lift for one, lift in self.lifted.items() if lift[-1] > now_ms}


class _Mark(NamedTuple):
    """By which a file is known to be the same; the journal's size is how far it was read."""

    inode: int = 0
    modified_ns: int = 0
    size: int = 0


class _News:
    """What is told while other news are on their way to the disk."""

    def __init__(self) -> None:
        self.known = _Known()
        self.written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Whoever told it may be gone before it is written.
        self.written.add_done_callback(lambda done: done.cancelled() or done.exception())


class RunnerMemory:
    """The memory of the runners that share a folder. What it is told is on the disk on return."""

    def __init__(
        self, settings: RunnerSettings, *, clocks: Callable[[], Reading] | None = None
    ) -> None:
        self._path = settings.secrets_dir / MEMORY_FILE
        self._journal = settings.secrets_dir / JOURNAL_FILE
        self._lock = settings.secrets_dir / LOCK_FILE
        self._clocks = clocks or MachineClocks()
        self._known = _Known()
        self._is_ahead = False
        self._news: _News | None = None
        self._writing: asyncio.Task[None] | None = None
        self._seen = self._marks()
        now = self._clocks()
        count = self._read_all() or Count.begun(now, counted_ms=now.wall_ms)
        self._count = count.at(now)
        self._folded_ms = self._now_ms()

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

    def word(self, account_id: str) -> tuple[int, str] | None:
        """Return revision and hash of the newest word that an account signed on its work."""
        self._refresh()
        found = self._known.words.get(account_id)
        return None if found is None else found[:2]

    def lifted(self, space_id: str) -> Mapping[str, str]:
        """Return by path the newest stamps of what a space lifts, or lifts no more."""
        self._refresh()
        return self._known.lifted.get(space_id, ({}, 0))[0]

    async def saw_end(self, ends: Mapping[str, int]) -> None:
        """Remember grants that ended, by id, each at least until its signed end (milliseconds)."""
        self._refresh()
        known, soonest_ms = self._known.ended, self._now_ms() + RENEWED_MS
        ended = {one: max(at, soonest_ms) for one, at in ends.items() if one not in known}
        await self._take(_Known(ended=ended))

    async def saw_all(
        self,
        account_id: str,
        *,
        named: Mapping[tuple[str, str], str],
        head: tuple[int, str],
    ) -> None:
        """Remember an audit head that was written, and when missions named their grants.

        `named`: by space and mission the stamp of `grantId`; empty where none is named.
        """
        self._refresh()
        now_ms = self._now_ms()
        told: dict[str, tuple[str, int]] = {}
        for mission, at in named.items():
            name = _mission(*mission)
            known_at, until_ms = self._known.named.get(name, ("", 0))
            if at > known_at or (at and at == known_at and until_ms < now_ms + RENEWED_MS):
                told[name] = (at, now_ms + KEPT_MS)
        heads = {account_id: (*head, now_ms + KEPT_MS)}
        await self._take(_Known(named=told, heads=heads))

    async def saw_word(self, account_id: str, revision: int, digest: str) -> None:
        """Remember a word that an account signed on its work, if none newer is known."""
        self._refresh()
        now_ms = self._now_ms()
        known = self._known.words.get(account_id, (0, "", 0))
        if revision > known[0] or known[-1] < now_ms + WORD_RENEWED_MS:
            word = (revision, digest, now_ms + WORD_KEPT_MS)
            await self._take(_Known(words={account_id: word}))

    async def saw_lifted(self, space_id: str, stamps: Mapping[str, str]) -> None:
        """Remember by path the stamps of what a space lifts, or lifts no more."""
        self._refresh()
        now_ms = self._now_ms()
        known, until_ms = self._known.lifted.get(space_id, ({}, 0))
        if stamps and (_newest(known, stamps) != known or until_ms < now_ms + WORD_RENEWED_MS):
            lifted = {space_id: (dict(stamps), now_ms + WORD_KEPT_MS)}
            await self._take(_Known(lifted=lifted))

    async def _take(self, news: _Known) -> None:
        """Put news on the disk, with all else that is told meanwhile."""
        if not news and not self._is_ahead:
            return
        if self._news is None:
            self._news = _News()
        mine = self._news
        mine.known.join(news)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="runner-memory")
        await asyncio.shield(mine.written)

    async def _write_all(self) -> None:
        """Write until nobody waits any more."""
        try:
            while (news := self._news) is not None:
                self._news = None
                try:
                    await self._write(news.known)
                except Exception as error:
                    news.written.set_exception(error)
                else:
                    news.written.set_result(None)
        finally:
            self._writing = None

    async def _write(self, news: _Known) -> None:
        now_ms = self._now_ms()
        is_due = self._is_ahead or now_ms - self._folded_ms >= FOLDED_EVERY_MS
        if is_due or self._seen[1].size > JOURNAL_BYTES_MAX:
            whole = _Known()
            whole.join(self._known)
            whole.join(news)
            self._known, self._seen = await asyncio.to_thread(self._fold, whole, now_ms)
            self._is_ahead, self._folded_ms = False, now_ms
        else:
            await asyncio.to_thread(self._append, msgspec.json.encode(news))
            self._known.join(news)

    def _append(self, line: bytes) -> None:
        try:
            with locked(self._lock):
                append_line(self._journal, line)
        except OSError:
            raise MemoryUnusable("the runner's memory cannot be written") from None

    def _fold(self, known: _Known, now_ms: int) -> tuple[_Known, tuple[_Mark, _Mark]]:
        """Write all that is known into the memory's file, and begin a new journal."""
        try:
            with locked(self._lock):
                for one in (_lines(self._journal, 0)[0], self._read_file()):
                    known.join(one)
                known.prune(now_ms)
                counted = msgspec.structs.replace(known, count=self._count.at(self._clocks()))
                write_secret(self._path, msgspec.json.encode(counted).decode("ascii"))
                write_secret(self._journal, "")
                return known, self._marks()
        except OSError:
            raise MemoryUnusable("the runner's memory cannot be written") from None

    def _refresh(self) -> None:
        """Read what another runner wrote."""
        marks = self._marks()
        if marks == self._seen:
            return
        (file, journal), (seen_file, seen_journal) = marks, self._seen
        grown = journal.size - seen_journal.size
        if file == seen_file and journal.inode == seen_journal.inode and grown >= 0:
            news, size = _lines(self._journal, seen_journal.size)
            self._known.join(news)
            self._seen = (file, journal._replace(size=size))
        else:
            self._seen = marks
            self._read_all()

    def _read_all(self) -> Count | None:
        """Read the files, marked as they are, from their beginning; return how far they counted."""
        disk, found = _Known(), _Known()
        from_journal, size = _lines(self._journal, 0)
        kept = self._read_file()
        for one in (from_journal, kept):
            disk.join(one)
        # What was known stays known, also if the files are older ones by now, or are gone.
        for one in (disk, self._known):
            found.join(one)
        self._known, self._is_ahead = found, found != disk or kept.count is None
        self._seen = (self._seen[0], self._seen[1]._replace(size=size))
        return kept.count

    def _now_ms(self) -> int:
        return self._count.ms_at(self._clocks())

    def _marks(self) -> tuple[_Mark, _Mark]:
        return _mark(self._path), _mark(self._journal)

    def _read_file(self) -> _Known:
        """Return what the file holds. Read the journal first: what leaves it is in the file then."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Known)
        except FileNotFoundError:
            return _Known()
        except (OSError, msgspec.MsgspecError):
            raise MemoryUnusable("the runner's memory cannot be read") from None


def _lines(path: Path, start: int) -> tuple[_Known, int]:
    """Return what the whole lines from `start` on hold together, and where they end.

    What stands behind the last of them was never told to anybody: it was not written whole.
    """
    found = _Known()
    try:
        with path.open("rb") as file:
            file.seek(start)
            raw = file.read()
        whole = raw[: raw.rfind(b"\n") + 1]
        for line in whole.splitlines():
            found.join(msgspec.json.decode(line, type=_Known))
    except FileNotFoundError:
        return found, 0
    except (OSError, msgspec.MsgspecError):
        raise MemoryUnusable("the runner's memory cannot be read") from None
    return found, start + len(whole)


def _mark(path: Path) -> _Mark:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return _Mark()
    return _Mark(stat.st_ino, stat.st_mtime_ns, stat.st_size)


def _newest(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    return {path: max(one.get(path, ""), other.get(path, "")) for path in {*one, *other}}


def _mission(space_id: str, mission_id: str) -> str:
    return f"{space_id}:{mission_id}"
