"""What the runner read, and whether its audit is whole: checked here, not believed.

Rows are chained by hash. The device walks the chain from the newest row to the first, or to the
newest it has walked before, and compares it with heads that it knows from elsewhere: the one
that the person's devices remember in their sealed settings, and those that the runner signed
into its iterations. A hub that drops, changes or swaps rows contradicts one of them.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Final

import msgspec

from mana.crypto.signatures import AUDIT_START, audit_hash
from mana.device.editing import Editing
from mana.device.grants import Grants
from mana.device.opened import Opened, shortened
from mana.device.trust import Trust
from mana.device.views import DataAccess, Reading
from mana.device.words import kind_words, unread_words
from mana.domain.agents import AGENT_MEMORY, AGENTS
from mana.domain.cadences import zone
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import CryptoFailed, Invalid, Unauthenticated, Unavailable
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.missions import MISSIONS
from mana.domain.records import View
from mana.models import rules
from mana.models.addresses import endpoint
from mana.protocol.messages import AuditAnswer, AuditRow

PAGE: Final = 1_000
LIMIT_MAX: Final = 1_000
_OF_AGENTS: Final = frozenset({AGENTS.name, AGENT_MEMORY.name})
_OF_MISSION: Final = frozenset({MISSIONS.name, ITERATIONS.name, STEPS.name})
_STATUS_WORDS: Final = {
    "failed": "could not open",
    "scope-violation": "was kept from",
    "revoked": "was refused",
}


@dataclass
class Chain:
    """What of the chain this device has walked: hashes by seq, from 1 without a gap."""

    hashes: dict[int, str] = field(default_factory=dict)
    since: str = ""
    trouble: str = ""

    @property
    def head(self) -> int:
        """Return the newest seq that was walked."""
        return len(self.hashes)


class BrokenChain(CryptoFailed):
    """Rows do not follow from each other; the message is a sentence for the person."""

    code: ClassVar[str] = "AUDIT_BROKEN"
    advice: ClassVar[str] = "Ask whoever runs the hub what happened to its audit."


@dataclass(frozen=True, slots=True)
class Audited:
    """A space in which records of the account may have been read."""

    opened: Opened
    trust: Trust
    grants: Grants


class Audit:
    """The readings of what this account granted, in whatever space: one chain for all of them."""

    def __init__(
        self,
        opened: Opened,
        editing: Editing,
        trust: Trust,
        spaces: Callable[[], Sequence[Audited]],
    ) -> None:
        self._opened = opened
        self._editing = editing
        self._trust = trust
        self._spaces = spaces
        self._chain = Chain()

    async def data_access(
        self,
        *,
        mission_id: str | None = None,
        table: str | None = None,
        status: str | None = None,
        since: str | None = None,
        until: str | None = None,
        limit: int = 200,
        before: int | None = None,
    ) -> DataAccess:
        """Return readings, newest first, with grants in force and what the check says.

        The readings can be narrowed; the chain is checked whole. `since` and `until`: ISO moments.
        """
        if not 1 <= limit <= LIMIT_MAX:
            raise Invalid(f"data access shows from 1 to {LIMIT_MAX} readings")
        listed = [one for space in self._spaces() for one in await space.grants.list()]
        grants = tuple(one for one in listed if one.state in ("active", "stale"))
        try:
            answer = await self._opened.hub.audit(
                mission_id=mission_id,
                table=table,
                status=status,
                since=since,
                until=until,
                before=before,
                limit=limit,
            )
            chain = await self._walk()
        except (Unavailable, Unauthenticated):
            words = "The hub cannot be reached, so nothing was checked."
            return DataAccess((), grants, False, words, self._chain.head)
        trouble = chain.trouble or self._foreign(answer.rows, chain)
        words = trouble or await self._words(chain)
        readings = await self._readings(answer.rows)
        return DataAccess(readings, grants, not trouble, words, chain.head, answer.more)

    async def _walk(self) -> Chain:
        """Walk what is new of the chain, compare it with what is known, and remember its head."""
        try:
            rows, head_seq, head_hash = await self._new_rows()
            chain = follow(self._chain, rows, head_seq=head_seq, head_hash=head_hash)
            await self._compare(chain)
        except BrokenChain as broken:
            return Chain(self._chain.hashes, self._chain.since, broken.message)
        self._chain = chain
        await self._remember(chain)
        return chain

    async def _new_rows(self) -> tuple[builtins.list[AuditRow], int, str]:
        """Return the rows after the walked ones, oldest first, and the head that the hub names."""
        rows: builtins.list[AuditRow] = []
        answer: AuditAnswer | None = None
        before: int | None = None
        head_seq, head_hash = 0, AUDIT_START
        while True:
            answer = await self._opened.hub.audit(before=before, limit=PAGE)
            if before is None:
                head_seq, head_hash = answer.head_seq, answer.head_hash
            fresh = [row for row in answer.rows if self._chain.head < row.seq <= head_seq]
            rows += fresh
            if len(fresh) < len(answer.rows) or not answer.more or not fresh:
                break
            oldest = fresh[-1].seq
            if before is not None and oldest >= before:
                raise BrokenChain("The hub's audit does not go backwards.")
            before = oldest
        return rows[::-1], head_seq, head_hash

    async def _compare(self, chain: Chain) -> None:
        """Raise BrokenChain if a head that is known from elsewhere is not in the chain."""
        kept = await self._trust.settings()
        seq, hash_ = kept.get("seq"), kept.get("hash")
        if isinstance(seq, int) and isinstance(hash_, str) and seq > 0:
            _require(chain, seq, hash_, "your devices remember")
        for space in self._spaces():
            for view in await space.opened.book.views(ITERATIONS.name):
                proof = view.values.get("proof")
                if view.text("source") != "hub" or not isinstance(proof, dict):
                    continue
                seq, hash_ = proof.get("auditSeq"), proof.get("auditHash")
                if isinstance(seq, int) and isinstance(hash_, str) and seq > 0:
                    if chain.hashes.get(seq) == hash_:
                        continue
                    # A run under another member's grant names their chain.
                    if await space.trust.grantor(view) != self._opened.account_id:
                        continue
                    verified, _ = await space.trust.verify(view)
                    if verified:
                        _require(chain, seq, hash_, "the runner signed into a run")

    async def _remember(self, chain: Chain) -> None:
        await self._trust.share_runners(await self._trust.granted_to())
        kept = await self._trust.settings()
        known = kept.get("seq")
        if chain.head > (known if isinstance(known, int) else 0):
            head: dict[str, Json] = {
                **kept,
                "seq": chain.head,
                "hash": chain.hashes[chain.head],
                "at": self._opened.now_iso(),
            }
            await self._editing.write_settings({"auditHead": head})

    def _foreign(self, rows: Sequence[AuditRow], chain: Chain) -> str:
        """Return a sentence if a row that is shown is not the one in the chain."""
        for row in rows:
            if row.seq <= chain.head and chain.hashes.get(row.seq) != row.hash:
                return "The hub shows a reading that is not in the chain that it gave."
            if row_hash(row) != row.hash:
                return f"Reading {row.seq} was changed after it was written down."
        return ""

    async def _words(self, chain: Chain) -> str:
        if not chain.head:
            return "Nothing was read so far; checked on this device just now."
        day = _day(chain.since, await self._opened.zone())
        entries = f"{chain.head:,} {'entry' if chain.head == 1 else 'entries'}"
        return f"Complete since {day}, {entries}, checked on this device just now."

    async def _readings(self, rows: Sequence[AuditRow]) -> tuple[Reading, ...]:
        pairs = [(row.table_name, row.record_id) for row in rows]
        pairs += [(MISSIONS.name, row.mission_id) for row in rows]
        pairs += [(AGENTS.name, row.record_id) for row in rows if row.table_name in _OF_AGENTS]
        titles = await self._titles(pairs)
        unnamed = {pair for pair in pairs if not titles[pair] and await self._is_here(*pair)}
        zone_name = await self._opened.zone()
        models = {
            str(view.id): {view.text("endpoint"): view.text("model")}
            for view in await self._runs(rows)
        }
        found: builtins.list[Reading] = []
        for row in rows:
            title = titles[row.table_name, row.record_id]
            mission = titles[MISSIONS.name, row.mission_id]
            found.append(
                Reading(
                    seq=row.seq,
                    at_ms=parse_iso_ms(row.ts),
                    sentence=sentence(
                        row,
                        what=record_words(
                            row.table_name,
                            title=title,
                            agent=titles.get((AGENTS.name, row.record_id), ""),
                            mission=mission,
                            is_here=(row.table_name, row.record_id) in unnamed,
                        ),
                        mission=mission,
                        clock=_clock(row.ts, zone_name),
                        models=models.get(row.iteration_id or "", {}),
                    ),
                    mission_id=row.mission_id,
                    mission_title=mission,
                    table=row.table_name,
                    record_id=row.record_id,
                    title=title,
                    status=row.status,
                    reason=row.reason or "",
                    endpoint=row.endpoint or "",
                )
            )
        return tuple(found)

    async def _titles(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Return the titles of records by table and id, in whichever space they are."""
        found = dict.fromkeys(pairs, "")
        for space in self._spaces():
            unnamed = [pair for pair, title in found.items() if not title]
            found.update(await space.opened.titles(unnamed))
        return found

    async def _is_here(self, table: str, record_id: str) -> bool:
        for space in self._spaces():
            view = await space.opened.find(table, record_id)
            if view is not None and not view.deleted:
                return True
        return False

    async def _runs(self, rows: Sequence[AuditRow]) -> builtins.list[View]:
        wanted = {row.iteration_id for row in rows if row.iteration_id}
        return [
            view
            for space in self._spaces()
            for view in await space.opened.book.views(ITERATIONS.name)
            if view.id in wanted
        ]


