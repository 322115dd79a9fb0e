"""What calls of models cost, as the operator set it up: a worker's word on it is not believed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from mana.domain.money import Price
from mana.hub.runner.dialogue import ReserveAsk
from mana.models.choose import candidates, model_infos
from mana.models.rules import ENDPOINT
from mana.models.settings import ModelSettings
from mana.planning.ports import Candidate, ModelCall

RULES: Final = "rules"
"""How figures call the offline rules, and who called no model at all."""


class Prices:
    """The models of a runner by their place and name."""

    def __init__(self, settings: ModelSettings) -> None:
        found = [candidates(settings, one.alias, None)[0] for one in settings.models]
        self._by_endpoint: Mapping[str, list[Candidate]] = {
            one.model.endpoint: [
                other for other in found if other.model.endpoint == one.model.endpoint
            ]
            for one in found
        }
        self._local = {one.endpoint for one in model_infos(settings) if one.local}
        self.metered = all(one.model.metered for one in found)
        self.priced = all(one.price is None or _weight(one.price) > 0 for one in found)

    def provider_of(self, endpoint: str) -> str:
        """Return the word by which figures call whoever answers at an endpoint."""
        if endpoint == ENDPOINT:
            return RULES
        if endpoint not in self._by_endpoint:
            return "own"
        return "local" if endpoint in self._local else "remote"

    def call_of(self, ask: ReserveAsk, endpoints: Collection[str]) -> ModelCall | None:
        """Return the call for the ledger; None for one to a place that the grant does not name.

        What is not the operator's is a person's own model: its price is theirs to say, and its name
        is text of theirs that no ledger keeps.
        """
        if ask.endpoint not in endpoints:
            return None
        known = self._by_endpoint.get(ask.endpoint)
        if known is None:
            price = None
            if ask.prompt_price is not None and ask.completion_price is not None:
                price = Price(ask.prompt_price, ask.completion_price)
            return ModelCall(ask.endpoint, "", price, ask.purpose)
        # One that is not listed there counts as the dearest that is.
        dearest = max(known, key=lambda one: _weight(one.price))
        named = next((one for one in known if one.model.name == ask.model), dearest)
        return ModelCall(ask.endpoint, named.model.name, named.price, ask.purpose)


def _weight(price: Price | None) -> float:
    """Return how dear a price is; none at all is the dearest, as a cap of costs allows it least."""
    return float("inf") if price is None else price.prompt + price.completion
