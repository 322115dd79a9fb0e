"""Models of the person's own: an address, a name, a key that is written and never shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from litestar import get, post
from litestar.types import ControllerRouterHandler

from mana.domain.errors import ManaError, NotFound
from mana.models.addresses import endpoint
from mana.web.amounts import amount_field
from mana.web.forms import NOT_ACCEPTED, Typed
from mana.web.problems import Problem, problem_of
from mana.web.visits import Named, Page, Visit, Visiting, record_id, text_of
from mana.web.words import t

if TYPE_CHECKING:
    from mana.device.models import OwnModelEdit
    from mana.device.views import OwnModelView

FIELDS: Final = ("label", "url", "model", "prompt_price", "completion_price", "context_tokens")
KEY: Final = "key"
CONTEXT_MIN: Final = 1_024
CONTEXT_MAX: Final = 100_000_000


@get("/settings/models/new")
async def new_model(visit: Visiting) -> Page:
    """Show the form of a model that is not there yet."""
    return await _page(visit, None, Typed(dict.fromkeys(FIELDS, "")))


@get("/settings/models/{model_id:str}")
async def own_model(visit: Visiting, model_id: Named) -> Page:
    """Show a model of the person's own, without its key."""
    found = await _model(visit, model_id)
    return await _page(visit, found, _of_model(found))


@post("/settings/models/new")
async def add_model(visit: Visiting) -> Page:
    """Add a model."""
    return await _save(visit, None)


@post("/settings/models/{model_id:str}")
async def save_model(visit: Visiting, model_id: Named) -> Page:
    """Write a model anew; a key that is not typed stays as it is."""
    return await _save(visit, await _model(visit, model_id))


@post("/settings/models/{model_id:str}/remove")
async def remove_model(visit: Visiting, model_id: Named) -> Page:
    """Remove a model, with its key."""
    found = await _model(visit, model_id)
    await visit.device.remove_own_model(found.model_id)
    said = t("“{label}” is removed, and its key with it.", label=found.label)
    return visit.go(visit.to("/settings#model"), said)


async def _save(visit: Visit, found: OwnModelView | None) -> Page:
    form = await visit.form()
    typed = Typed.of(form, FIELDS)
    fields = _read(typed)
    key = text_of(form, KEY).strip()
    if key or text_of(form, "forget_key"):
        fields["key"] = key or None
    if typed.faults:
        return await _page(visit, found, typed, again=True)
    device = visit.device
    try:
        if found is None:
            await device.add_own_model(
                fields.pop("label"),
                fields.pop("url"),
                fields.pop("model"),
                key=fields.pop("key", None) or "",
                prompt_price=fields["prompt_price"],
                completion_price=fields["completion_price"],
                context_tokens=fields["context_tokens"],
            )
        else:
            await device.edit_own_model(found.model_id, **fields)
    except ManaError as error:
        if error.code == "LOCKED":
            raise
        return await _page(visit, found, typed, again=True, problem=problem_of(error))
    return visit.go(visit.to("/settings#model"), t("Saved. An agent can be given it now."))


def _read(typed: Typed) -> OwnModelEdit:
    url = typed.text("url", t("Say where it is: an address such as https://models.example/v1."))
    if url:
        typed.checked("url", lambda: endpoint(url))
    fields: OwnModelEdit = {
        "label": typed.text("label", t("Give it a name by which you know it.")),
        "url": url,
        "model": typed.text("model", t("Say what the model is called at that address.")),
        "prompt_price": typed.amount("prompt_price"),
        "completion_price": typed.amount("completion_price"),
        "context_tokens": typed.whole("context_tokens", CONTEXT_MIN, CONTEXT_MAX, needed=False),
    }
    prices = ("prompt_price", "completion_price")
    blank = [name for name in prices if not typed.values[name].strip()]
    if len(blank) == 1:
        typed.faults.setdefault(blank[0], t("Give both prices, or none."))
    return fields


async def _model(visit: Visit, model_id: str) -> OwnModelView:
    wanted = record_id(model_id)
    for one in await visit.device.own_models():
        if one.model_id == wanted:
            return one
    raise NotFound("no model of this id is on this device")


def _of_model(found: OwnModelView) -> Typed:
    context = found.context_tokens
    return Typed(
        {
            "label": found.label,
            "url": found.url,
            "model": found.model,
            "prompt_price": amount_field(found.prompt_price),
            "completion_price": amount_field(found.completion_price),
            "context_tokens": "" if context is None else str(context),
        }
    )


async def _page(
    visit: Visit,
    found: OwnModelView | None,
    typed: Typed,
    *,
    again: bool = False,
    problem: Problem | None = None,
) -> Page:
    page = await visit.page(
        "own_model.html",
        status=(problem.status if problem else NOT_ACCEPTED) if again else 200,
        model=found,
        typed=typed,
        again=again,
        problem=problem,
    )
    if again:
        page.headers["HX-Push-Url"] = "false"
    return page


ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    new_model,
    own_model,
    add_model,
    save_model,
    remove_model,
)
