"""What the operations of one unlocked account share: records, hub, catalogue, model, time.

Passed explicitly to each operation, so that a test gives them a clock of its own and a model
that it wrote.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import ClassVar, Final

from mana.device.hub_client import HubClient
from mana.device.keyring import SystemKeyring
from mana.device.records import RecordBook
from mana.domain.actors import Actor, person
from mana.domain.agents import AGENT_MEMORY, AGENTS, Agent, agent_from_view
from mana.domain.cadences import zone
from mana.domain.clock import iso_ms, parse_stamp
from mana.domain.errors import Conflict, Invalid, NotFound
from mana.domain.ids import RecordId, SpaceId
from mana.domain.missions import MISSIONS, InputRef, Mission, mission_from_view
from mana.domain.records import Record, Snapshot, View
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.domain.tables import Table
from mana.models.connections import Connections
from mana.models.settings import ModelSettings
from mana.planning.ports import Model
from mana.registry.catalogue import Catalogue

TITLE_SHOWN_MAX: Final = 80


class AgentNotFound(NotFound):
    """There is no such agent, or it was deleted."""

    code: ClassVar[str] = "AGENT_NOT_FOUND"
    advice: ClassVar[str] = "List the agents; it may have been deleted on another device."


class MissionNotFound(NotFound):
    """There is no such mission, or it was deleted."""

    code: ClassVar[str] = "MISSION_NOT_FOUND"
    advice: ClassVar[str] = "List the missions; it may have been deleted on another device."


class InputPrivate(Conflict):
    """A private record cannot be the input of a mission that others look at."""

    code: ClassVar[str] = "INPUT_PRIVATE"
    advice: ClassVar[str] = "Share the record with the space, or take it off the mission's inputs."


@dataclass(frozen=True)
class Opened:
    """One unlocked account. `new_id` gives the id of a new record, `now_ms` the time.

    `listed`: the models that are set up on this device, the first of which is `model`; None: that
    one alone.
    """

    book: RecordBook
    hub: HubClient
    catalogue: Catalogue
    model: Model
    model_local: bool
    now_ms: Callable[[], int]
    new_id: Callable[[], str]
    keyring: SystemKeyring = field(default_factory=SystemKeyring)
    listed: ModelSettings | None = None
    connections: Connections | None = None

    @property
    def account_id(self) -> str:
        """Return the account's id."""
        return self.book.account_id

    @property
    def login(self) -> str:
        """Return the account's login name."""
        return self.book.login

    @property
    def mode(self) -> str:
        """Return the account's mode: standard or zero-knowledge."""
        return self.book.mode

    @property
    def device_id(self) -> str:
        """Return this device's id."""
        return self.book.device_id

    @property
    def space(self) -> SpaceId:
        """Return the space in which these operations read and write."""
        return self.book.space

    def in_space(self, space_id: str) -> Opened:
        """Return the same account in another of its spaces; raise NotFound."""
        return replace(self, book=self.book.in_space(space_id))

    @property
    def person(self) -> Actor:
        """Return the person as the actor of what they do here."""
        return person(self.account_id)

    @property
    def place(self) -> str:
        """Return how a mission names this device in `runsOn`."""
        return f"device:{self.device_id}"

    def now_iso(self) -> str:
        """Return the current moment, ISO with milliseconds and Z."""
        return iso_ms(self.now_ms())

    async def zone(self) -> str:
        """Return the person's time zone, UTC if none is set."""
        view = await self.book.view(SETTINGS.name, SETTINGS_ID)
        return (view.text("timeZone") if view is not None else "") or "UTC"

    def title(self, view: View | None) -> str:
        """Return how a record is called on the page; empty if it cannot be read here."""
        if view is None:
            return ""
        kind = self.catalogue.input_kind(view.table)
        if kind is not None:
            return kind.title(view)
        named = self.catalogue.table(view.table).title_field
        return view.text(named) if named is not None else ""

    def title_field(self, table: str) -> str | None:
        """Return the field that names a record of a table, if there is one."""
        try:
            return self.catalogue.table(table).title_field
        except NotFound:
            return None

    async def find(self, table: str, record_id: str) -> View | None:
        """Return a record, deleted or not; None if there is none, or no module for it."""
        try:
            self.catalogue.table(table)
        except NotFound:
            return None
        return await self.book.view(table, record_id)

    async def stored(self, refs: Sequence[InputRef]) -> list[Record]:
        """Return inputs of a mission as they are stored, deleted ones too; nothing is opened."""
        found: list[Record] = []
        for ref in refs:
            # Of a table that no module here knows, nothing is read.
            with contextlib.suppress(NotFound):
                record = await self.book.record(ref.table, ref.id)
                found += [record] if record is not None else []
        return found

    async def titles(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Return the titles of records by table and id; empty where there is none here.

        A memory is called as the agent whose it is.
        """
        found: dict[tuple[str, str], str] = {}
        for table, record_id in dict.fromkeys(keys):
            named = AGENTS.name if table == AGENT_MEMORY.name else table
            found[table, record_id] = self.title(await self.find(named, record_id))
        return found

    def may_be_input(self, view: View) -> bool:
        """Say whether a mission of this space may look at a record.

        What a run writes is read by all members, so a private record of a shared space is no
        input of it.
        """
        return view.visibility == "space" or not self.book.keys.shared

    async def mission_view(self, mission_id: str) -> View:
        """Return a live mission's record; raise MissionNotFound."""
        view = await self.book.view(MISSIONS.name, mission_id)
        if view is None or view.deleted:
            raise MissionNotFound("no mission of this id is on this device")
        return view

    async def mission(self, mission_id: str) -> Mission:
        """Return a live mission; raise MissionNotFound, or Invalid if it is malformed."""
        return mission_from_view(await self.mission_view(mission_id))

    async def agent(self, agent_id: str) -> Agent:
        """Return a live agent with its memory; raise AgentNotFound."""
        view = await self.book.view(AGENTS.name, agent_id)
        if view is None or view.deleted:
            raise AgentNotFound("no agent of this id is on this device")
        memory = await self.book.view(AGENT_MEMORY.name, agent_id)
        return agent_from_view(view, memory if memory and not memory.deleted else None)

    async def agent_or_none(self, agent_id: str) -> Agent | None:
        """Return a live agent; None where it is missing, which denies."""
        try:
            return await self.agent(agent_id)
        except NotFound:
            return None

    async def snapshot(self, zone_name: str | None = None) -> Snapshot:
        """Return every module's records as they are now, for tools to read."""
        loaded: dict[str, Sequence[View]] = {}
        for module in self.catalogue.modules:
            for table in module.tables:
                loaded[table.name] = await self.book.views(table.name, include_deleted=True)
        return self.snapshot_of(loaded, zone_name or await self.zone())

    def snapshot_of(self, loaded: Mapping[str, Sequence[View]], zone_name: str) -> Snapshot:
        """Return these records, for tools to read; tables that are not named are empty."""

        def load(table: Table) -> Sequence[View]:
            return loaded.get(table.name, ())

        return Snapshot(
            load=load,
            new_id=lambda: RecordId(self.new_id()),
            today=self.today(zone_name),
            now=self.now_iso(),
        )

    def today(self, zone_name: str) -> str:
        """Return the current day in a zone; in UTC if there is no such zone."""
        moment = datetime.fromtimestamp(self.now_ms() / 1_000, tz=UTC)
        try:
            return moment.astimezone(zone(zone_name)).date().isoformat()
        except Invalid:
            return moment.date().isoformat()


def stamp_ms(stamp: str | None) -> int:
    """Return the wall time of a stamp; 0 for none."""
    return parse_stamp(stamp).wall_ms if stamp else 0


def shortened(text: str, limit: int = TITLE_SHOWN_MAX) -> str:
    """Return one line of bounded length, for sentences that quote a title."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
