"""Which models a run on this device may call, and the endpoints that the person brought.

An endpoint of the person's own is a sealed record of their user scope, so all of their devices have
it, and a grant can hand it to the runner. Its key is written, used and replaced, and never shown.
"""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Final, TypedDict

from mana.device.hub_news import HubNews, model_views
from mana.device.opened import Opened
from mana.device.views import ModelChoice, ModelView, OwnModelView
from mana.device.writing import Write
from mana.domain.agents import AGENTS, OWN_MODEL, Agent
from mana.domain.changes import Change, ChangeKind
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, NotFound
from mana.domain.ids import RecordId
from mana.domain.own_models import OwnModel, own_model_from_view
from mana.domain.records import View
from mana.domain.settings import MODELS
from mana.domain.tables import DELETED_AT
from mana.models.addresses import endpoint, fits_header
from mana.models.choose import ModelUnknown, model_infos
from mana.models.choose import candidates as chosen
from mana.models.settings import OFFLINE
from mana.planning.ports import Candidate


class OwnModelEdit(TypedDict, total=False):
    """What can be edited of a model of the person's own; None clears what is optional."""

    label: str
    url: str
    model: str
    key: str | None
    prompt_price: int | None
    completion_price: int | None
    context_tokens: int | None


_PATHS: Final = {
    "label": "label",
    "url": "url",
    "model": "model",
    "key": "key",
    "prompt_price": "promptPrice",
    "completion_price": "completionPrice",
    "context_tokens": "contextTokens",
}


async def candidates(opened: Opened, agent: Agent) -> builtins.list[Candidate]:
    """Return the models that a run of an agent may call here, in the order they are asked.

    Raises ModelUnknown where the agent names one that is not here.
    """
    if opened.listed is None and not agent.model.startswith(OWN_MODEL):
        return [Candidate(opened.model)]
    return chosen(
        replace(opened.listed or OFFLINE, own_models="any"),
        agent.model,
        None,
        await own_model(opened, agent.model),
        connections=opened.connections,
    )


async def own_model(opened: Opened, choice: str) -> OwnModel | None:
    """Return the model of the person's own that an agent names; None if it names another one.

    Raises ModelUnknown where it is gone, or cannot be read here.
    """
    if not choice.startswith(OWN_MODEL):
        return None
    view = await opened.book.view(MODELS.name, choice.removeprefix(OWN_MODEL))
    if view is None or view.deleted or view.sealed_fields:
        raise ModelUnknown("the agent's own model is not on this device")
    try:
        return own_model_from_view(view)
    except Invalid:
        raise ModelUnknown("the agent's own model has no address or no name") from None


