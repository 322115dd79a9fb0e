"""Which models a run may call, and where text goes when they are asked."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from mana.domain.agents import OWN_MODEL
from mana.domain.errors import Invalid, NotFound
from mana.domain.money import FREE
from mana.domain.own_models import OwnModel
from mana.models.addresses import check_own_origin, endpoint
from mana.models.connections import Connections
from mana.models.openai_compatible import OpenAiCompatible
from mana.models.rules import ENDPOINT, Rules
from mana.models.settings import ModelSetting, ModelSettings
from mana.planning.ports import CONTEXT_TOKENS, Candidate
from mana.protocol.messages import ModelInfo


class ModelUnknown(NotFound):
    """An agent names a model that is not set up here, or is not allowed."""

    code: ClassVar[str] = "MODEL_UNKNOWN"
    advice: ClassVar[str] = "Choose another model for the agent, or set that one up."


def candidates(
    settings: ModelSettings,
    alias: str,
    endpoints: Collection[str] | None,
    own: OwnModel | None = None,
    *,
    connections: Connections | None = None,
) -> list[Candidate]:
    """Return the models that a run may call, in the order they are asked.

    `alias` is what the agent names: a model of the settings, `own:<id>` for the person's own, or
    nothing for the first. Only those at one of `endpoints` are returned (None: all of them), so the
    list may be empty. Raises ModelUnknown where there is no such model.
    """
    if alias.startswith(OWN_MODEL):
        found = [_own(settings, alias.removeprefix(OWN_MODEL), own, connections)]
    else:
        found = [_candidate(one, connections) for one in settings.chain(alias)]
    if not found:
        raise ModelUnknown("the agent's model is not one of those that are set up")
    return [one for one in found if endpoints is None or one.model.endpoint in endpoints]


def model_infos(settings: ModelSettings) -> tuple[ModelInfo, ...]:
    """Return what the consent and the page say about each model, the first of all first."""
    return tuple(_info(one, settings) for one in settings.models)


def _info(setting: ModelSetting, settings: ModelSettings) -> ModelInfo:
    model = _model(setting)
    return ModelInfo(
        endpoint=model.endpoint,
        model=model.name,
        description=model.description,
        local=model.local,
        alias=setting.alias,
        fallback=[one.alias for one in settings.chain(setting.alias)[1:]],
        prompt_price=None if setting.price is None else setting.price.prompt,
        completion_price=None if setting.price is None else setting.price.completion,
        context_tokens=setting.context_tokens,
    )


def _candidate(setting: ModelSetting, connections: Connections | None) -> Candidate:
    return Candidate(_model(setting, connections), setting.price, setting.context_tokens)


def _model(
    setting: ModelSetting, connections: Connections | None = None
) -> OpenAiCompatible | Rules:
    if setting.url == ENDPOINT:
        return Rules()
    return OpenAiCompatible(
        setting.url,
        key=setting.key,
        model=setting.model,
        stream=setting.stream,
        timeout_s=setting.timeout_s,
        connections=connections,
    )


def _own(
    settings: ModelSettings, own_id: str, own: OwnModel | None, connections: Connections | None
) -> Candidate:
    """Return the person's own model; what the operator does not allow is not there."""
    if own is None or own.id != own_id:
        raise ModelUnknown("the agent's own model was not handed over")
    try:
        place = endpoint(own.url)
        check_own_origin(place.origin, settings.own_models)
    except Invalid:
        raise ModelUnknown("the agent's own model is not allowed here") from None
    model = OpenAiCompatible(
        own.url,
        key=own.key,
        model=own.model,
        connections=connections,
        public_only=settings.own_models == "public",
    )
    return Candidate(
        model,
        own.price or (FREE if place.is_this_machine else None),
        own.context_tokens or CONTEXT_TOKENS,
    )