def row_hash(row: AuditRow) -> str:
    """Return the hash that a row must bear."""
    members = msgspec.to_builtins(row)
    previous = members.pop("previous")
    members.pop("hash")
    return audit_hash(previous, members)


def follow(known: Chain, rows: Sequence[AuditRow], *, head_seq: int, head_hash: str) -> Chain:
    """Return the chain with these rows after it, oldest first; raise BrokenChain otherwise."""
    if head_seq < known.head:
        raise BrokenChain(
            f"The hub's audit is shorter than it was: {head_seq:,} entries, "
            f"{known.head:,} were checked before."
        )
    hashes = dict(known.hashes)
    since = known.since
    previous = hashes.get(len(hashes), AUDIT_START)
    for row in rows:
        if row.seq != len(hashes) + 1:
            raise BrokenChain(f"Entry {len(hashes) + 1:,} of the hub's audit is missing.")
        if row.previous != previous or row_hash(row) != row.hash:
            raise BrokenChain(f"Entry {row.seq:,} of the hub's audit was changed or replaced.")
        hashes[row.seq] = previous = row.hash
        since = since or row.ts
    if len(hashes) != head_seq or (head_seq and previous != head_hash):
        raise BrokenChain("The hub's audit does not end where the hub says that it ends.")
    return Chain(hashes, since)


