"""The part of the fake device that is about work as a whole: stops, money, models, letters."""

from __future__ import annotations

import builtins
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mana.device.errors import Offline
from mana.device.views import ModelView, OwnModelView, UsageDay, UsageView, WorkView
from mana.domain.errors import Invalid, NotFound
from mana.models.addresses import endpoint
from mana.protocol.messages import NotifyState

if TYPE_CHECKING:
    from tests.web.fake_device import FakeDevice

CODE = "1234 5678"
GOING = WorkView(None, True, False, "EUR", 640, 120_000, None, None, None, None)


class FakeWork:
    """What `Device` says of all work of an account; mixed into the fake device."""

    def _init_work(self, first: FakeDevice | None) -> None:
        self.work = GOING
        self.time_zone = "Europe/Vienna"
        self.days: tuple[UsageDay, ...] = ()
        self.letters = NotifyState(available=True)
        self._own: dict[str, OwnModelView] = {}
        self.own_keys: dict[str, str] = {}
        self.models_here = [
            ModelView("rules:offline", "rules", "rules: finds dates", True, "rules")
        ]
        self._account: Any = first or self

    def _need_hub(self) -> None:
        if not self._account.online:
            raise Offline("the hub cannot be reached")

    async def zone(self) -> str:
        return str(self._account.time_zone)

    async def work_state(self) -> WorkView:
        self._account._check()
        found: WorkView = self._account.work
        return replace(found, hub_told=found.hub_told and self._account.online)

    async def stop_work(self) -> WorkView:
        stopped = replace(await self.work_state(), stopped_ms=time.time_ns() // 1_000_000)
        self._account.work = replace(stopped, hub_told=True)
        for one in self._account.everywhere():
            await one.stop_all()
        self._account.tell("missions", "userSettings")
        return await self.work_state()

    async def start_work(self) -> WorkView:
        self._account.work = replace(self._account.work, stopped_ms=None)
        self._account.tell("missions", "userSettings")
        return await self.work_state()

    async def set_caps(self, **caps: int | None) -> WorkView:
        self._need_hub()
        self._account.work = replace(self._account.work, **caps)  # type: ignore[arg-type]
        return await self.work_state()

    async def accept_hub(self, named: str) -> WorkView:
        self._need_hub()
        found: WorkView = self._account.work
        if not found.hub_said.startswith(named):
            raise Invalid("the hub's name is another")
        self._account.work = replace(found, hub_known=found.hub_said)
        return await self.work_state()

    async def usage(self, days: int = 30) -> UsageView:
        self._account._check()
        if not 1 <= days <= 92:
            raise Invalid("use is shown for 1 to 92 days")
        return UsageView(self._account.work.currency, self._account.days, self._account.online)

    async def device_models(self) -> builtins.list[ModelView]:
        return self._account.models_here  # type: ignore[no-any-return]

    async def own_models(self) -> builtins.list[OwnModelView]:
        self._account._check()
        return [*self._account._own.values()]

    async def add_own_model(self, label: str, url: str, model: str, **more: Any) -> str:
        new: str = self._account._id("model")
        self._account._own[new] = OwnModelView(new, "", "", "", "", False, None, None, None)
        try:
            await self.edit_own_model(new, label=label, url=url, model=model, **more)
        except Invalid:
            del self._account._own[new]
            raise
        return new

    async def edit_own_model(self, model_id: str, **fields: Any) -> None:
        if model_id not in self._account._own:
            raise NotFound("no model of this id is on this device")
        if "url" in fields:
            fields["host"] = endpoint(fields["url"]).host
        if "key" in fields:
            self._account.own_keys[model_id] = fields.pop("key") or ""
            fields["has_key"] = bool(self._account.own_keys[model_id])
        self._account._own[model_id] = replace(self._account._own[model_id], **fields)
        self._account.tell("records", "aiModels")

    async def remove_own_model(self, model_id: str) -> None:
        del self._account._own[model_id]
        self._account.own_keys.pop(model_id, None)
        self._account.tell("records", "aiModels")

    async def notifications(self) -> NotifyState:
        self._need_hub()
        return self._account.letters  # type: ignore[no-any-return]

    async def set_notifications(
        self, *, address: str | None = None, code: str | None = None, enabled: bool | None = None
    ) -> NotifyState:
        self._need_hub()
        said: dict[str, Any] = {}
        if address == "":
            said = {"address": "", "confirmed": False, "enabled": False}
        elif address is not None:
            if "@" not in address:
                raise Invalid("this is no address of a mailbox")
            said = {"address": address, "confirmed": False, "enabled": False}
        if code is not None:
            if "".join(code.split()) != "".join(CODE.split()):
                raise Invalid("the code is not the one that was sent")
            said = {"confirmed": True, "enabled": True}
        if enabled is not None:
            said["enabled"] = enabled
        old: NotifyState = self._account.letters
        now = {"address": old.address, "confirmed": old.confirmed, "enabled": old.enabled, **said}
        self._account.letters = NotifyState(available=old.available, **now)
        return await self.notifications()