class OwnModels:
    """The model endpoints that the person brought, and what an agent can choose from."""

    def __init__(self, opened: Opened, news: HubNews) -> None:
        self._opened = opened
        self._news = news

    async def list(self) -> builtins.list[OwnModelView]:
        """Return the person's own models, by label."""
        agents = await self._opened.book.views(AGENTS.name)
        used: dict[str, builtins.list[str]] = {}
        for agent in sorted(agents, key=lambda one: one.text("name").casefold()):
            used.setdefault(agent.text("model"), []).append(agent.text("name"))
        views = await self._opened.book.views(MODELS.name)
        views.sort(key=lambda one: (one.text("label").casefold(), one.id))
        return [_shown(view, tuple(used.get(f"{OWN_MODEL}{view.id}", ()))) for view in views]

    async def add(
        self,
        label: str,
        url: str,
        model: str,
        *,
        key: str = "",
        prompt_price: int | None = None,
        completion_price: int | None = None,
        context_tokens: int | None = None,
    ) -> str:
        """Add a model and return its id; raise Invalid for what no endpoint can have."""
        fields: OwnModelEdit = {
            "label": label,
            "url": url,
            "model": model,
            "key": key,
            "prompt_price": prompt_price,
            "completion_price": completion_price,
            "context_tokens": context_tokens,
        }
        record_id = RecordId(self._opened.new_id())
        await self._write(
            record_id, ChangeKind.CREATE, _values(fields, View(MODELS.name, record_id, {}))
        )
        return record_id

    async def edit(self, model_id: str, fields: OwnModelEdit) -> None:
        """Write the named fields; what is not named, the key too, stays as it is."""
        view = await self._view(model_id)
        values = {
            path: value
            for path, value in _values(fields, view).items()
            if view.values.get(path) != value
        }
        if values:
            await self._write(view.id, ChangeKind.UPDATE, values)

    async def remove(self, model_id: str) -> None:
        """Remove a model; agents that use it wait until they are given another."""
        view = await self._view(model_id)
        # The key goes for good: of a deleted record the other fields can be restored.
        gone: dict[str, Json] = {DELETED_AT: self._opened.now_iso(), "key": None}
        await self._write(view.id, ChangeKind.DELETE, gone)

    async def choices(self) -> builtins.list[ModelChoice]:
        """Return what an agent's `model` can be: the first one, aliases, and the person's own."""
        here = (
            {one.alias: one.model for one in self._opened.listed.models}
            if self._opened.listed
            else {}
        )
        runner = await self._news.runner()
        there = {one.alias: one.model for one in runner.models if one.alias} if runner else {}
        found = [ModelChoice("", "The first that is set up", "both")]
        for alias in sorted({*here, *there}):
            where = (
                "both"
                if alias in here and alias in there
                else "hub"
                if alias in there
                else "device"
            )
            name = there.get(alias) or here[alias]
            label = alias if alias == name else f"{alias} ({name})"
            found.append(ModelChoice(alias, label, where))  # type: ignore[arg-type]
        found += [
            ModelChoice(f"{OWN_MODEL}{one.model_id}", f"{one.label} ({one.host})", "own")
            for one in await self.list()
        ]
        return found

    def here(self) -> tuple[ModelView, ...]:
        """Return the models that this device is set up with, the first choice first."""
        return model_views(model_infos(self._opened.listed or OFFLINE))

    async def _view(self, model_id: str) -> View:
        view = await self._opened.book.view(MODELS.name, model_id)
        if view is None or view.deleted:
            raise NotFound("no model of this id is on this device")
        return view

    async def _write(self, model_id: RecordId, kind: ChangeKind, values: dict[str, Json]) -> None:
        change = Change(MODELS.name, model_id, kind, values)
        await self._opened.book.commit([Write(change, self._opened.person)])
        self._news.moved()


def _values(fields: OwnModelEdit, known: View) -> dict[str, Json]:
    """Return the checked values by path; raise Invalid for a model that could not be called."""
    if set(fields) - set(_PATHS):
        raise Invalid("a model has no such field")
    values: dict[str, Json] = {}
    for name, value in fields.items():
        shown: Json = value.strip() if isinstance(value, str) else value  # type: ignore[assignment]
        values[_PATHS[name]] = shown if shown != "" else None
    whole = {**known.values, **values}
    for path, what in (("label", "label"), ("url", "address"), ("model", "name at that address")):
        if not whole.get(path):
            raise Invalid(f"a model needs its {what}")
    if (whole.get("promptPrice") is None) != (whole.get("completionPrice") is None):
        raise Invalid("a model has both prices, or none")
    key = whole.get("key")
    if isinstance(key, str) and not fits_header(key):
        raise Invalid("the model's key has characters that a header cannot hold")
    for path, value in values.items():
        MODELS.check(path, value)
    endpoint(str(whole["url"]))
    return values


def _shown(view: View, used_by: tuple[str, ...]) -> OwnModelView:
    url = view.text("url")
    try:
        host = endpoint(url).host
    except Invalid:
        host = ""
    prompt, completion, context = (
        value if isinstance(value := view.values.get(path), int) else None
        for path in ("promptPrice", "completionPrice", "contextTokens")
    )
    return OwnModelView(
        model_id=view.id,
        label=view.text("label"),
        url=url,
        host=host,
        model=view.text("model"),
        has_key=bool(view.text("key")),
        prompt_price=prompt,
        completion_price=completion,
        context_tokens=context,
        used_by=used_by,
    )
