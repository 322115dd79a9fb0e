"""Where the text of a grant would go: the models of an agent's choice, as the consent shows them. Pure.

Only what the agent's model and its fall-backs need is named, so a grant opens no way to others.
"""

from __future__ import annotations

from dataclasses import dataclass

from mana.device.hub_news import model_views
from mana.device.views import ModelView
from mana.domain.encoding import canonical_json, sha256
from mana.domain.own_models import OwnModel
from mana.models.addresses import OwnEndpointRefused, check_own_origin, endpoint
from mana.models.choose import ModelUnknown
from mana.protocol.messages import RunnerInfo


@dataclass(frozen=True, slots=True)
class GrantedModels:
    """The models of a grant, the first choice first; `own`: the one of the person's own, if any."""

    views: tuple[ModelView, ...]
    own: OwnModel | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Return the endpoints that the header names."""
        return tuple(sorted({one.endpoint for one in self.views}))

    @property
    def digest(self) -> str:
        """Return what tells one own model from another, or from itself once it was edited."""
        return "" if self.own is None else sha256(canonical_json(self.own.to_wire())).hex()


def granted_models(choice: str, info: RunnerInfo, own: OwnModel | None) -> GrantedModels:
    """Return the models of an agent's choice at a hub's runner.

    Raises OwnEndpointRefused where the operator takes none of people's own, and ModelUnknown where
    the runner has no model of this name.
    """
    if own is not None:
        if not info.own_models:
            raise OwnEndpointRefused("the hub's runner calls no endpoints of people's own")
        place = endpoint(own.url)
        # Whether the operator allows one of their own network, only the hub can say.
        check_own_origin(place.origin, "any")
        said = f"{own.model}: text goes to {place.host}"
        view = ModelView(place.origin, own.model, said, False, key_goes_along=bool(own.key))
        return GrantedModels((view,), own)
    views = model_views(info.models)
    named = {one.alias: one for one in info.models if one.alias}
    if not named and not choice:
        return GrantedModels(views)  # A runner of an earlier version names no aliases.
    first = named.get(choice) if choice else info.models[0]
    if first is None:
        raise ModelUnknown("the hub's runner has no model of the agent's choice")
    by_alias = {view.alias: view for view in views}
    chain = (first.alias, *first.fallback)
    return GrantedModels(tuple(by_alias[alias] for alias in chain if alias in by_alias))