def sentence(
    row: AuditRow, *, what: str, mission: str, clock: str, models: Mapping[str, str]
) -> str:
    """Return a reading in words: who read what, for what, when, and for which models.

    The audit is written before anything is sent. `models`: the names of models by their endpoints,
    of which a run tells that they answered: only those are said to have got it.
    """
    # What belongs to the mission names it already.
    purpose = "" if row.table_name in _OF_MISSION else f" for {_mission_words(mission)}"
    if row.status == "ok":
        return f"The runner read {what}{purpose}, {clock}{_use_words(row.endpoint or '', models)}."
    verb = _STATUS_WORDS.get(row.status, row.status)
    why = f" {unread_words(row.reason)}" if row.reason else ""
    return f"The runner {verb} {what}{purpose}, {clock}.{why}"


def record_words(table: str, *, title: str, agent: str, mission: str, is_here: bool) -> str:
    """Return what was read as a person calls it. `is_here`: it is there, but has no title."""
    if table == MISSIONS.name:
        return f"the mission “{shortened(mission)}”" if mission else _mission_words("")
    if table == ITERATIONS.name:
        return f"an earlier run of {_mission_words(mission)}"
    if table == STEPS.name:
        return f"a step of an earlier run of {_mission_words(mission)}"
    if table in _OF_AGENTS:
        named = shortened(agent)
        if table == AGENT_MEMORY.name:
            return f"the memory of {named or 'an agent that is no longer here'}"
        return f"the agent {named}" if named else "an agent that is no longer here"
    if title:
        return f"“{shortened(title)}”"
    return f"a {kind_words(table)} {'without a title' if is_here else 'that is no longer here'}"


def model_words(address: str, model: str) -> str:
    """Return a model and where it is, each once; `model` is empty where no run tells it."""
    if address == rules.ENDPOINT:
        return f"{rules.NAME}, on the hub's own machine"
    try:
        is_local = endpoint(address).is_this_machine
    except Invalid:
        is_local = False
    named = shortened(model) if model != address else ""
    where = "on the hub's own machine" if is_local else f"at {address}"
    return f"{named}, {where}" if named else f"the model {where}"


def _use_words(endpoints: str, models: Mapping[str, str]) -> str:
    """Return all models that a reading was meant for, as a run may ask one after the other, and
    which of them are known to have got it.
    """
    places = endpoints.split()
    sent = [one for one in places if one in models]
    planned = f", to plan with {_places_words(places, models)}" if places != sent else ""
    return planned + (f", and gave it to {_places_words(sent, models)}" if sent else "")


def _places_words(endpoints: Sequence[str], models: Mapping[str, str]) -> str:
    return " or ".join(model_words(one, models.get(one, "")) for one in endpoints)


def _mission_words(title: str) -> str:
    return f"“{shortened(title)}”" if title else "a mission that is no longer here"


def _require(chain: Chain, seq: int, hash_: str, known_from: str) -> None:
    found = chain.hashes.get(seq)
    if found is None:
        raise BrokenChain(
            f"The hub's audit lacks entry {seq:,}, which {known_from}. Readings were removed."
        )
    if found != hash_:
        raise BrokenChain(f"Entry {seq:,} of the hub's audit is not the one that {known_from}.")


def _local(iso: str, zone_name: str) -> datetime:
    when = datetime.fromtimestamp(parse_iso_ms(iso) / 1_000, tz=UTC)
    try:
        return when.astimezone(zone(zone_name))
    except Invalid:
        return when


def _clock(iso: str, zone_name: str) -> str:
    return _local(iso, zone_name).strftime("%H:%M:%S")


def _day(iso: str, zone_name: str) -> str:
    when = _local(iso, zone_name)
    return f"{when.day} {when.strftime('%B %Y')}"
