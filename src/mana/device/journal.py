"""The journal of AI writes, and how any of them is undone, and redone.

Every write of an agent leaves a journal record per changed record, with what stood before and
after, in the same group as the write. A write is known by its change id, which is derived: so
it is still known after a re-stamp, and the same from every device. A path is restored only if
it still stems from that change, or was written in the same revert; everything else is a
conflict, shown and left alone. A revert is journalled too, so it can be reverted.

The rule is the pure function `plan`; preview and revert differ in the commit alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from mana.device.diffs import record_diff
from mana.device.flips import flip_change_id
from mana.device.opened import Opened
from mana.device.views import Conflict, RecordDiff, RevertPreview
from mana.device.writing import Write
from mana.domain.actors import Actor
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, NotFound
from mana.domain.ids import RecordId, derived_id
from mana.domain.iterations import JOURNAL, PathImage
from mana.domain.records import Record, View
from mana.domain.tables import DELETED_AT

TARGETS: Final = ("step", "iteration", "mission", "revert")
GROUP_MAX: Final = 400
"""Changes in one group; the hub takes a group in one batch of at most 500."""


class NothingToRevert(NotFound):
    """There is no AI write behind this that could be reverted, or it is reverted already."""

    code: ClassVar[str] = "NOTHING_TO_REVERT"
    advice: ClassVar[str] = "Look at the timeline; it may have been reverted on another device."


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One record of the journal, opened. `at` orders entries: when it was written."""

    id: str
    table: str
    record_id: str
    mission_id: str
    iteration_id: str
    step_id: str
    revert_of: str | None
    reverted_at: str | None
    before: Mapping[str, PathImage]
    after: Mapping[str, PathImage]
    created: bool
    sentence: str
    at: str

    @property
    def write_id(self) -> str:
        """Return the id of the change that this entry stands for."""
        if self.revert_of is not None:
            return revert_change_id(self.revert_of)
        return decide_change_id(self.step_id, self.table, self.record_id)


@dataclass(frozen=True, slots=True)
class Chain:
    """A write and its reverts, oldest first: write, revert, redo, revert, …"""

    entries: tuple[JournalEntry, ...]

    @property
    def last(self) -> JournalEntry:
        """Return the newest entry, the only one that can be reverted."""
        return self.entries[-1]

    @property
    def reverted(self) -> bool:
        """Say whether the write is undone as things stand."""
        return len(self.entries) % 2 == 0

    def wrote(self, path: str, now: PathNow) -> bool:
        """Say whether what stands at a path stems from this chain."""
        return now.change_id in self.write_ids or _kept_by_flip(self.last, path, now)

    @property
    def write_ids(self) -> frozenset[str]:
        """Return the ids of all changes of this chain."""
        return frozenset(entry.write_id for entry in self.entries)

    @property
    def reverted_at(self) -> str | None:
        """Return when the newest revert was made, the same for all that it undid."""
        return self.entries[-2].reverted_at if self.reverted else None


@dataclass(frozen=True, slots=True)
class PathNow:
    """What stands at a path: its value, stamp, change and who wrote it.

    `flipped`: the change is one of visibility, which wrote again what stood there before.
    """

    value: Json
    at: str
    change_id: str
    actor: Actor
    flipped: bool = False


@dataclass(frozen=True, slots=True)
class RecordNow:
    """A record as it stands. `paths` is empty if it is gone altogether."""

    title: str
    paths: Mapping[str, PathNow] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Restoration:
    """The change that undoes one entry: `values` to write, `before` what they replace."""

    entry: JournalEntry
    before: Mapping[str, PathImage]
    values: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a revert would do, in the order in which it does it."""

    restorations: tuple[Restoration, ...]
    conflicts: tuple[Conflict, ...]


def decide_change_id(step_id: str, table: str, record_id: str) -> str:
    """Return the id of the change of a record that a decision on a step makes."""
    return derived_id("change", step_id, table, record_id, "decide")


def revert_change_id(journal_id: str) -> str:
    """Return the id of the change that undoes a journal entry."""
    return derived_id("change", journal_id, "revert")


def journal_id(step_id: str, table: str, record_id: str) -> str:
    """Return the id of the journal record of a step's write."""
    return derived_id("journal", step_id, table, record_id)


