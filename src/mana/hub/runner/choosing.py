"""Which models a worker's runs may call: the operator's, and a person's own from the grant."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from mana.domain.own_models import OwnModel
from mana.models.choose import candidates
from mana.models.connections import Connections
from mana.models.settings import ModelSettings
from mana.planning.ports import Candidate, Model


class Models(Protocol):
    """The models of a worker."""

    def endpoints_of(self, endpoints: Collection[str]) -> tuple[str, ...]:
        """Return the endpoints of the operator's that a grant names."""

    @property
    def allow_own(self) -> bool:
        """Say whether a person's own endpoint may be called at all."""

    def candidates(
        self, alias: str, endpoints: Collection[str], own: OwnModel | None
    ) -> list[Candidate]:
        """Return the models of an agent's choice at these endpoints; raise ModelUnknown."""


class SetUpModels:
    """The models that the operator set up, over connections that the worker keeps."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._connections = Connections()
        self._endpoints = dict.fromkeys(
            candidates(settings, one.alias, None)[0].model.endpoint for one in settings.models
        )

    def endpoints_of(self, endpoints: Collection[str]) -> tuple[str, ...]:
        """Return the endpoints of the operator's that a grant names."""
        return tuple(one for one in self._endpoints if one in endpoints)

    @property
    def allow_own(self) -> bool:
        """Say whether a person's own endpoint may be called at all."""
        return self._settings.own_models != "off"

    def candidates(
        self, alias: str, endpoints: Collection[str], own: OwnModel | None
    ) -> list[Candidate]:
        """Return the models of an agent's choice at these endpoints; raise ModelUnknown."""
        return candidates(self._settings, alias, endpoints, own, connections=self._connections)

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.aclose()


class GivenModels:
    """One model for every agent, made anew for each run; for who brings their own."""

    def __init__(self, make: Callable[[], Model]) -> None:
        self._make = make

    def endpoints_of(self, endpoints: Collection[str]) -> tuple[str, ...]:
        """Return the model's endpoint if a grant names it."""
        endpoint = self._make().endpoint
        return (endpoint,) if endpoint in endpoints else ()

    @property
    def allow_own(self) -> bool:
        """Say that no other model is called."""
        return False

    def candidates(
        self, alias: str, endpoints: Collection[str], own: OwnModel | None
    ) -> list[Candidate]:
        """Return the model, whatever the agent chose, if it is at one of these endpoints."""
        model = self._make()
        return [Candidate(model)] if model.endpoint in endpoints else []
