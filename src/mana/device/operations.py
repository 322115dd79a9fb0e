"""The operations of one unlocked account, wired once, in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mana.device.agents import Agents
from mana.device.audit import Audit, Audited
from mana.device.budgets import Budgets
from mana.device.conflicts import Conflicts
from mana.device.editing import Editing
from mana.device.errors import Locked
from mana.device.executing import Executing
from mana.device.grants import Grants
from mana.device.holders import Holder
from mana.device.hub_news import HubNews
from mana.device.inbox import Inbox
from mana.device.journal import Journal
from mana.device.keyring import Remembering
from mana.device.links import Links
from mana.device.locks import FileLock
from mana.device.missions import Missions
from mana.device.models import OwnModels
from mana.device.notices import Notices
from mana.device.opened import Opened
from mana.device.policies import Policies
from mana.device.resealing import Resealing
from mana.device.rotation import Rotation
from mana.device.run_ledger import RunLedger
from mana.device.runner import EXPIRE_S, TICK_S, TIMEOUT_S, NotRunHere, Runner
from mana.device.runs import Runs
from mana.device.security import Rotating, Security
from mana.device.sessions import Sessions
from mana.device.spaces import Spaces
from mana.device.steps import Steps
from mana.device.timeline import Timeline
from mana.device.trust import Memory, Trust
from mana.device.usage import UsageHistory
from mana.device.views import ModelView, Notice, RunView, Status, SyncStatus
from mana.device.work import Work
from mana.domain.agents import AGENTS
from mana.domain.errors import ManaError
from mana.domain.iterations import STEPS
from mana.domain.missions import MISSIONS, RUNS_ON_HUB, Mission
from mana.domain.settings import SETTINGS, SETTINGS_ID

RESEAL_S: Final = 3_600.0
"""How often is looked for records under an old key, beside each time that keys moved."""
_log: Final = logging.getLogger("mana.device")
WAKING: Final = frozenset({STEPS.name, MISSIONS.name, SETTINGS.name})
LOOKED_AT: Final = frozenset({MISSIONS.name, AGENTS.name, SETTINGS.name})
"""Tables whose records may end a run that goes on."""


def runner_lock(folder: Path, account_id: str) -> Path:
    """Return the file that the process which works by itself holds."""
    return folder / f"{account_id}.runner"


@dataclass(frozen=True)
class _Shared:
    """What the operations of all spaces of an account have in common."""

    notices: Notices
    news: HubNews
    ledger: RunLedger
    budgets: Budgets
    work: Work
    own_models: OwnModels
    usage: UsageHistory
    memory: Memory
    spaces: Spaces
    security: Security
    conflicts: Conflicts
    resealing: Resealing
    links: Links
    sessions: Sessions
    keyring: Remembering
    by_space: dict[str, Operations]
    timeout_s: float


class Operations:
    """Everything that a `Device` hands to the page and the terminal, in one space.

    Those of the personal space come first and serve all others: they start, stop and work by
    themselves for the whole account.
    """

    def __init__(
        self, opened: Opened, *, timeout_s: float = TIMEOUT_S, shared: _Shared | None = None
    ) -> None:
        self.opened = opened
        if shared is None:
            shared = _shared(opened, timeout_s)
            opened.book.inner().syncer.after_spaces = shared.spaces.after_spaces
            self._unsubscribe = opened.book.on_change(self._heard)
        shared.by_space[opened.space] = self
        self._shared = shared
        self.notices = shared.notices
        self.news = shared.news
        self.ledger = shared.ledger
        self.budgets = shared.budgets
        self.work = shared.work
        self.own_models = shared.own_models
        self.usage = shared.usage
        self.spaces = shared.spaces
        self.security = shared.security
        self.conflicts = shared.conflicts
        self.resealing = shared.resealing
        self.links = shared.links
        self.sessions = shared.sessions
        self.keyring = shared.keyring
        self.records = Editing(opened)
        self.trust = Trust(opened, self.records, self.news, shared.memory)
        self.grants = Grants(opened, self.news, self.trust)
        self.missions = Missions(opened, self.grants, self.news, self.ledger)
        self.policies = Policies(opened)
        self.agents = Agents(opened, self.records, self.news, self.policies.space_policy)
        self.steps = Steps(opened, self.trust, self.policies)
        self.inbox = Inbox(opened, self.steps)
        self.journal = Journal(opened)
        self.timeline = Timeline(opened, self.steps, self.journal)
        self.audit = Audit(opened, self.records, self.trust, self._audited)
        self.runner = Runner(
            opened,
            Runs(opened, self.steps, self.policies.space_policy),
            Executing(opened, self.steps, may_go_on=self._may_go_on),
            self.inbox,
            self.ledger,
            self.budgets,
            self.news,
            self.work,
            say=lambda: self.notices.say(Notice("missions")),
            wake=lambda: self.first._woken.set(),
            timeout_s=shared.timeout_s,
        )
        self._keys_moved = True
        self._told_of_work = True
        self._woken = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    def in_space(self, space_id: str) -> Operations:
        """Return the operations of a space of this account, the same each time; NotFound."""
        opened = self.opened.in_space(space_id)
        found = self._shared.by_space.get(space_id)
        return found or Operations(opened, shared=self._shared)

    @property
    def first(self) -> Operations:
        """Return the operations of the personal space, which serve the whole account."""
        return self._shared.by_space[self.opened.book.personal_space]

    def everywhere(self) -> list[Operations]:
        """Return the operations of each space with records, the personal one first."""
        spaces = [space for space in self.opened.book.spaces() if space.type != "user"]
        spaces.sort(key=lambda space: (space.type != "personal", space.space_id))
        return [self.in_space(space.space_id) for space in spaces]

    async def forget_space(self, space_id: str) -> None:
        """Remove a former space from this device, from its memory too."""
        await self.spaces.forget_space(space_id)
        gone = self._shared.by_space.pop(space_id, None)
        if gone is not None:
            await gone.runner.close()
        self.opened.book.let_go(space_id)

    async def start(self) -> None:
        """Start sync and what the device does by itself."""
        await self.opened.book.start()
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())

    async def close(self) -> None:
        """Stop what runs by itself, and tell the subscribers that this is over."""
        self._unsubscribe()
        if self._serving is not None:
            self._serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._serving
            self._serving = None
        for each in self._shared.by_space.values():
            await each.runner.close()
        self.ledger.holder.release()
        self.notices.say(Notice("lock"))
        self.notices.close()

    async def status(self) -> Status:
        """Return the status line, which is that of the whole account."""
        opened = self.opened
        settings = await opened.book.view(SETTINGS.name, SETTINGS_ID)
        model = opened.model
        # What waits where this person writes nothing waits for somebody else.
        spaces = [one for one in self.everywhere() if one.opened.book.may_write]
        moments = [
            due
            for space in spaces
            for mission in await space.missions.list()
            if mission.state == "active" and not mission.hold
            for due in mission.next_ms[:1]
        ]
        waiting = {str(one.opened.space): await one.inbox.count() for one in spaces}
        return Status(
            account_id=opened.account_id,
            login=opened.login,
            display_name=settings.text("displayName") if settings is not None else "",
            mode=opened.mode,
            demo=opened.book.demo,
            locked=False,
            sync=await opened.book.status(),
            runner=await self.news.runner(),
            device_model=ModelView(
                model.endpoint, model.name, model.description, opened.model_local
            ),
            next_run_ms=min(moments, default=None),
            to_decide=sum(waiting.values()),
            to_decide_by_space=waiting,
            hub_url=opened.book.settings.hub_url,
        )

    async def sync_now(self) -> SyncStatus:
        """Push and pull once; what came in by it is worked on at once."""
        self.news.moved()
        status = await self.opened.book.sync_now()
        await self.mint_anew()
        return status

    async def mint_anew(self) -> None:
        """Mint grants anew that a change of keys made stale, where nobody needs to be asked."""
        for space in self.everywhere():
            try:
                await space.grants.mint_anew()
            except Locked:
                raise
            except ManaError as error:
                _log.info("grants wait for their newest key: %s", error.code)

    async def run_now(self, mission_id: str) -> RunView | None:
        """Run a mission in its place: ask the hub, or run it here."""
        mission = await self.opened.mission(mission_id)
        if mission.runs_on == RUNS_ON_HUB:
            return await self.missions.ask_hub_to_run(mission_id)
        return await self.runner.run_now(mission_id)

    async def stop_mission(self, mission_id: str) -> None:
        """Stop a mission's run in its place, the hub or this device.

        Raises Offline for one of the hub without it, and NotRunHere for one of another device.
        """
        mission = await self.opened.mission(mission_id)
        if mission.runs_on == RUNS_ON_HUB:
            await self.missions.stop_on_hub(mission_id)
        self._require_reachable(mission)
        await self.runner.stop(mission_id)

    async def resume_mission(self, mission_id: str) -> None:
        """Let a mission run again that failed too often in a row; raise as `stop_mission`."""
        mission = await self.opened.mission(mission_id)
        if mission.runs_on == RUNS_ON_HUB:
            await self.missions.resume_on_hub(mission_id)
            return
        self._require_reachable(mission)
        self.opened.book.require_writable(MISSIONS, mission_id)
        await self.runner.resume(mission_id)

    def _require_reachable(self, mission: Mission) -> None:
        if mission.runs_on not in (RUNS_ON_HUB, self.opened.place):
            raise NotRunHere("the mission runs on another device")

    async def _may_go_on(self) -> bool:
        return await self.work.stopped_ms() is None

    async def _serve(self) -> None:
        # One process of this machine works by itself; the terminal opens the same replica.
        lock = FileLock(runner_lock(self.opened.book.settings.folder, self.opened.account_id))
        try:
            while not lock.acquire():  # noqa: ASYNC110 - another process can set no event here
                await asyncio.sleep(TICK_S)
            with contextlib.suppress(Locked):
                await self._work()
        finally:
            lock.release()

    async def _work(self) -> None:
        """Work on what is due in each space, one after the other, until cancelled."""
        expired_at = resealed_at = -RESEAL_S
        loop = asyncio.get_running_loop()
        while True:
            self._woken.clear()
            expire = loop.time() - expired_at >= EXPIRE_S
            if expire:
                expired_at = loop.time()
            if expire or self._told_of_work:
                self._told_of_work = False
                await self.work.tell()
            await self.keep_books(slices=expire)
            for space in self.everywhere():
                if not space.opened.book.may_write:
                    continue
                await space.runner.work(expire=expire)
            if self._keys_moved or loop.time() - resealed_at >= RESEAL_S:
                resealed_at = loop.time()
                self._keys_moved = False
                await self.reseal()
                await self.mint_anew()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._woken.wait()

    async def keep_books(self, *, slices: bool) -> None:
        """Tell the hub what was spent; `slices`: hold tokens for what is due while it may be away."""
        try:
            await self.budgets.recover()
            await self.budgets.report()
            for space in self.everywhere() if slices else ():
                if space.opened.book.may_write:
                    await space.runner.keep_slices()
        except Locked:
            raise
        except ManaError as error:
            _log.info("the hub is told later what was spent: %s", error.code)

    async def reseal(self) -> None:
        """Bring records under the newest keys of their spaces, as far as the hub takes them."""
        try:
            while await self.resealing.once():
                pass
            await self.spaces.rotation.retire()
            await self.security.let_go()
        except Locked:
            raise
        except ManaError as error:
            _log.info("records wait for their newest key: %s", error.code)

    def _audited(self) -> list[Audited]:
        return [Audited(one.opened, one.trust, one.grants) for one in self.everywhere()]

    def _heard(self, notice: Notice) -> None:
        if notice.topic == "missions":
            self.news.moved()
        if notice.topic == "spaces":
            self.news.moved()
            self._keys_moved = True
        if SETTINGS.name in notice.tables:
            self._told_of_work = True
        if notice.topic in ("missions", "sync", "spaces") or notice.tables & WAKING:
            self._woken.set()
        if notice.tables & LOOKED_AT:
            for each in self._shared.by_space.values():
                each.runner.heard()
        self.notices.say(notice)


def _rotating(rotation: Rotation) -> Rotating:
    return Rotating(rotation.views, rotation.rotate_space, rotation.counted)


def _shared(opened: Opened, timeout_s: float) -> _Shared:
    notices, news = Notices(), HubNews(opened)
    holder = Holder(opened.book.settings.folder, opened.account_id)
    ledger, budgets = RunLedger(opened, holder), Budgets(opened, holder)
    news.used_here, budgets.moved = budgets.unreported_today, news.moved
    spaces = Spaces(opened, say=notices.say)
    return _Shared(
        notices=notices,
        news=news,
        ledger=ledger,
        budgets=budgets,
        work=Work(opened, Editing(opened), news, budgets),
        own_models=OwnModels(opened, news),
        usage=UsageHistory(opened, news, budgets),
        memory=Memory(),
        spaces=spaces,
        security=Security(opened, _rotating(spaces.rotation)),
        conflicts=Conflicts(opened.book),
        resealing=spaces.resealing,
        links=Links(opened),
        sessions=Sessions(opened),
        keyring=Remembering(opened.book, opened.keyring),
        by_space={},
        timeout_s=timeout_s,
    )