def entry_of(view: View) -> JournalEntry | None:
    """Return the entry of a journal record; None if it cannot be read here."""
    table, record_id = view.text("targetTable"), view.text("targetId")
    before, after = _images(view.values.get("before")), _images(view.values.get("after"))
    if view.deleted or before is None or after is None or not (table and record_id):
        return None
    revert_of, reverted_at = view.text("revertOf"), view.text("revertedAt")
    return JournalEntry(
        id=view.id,
        table=table,
        record_id=record_id,
        mission_id=view.text("missionId"),
        iteration_id=view.text("iterationId"),
        step_id=view.text("stepId"),
        revert_of=revert_of or None,
        reverted_at=reverted_at or None,
        before=before,
        after=after,
        created=view.values.get("created") is True,
        sentence=view.text("sentence"),
        at=view.stamps.get("targetId") or view.created_at,
    )


def chains(entries: Iterable[JournalEntry]) -> list[Chain]:
    """Return the writes with their reverts, newest write first."""
    known = {entry.id: entry for entry in entries}
    undone_by = {entry.revert_of: entry for entry in known.values() if entry.revert_of}
    found: list[Chain] = []
    for entry in known.values():
        if entry.revert_of is not None:
            continue
        line, seen = [entry], {entry.id}
        while (following := undone_by.get(line[-1].id)) is not None and following.id not in seen:
            seen.add(following.id)
            line.append(following)
        found.append(Chain(tuple(line)))
    return sorted(found, key=lambda one: (one.entries[0].at, one.entries[0].id), reverse=True)


def plan(
    targets: Sequence[Chain],
    records: Mapping[tuple[str, str], RecordNow],
    *,
    now_iso: str,
    account_id: str,
) -> Plan:
    """Return what undoing the last entry of each chain restores and what it leaves.

    Chains come in the order in which they are undone. Nothing is restored over anything that
    another change than the undone one wrote, unless that change is part of this revert.
    """
    written: dict[tuple[str, str], dict[str, Json]] = {}
    restorations: list[Restoration] = []
    conflicts: list[Conflict] = []
    for chain in targets:
        entry = chain.last
        key = (entry.table, entry.record_id)
        record = records.get(key, RecordNow(""))
        mine = written.setdefault(key, {})
        values, refused = _undo(chain, record, mine, now_iso=now_iso, account_id=account_id)
        conflicts += [
            Conflict(entry.table, entry.record_id, record.title, path, reason)
            for path, reason in refused.items()
        ]
        if values:
            before = {path: _image(path, record, mine) for path in values}
            restorations.append(Restoration(entry, before, values))
            mine.update(values)
    return Plan(tuple(restorations), tuple(conflicts))


def _undo(
    chain: Chain,
    record: RecordNow,
    mine: Mapping[str, Json],
    *,
    now_iso: str,
    account_id: str,
) -> tuple[dict[str, Json], dict[str, str]]:
    """Return values to write and, by path, reasons to leave others."""
    entry = chain.last
    if not record.paths:
        return {}, dict.fromkeys(entry.after, "The record is gone.")
    tombstone = mine.get(DELETED_AT, _value(record, DELETED_AT))
    if entry.created:
        if tombstone is not None:
            return {}, {DELETED_AT: "The record was deleted since."}
        since = _edited_since(chain, record, mine)
        if since is not None:
            return {}, {DELETED_AT: f"{_who(since, account_id)} It stays."}
        return {DELETED_AT: now_iso}, {}
    values: dict[str, Json] = {}
    refused: dict[str, str] = {}
    for path in entry.after:
        now = record.paths.get(path)
        if path not in entry.before:
            refused[path] = "What stood there before was not kept."
        elif tombstone is not None and DELETED_AT not in entry.after:
            refused[path] = "The record was deleted since."
        elif path not in mine and not _stands(entry, path, now):
            refused[path] = _who(now, account_id)
        else:
            image = entry.before[path].value
            since = _edited_since(chain, record, mine) if path == DELETED_AT and image else None
            if since is not None:
                refused[path] = f"{_who(since, account_id)} It stays."
            else:
                values[path] = image
    return values, refused


def _edited_since(chain: Chain, record: RecordNow, mine: Mapping[str, Json]) -> PathNow | None:
    """Return a path that somebody wrote after this chain's write; None if nobody did."""
    since = min(
        (now.at for path, now in record.paths.items() if chain.wrote(path, now)),
        default="",
    )
    foreign = [
        now
        for path, now in record.paths.items()
        if not chain.wrote(path, now)
        and path not in mine
        # A flip gives all paths one stamp, so that it no longer tells what came first.
        and (now.flipped or now.at > since)
    ]
    return max(foreign, key=lambda now: now.at, default=None)


def _stands(entry: JournalEntry, path: str, now: PathNow | None) -> bool:
    """Say whether a path is as this entry's write left it."""
    return now is not None and (now.change_id == entry.write_id or _kept_by_flip(entry, path, now))


def _kept_by_flip(entry: JournalEntry, path: str, now: PathNow) -> bool:
    """Say whether a change of visibility carried on what this entry wrote."""
    return now.flipped and path in entry.after and entry.after[path].value == now.value


def _who(now: PathNow | None, account_id: str) -> str:
    """Return who changed something since, as a sentence."""
    if now is None:
        return "It is not there any more."
    if now.actor.kind == "user":
        mine = now.actor.principal_id == account_id
        return "You changed it since." if mine else "Somebody else changed it since."
    return "An agent changed it again since." if now.actor.kind == "ai" else "It changed since."


def _value(record: RecordNow, path: str) -> Json:
    now = record.paths.get(path)
    return None if now is None else now.value


def _image(path: str, record: RecordNow, mine: Mapping[str, Json]) -> PathImage:
    now = record.paths.get(path)
    if path in mine:
        return PathImage(mine[path], None)
    return PathImage(None, None) if now is None else PathImage(now.value, now.at)


def journal_write(
    *,
    entry_id: str,
    step: View,
    change: Change,
    before: Mapping[str, PathImage],
    sentence: str,
    author: Actor,
    change_id: str,
    created: bool = False,
    revert_of: str | None = None,
) -> Write:
    """Return the journal record of one write.

    `step` is any view with `missionId`, `iterationId` and `stepId`. The stamp of the write is
    given when it is committed; the write is found again by its derived change id.
    """
    values: dict[str, Json] = {
        "targetTable": change.table,
        "targetId": change.record_id,
        "missionId": step.text("missionId"),
        "iterationId": step.text("iterationId"),
        "stepId": step.text("stepId") or step.id,
        "before": {path: image.to_wire() for path, image in before.items()},
        "after": {path: PathImage(value, None).to_wire() for path, value in change.values.items()},
        "created": created,
        "sentence": sentence,
    }
    if revert_of is not None:
        values["revertOf"] = revert_of
    record = Change(JOURNAL.name, RecordId(entry_id), ChangeKind.CREATE, values)
    return Write(record, author, change_id=change_id)


class Journal:
    """The journal of one account, and what undoes its entries."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    async def chains(self) -> list[Chain]:
        """Return every AI write with its reverts, newest first."""
        views = await self._opened.book.views(JOURNAL.name)
        return chains(entry for view in views if (entry := entry_of(view)) is not None)

    async def record_now(self, table: str, record_id: str) -> RecordNow:
        """Return a record as it stands, by path."""
        view = await self._opened.find(table, record_id)
        record = await self._opened.book.record(table, record_id) if view is not None else None
        if view is None or record is None:
            return RecordNow("")
        opened = await self._opened.book.opened_paths(table, record_id)
        return RecordNow(self._opened.title(view), _paths(opened, record))

    async def preview(self, target: str) -> RevertPreview:
        """Return what `revert` would restore and leave; raise NothingToRevert."""
        made, records = await self._plan(target)
        return self._shown(target, made, records)

    async def revert(self, target: str) -> RevertPreview:
        """Undo, in as few groups as the hub takes; return what was restored and left."""
        made, records = await self._plan(target)
        shown = self._shown(target, made, records)
        # One moment for all of it: by this a whole revert is found again and taken back.
        moment = self._opened.now_iso()
        batch: list[Write] = []
        first: JournalEntry | None = None
        for restoration in made.restorations:
            writes = self._writes(restoration, moment)
            if first is not None and len(batch) + len(writes) > GROUP_MAX:
                await self._commit(batch, first)
                batch, first = [], None
            batch += writes
            first = first or restoration.entry
        if first is not None:
            await self._commit(batch, first)
        return shown

    async def _commit(self, batch: list[Write], first: JournalEntry) -> None:
        group = derived_id("group", first.id, "revert", str(len(batch)))
        await self._opened.book.commit(batch, group=group)

    async def _plan(self, target: str) -> tuple[Plan, dict[tuple[str, str], RecordNow]]:
        found = _targets(await self.chains(), target)
        if not found:
            raise NothingToRevert("nothing stands behind this that could be reverted")
        keys = dict.fromkeys((chain.last.table, chain.last.record_id) for chain in found)
        records = {key: await self.record_now(*key) for key in keys}
        made = plan(
            found,
            records,
            now_iso=self._opened.now_iso(),
            account_id=self._opened.account_id,
        )
        return made, records

    def _writes(self, restoration: Restoration, moment: str) -> list[Write]:
        """Return the three writes of one restoration: the values, their journal, the mark."""
        entry, author = restoration.entry, self._opened.person
        kind = ChangeKind.UPDATE
        if restoration.values.get(DELETED_AT) is not None:
            kind = ChangeKind.DELETE
        change = Change(entry.table, RecordId(entry.record_id), kind, restoration.values)
        entry_id = derived_id("journal", entry.id, entry.table, entry.record_id)
        stands = View(
            JOURNAL.name,
            RecordId(entry.id),
            {
                "missionId": entry.mission_id,
                "iterationId": entry.iteration_id,
                "stepId": entry.step_id,
            },
        )
        mark = Change(
            JOURNAL.name,
            RecordId(entry.id),
            ChangeKind.UPDATE,
            {"revertedAt": moment},
        )
        return [
            Write(change, author, change_id=revert_change_id(entry.id)),
            journal_write(
                entry_id=entry_id,
                step=stands,
                change=change,
                before=restoration.before,
                sentence=entry.sentence,
                author=author,
                change_id=derived_id("change", entry.id, "revert-journal"),
                revert_of=entry.id,
            ),
            Write(mark, author, change_id=derived_id("change", entry.id, "reverted")),
        ]

    def _shown(
        self, target: str, made: Plan, records: Mapping[tuple[str, str], RecordNow]
    ) -> RevertPreview:
        """Return the plan as the person reads it: one difference per record, first to last."""
        final: dict[tuple[str, str], dict[str, Json]] = {}
        for restoration in made.restorations:
            key = (restoration.entry.table, restoration.entry.record_id)
            final.setdefault(key, {}).update(restoration.values)
        diffs: list[RecordDiff] = []
        for key, values in final.items():
            record = records[key]
            op = "delete" if values.get(DELETED_AT) is not None else "update"
            before = {path: now.value for path, now in record.paths.items()}
            title = record.title or self._opened.catalogue.module_of(key[0])
            diffs.append(record_diff(key[0], key[1], op, before, values, title=title))
        return RevertPreview(target, tuple(diffs), made.conflicts)


def _targets(found: Sequence[Chain], target: str) -> list[Chain]:
    """Return the chains that a target names, in the order in which they are undone."""
    kind, _, name = target.partition(":")
    if kind not in TARGETS or not name:
        raise Invalid("a revert names step:, iteration:, mission: or revert: and an id")
    if kind != "revert":
        wanted = {"step": "step_id", "iteration": "iteration_id", "mission": "mission_id"}[kind]
        return [
            chain
            for chain in found
            if not chain.reverted and getattr(chain.entries[0], wanted) == name
        ]
    named = [chain for chain in found if any(entry.id == name for entry in chain.entries)]
    moments = {chain.reverted_at for chain in named if chain.reverted}
    # A whole revert is taken back: what it undid last comes back first.
    return [chain for chain in reversed(found) if chain.reverted and chain.reverted_at in moments]


def _images(value: Json) -> dict[str, PathImage] | None:
    if not isinstance(value, dict):
        return None
    found: dict[str, PathImage] = {}
    for path, image in value.items():
        if not isinstance(image, dict):
            return None
        at = image.get("at")
        found[path] = PathImage(image.get("value"), at if isinstance(at, str) else None)
    return found


def _paths(opened: Mapping[str, Json], record: Record) -> dict[str, PathNow]:
    return {
        path: PathNow(
            opened.get(path),
            entry.at,
            entry.change_id,
            entry.actor,
            flipped=entry.change_id == flip_change_id(record.table, record.id, entry.at),
        )
        for path, entry in record.entries.items()
    }


def images_before(
    change: Change, opened: Mapping[str, Json], record: Record | None
) -> dict[str, PathImage]:
    """Return what stands at the paths of a change before it is made.

    A path that stands but does not open here is left out: a revert then says so, rather than
    restoring nothing in its place.
    """
    entries = record.entries if record is not None else {}
    found: dict[str, PathImage] = {}
    for path in change.values:
        entry = entries.get(path)
        if entry is None:
            found[path] = PathImage(None, None)
        elif path in opened or entry.value is None:
            found[path] = PathImage(opened.get(path), entry.at)
    return found
