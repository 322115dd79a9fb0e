"""`mana model`: endpoints of the person's own, and what an agent can be given.

A key is asked for, read from standard input, or taken from MANA_MODEL_KEY; it is never an argument,
which other people of the machine could read, and it is never shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from mana.cli.caps import currency_of, optional_cost, optional_whole
from mana.cli.commands.space_policy import YesOption
from mana.cli.naming import resolve, shorts
from mana.cli.opening import SecretNeeded, Surroundings, on_account, read_standard_input
from mana.cli.output import Answer, Block, Line, Rows
from mana.cli.text import one_line
from mana.device.desk import Device
from mana.device.views import OwnModelView
from mana.domain.agents import OWN_MODEL
from mana.domain.errors import Invalid
from mana.domain.money import amount_words

if TYPE_CHECKING:
    from mana.device.models import OwnModelEdit

KEY_VARIABLE: Final = "MANA_MODEL_KEY"
CONTEXT_TOKENS_MAX: Final = 1_000_000_000

model = typer.Typer(
    help="Models: endpoints of your own, and what an agent can be given.",
    no_args_is_help=True,
    add_completion=False,
)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Label, id or start of an id.")]
KeyOption = Annotated[
    bool,
    typer.Option(
        "--key", help="It wants a key: asked for, or read from standard input or MANA_MODEL_KEY."
    ),
]
PromptPriceOption = Annotated[
    str | None,
    typer.Option(
        "--prompt-price", metavar="AMOUNT", help="For a million tokens that it reads, or none."
    ),
]
CompletionPriceOption = Annotated[
    str | None,
    typer.Option(
        "--completion-price",
        metavar="AMOUNT",
        help="For a million tokens that it writes, or none.",
    ),
]
ContextOption = Annotated[
    str | None,
    typer.Option("--context", metavar="TOKENS", help="How much it can read at once, or none."),
]


@model.command("list")
@on_account(in_space=False)
async def list_models(device: Device) -> Answer:
    """List the endpoints that you brought; never their keys."""
    found = await device.own_models()
    currency = await currency_of(device) if found else ""
    ids = shorts(one.model_id for one in found)
    rows = [
        (
            ids[one.model_id],
            one.host,
            one.model,
            "yes" if one.has_key else "no",
            _price_words(one, currency),
            ", ".join(one.used_by),
            one.label,
        )
        for one in found
    ]
    head = ("ID", "HOST", "MODEL", "KEY", "PRICE", "USED BY", "LABEL")
    blocks: list[Block] = [Rows(head, rows, flexible=6)]
    if not found:
        words = "None of your own yet. Add one: mana model add LABEL --url URL --model NAME"
        blocks = [Line(words, "quiet")]
    return Answer({"models": found}, blocks)


@model.command()
@on_account(in_space=False)
async def choices(device: Device) -> Answer:
    """List what `mana agent edit --model` takes."""
    found = await device.model_choices()
    rows = [(one.value or '""', one.where, one.label) for one in found]
    return Answer({"choices": found}, [Rows(("MODEL", "WHERE", "WHAT"), rows, flexible=2)])


@model.command()
@on_account(in_space=False)
async def add(
    device: Device,
    around: Surroundings,
    label: Annotated[str, typer.Argument(help="How you call it.")],
    url: Annotated[str, typer.Option("--url", help="Its address, with or without /v1.")],
    name: Annotated[str, typer.Option("--model", help="The model's name there.")],
    key: KeyOption = False,
    prompt_price: PromptPriceOption = None,
    completion_price: CompletionPriceOption = None,
    context: ContextOption = None,
) -> Answer:
    """Add an endpoint; agents use it once they are given it."""
    more = _numbers(prompt_price, completion_price, context)
    model_id = await device.add_own_model(
        label,
        url,
        name,
        key=_asked_key(around) if key else "",
        prompt_price=more.get("prompt_price"),
        completion_price=more.get("completion_price"),
        context_tokens=more.get("context_tokens"),
    )
    one = await _of_id(device, model_id)
    use = f"mana agent edit AGENT --model {OWN_MODEL}{model_id}"
    words = f"Added model “{one_line(one.label, 80)}” at {one_line(one.host)}."
    blocks: list[Block] = [words, Line(f"Give it to an agent: {use}", "quiet")]
    return Answer({"model": one}, blocks, wrote=True)


@model.command()
@on_account(in_space=False)
async def edit(
    device: Device,
    around: Surroundings,
    named: ModelArgument,
    label: Annotated[str | None, typer.Option("--label", help="Another label.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="Another address.")] = None,
    name: Annotated[str | None, typer.Option("--model", help="Another model there.")] = None,
    key: KeyOption = False,
    no_key: Annotated[bool, typer.Option("--no-key", help="Take its key away.")] = False,
    prompt_price: PromptPriceOption = None,
    completion_price: CompletionPriceOption = None,
    context: ContextOption = None,
) -> Answer:
    """Change an endpoint; its key stays unless another is given."""
    if key and no_key:
        raise Invalid("--key and --no-key exclude each other")
    one = await find_model(device, named)
    fields = _numbers(prompt_price, completion_price, context)
    if label is not None:
        fields["label"] = label
    if url is not None:
        fields["url"] = url
    if name is not None:
        fields["model"] = name
    if key or no_key:
        fields["key"] = "" if no_key else _asked_key(around)
    if not fields:
        raise Invalid("nothing to change was given")
    await device.edit_own_model(one.model_id, **fields)
    after = await _of_id(device, one.model_id)
    words = f"Changed model “{one_line(after.label, 80)}”."
    return Answer({"model": after}, [words], wrote=True)


@model.command()
@on_account(in_space=False)
async def remove(
    device: Device, around: Surroundings, named: ModelArgument, yes: YesOption = False
) -> Answer:
    """Remove an endpoint with its key; agents that use it wait for another."""
    one = await find_model(device, named)
    label = one_line(one.label, 80)
    around.confirm(f"Remove model “{label}” with its key?", yes=yes)
    await device.remove_own_model(one.model_id)
    blocks: list[Block] = [f"Removed model “{label}”; its key is gone."]
    if one.used_by:
        waiting = ", ".join(one_line(name, 80) for name in one.used_by)
        blocks.append(f"Waiting for another model: {waiting}")
    return Answer({"removed": {"modelId": one.model_id}}, blocks, wrote=True)


async def find_model(device: Device, named: str) -> OwnModelView:
    """Return the one own model that a person names."""
    found = await device.own_models()
    wanted = named.strip().removeprefix(OWN_MODEL)
    model_id = resolve(wanted, [(one.model_id, one.label) for one in found], "model")
    return next(one for one in found if one.model_id == model_id)


async def chosen_model(device: Device, named: str) -> str:
    """Return what an agent's `model` holds for the model that a person names; empty: the first.

    Raises NameUnknown or NameAmbiguous.
    """
    wanted = named.strip()
    found = [one for one in await device.model_choices() if one.value]
    if wanted in ("", *(one.value for one in found)):
        return wanted
    pairs = [(one.value, one.value) for one in found if one.where != "own"]
    pairs += [(f"{OWN_MODEL}{one.model_id}", one.label) for one in await device.own_models()]
    return resolve(wanted, pairs, "model")


async def _of_id(device: Device, model_id: str) -> OwnModelView:
    return next(one for one in await device.own_models() if one.model_id == model_id)


def _numbers(prompt: str | None, completion: str | None, context: str | None) -> OwnModelEdit:
    fields: OwnModelEdit = {}
    if prompt is not None:
        fields["prompt_price"] = optional_cost(prompt)
    if completion is not None:
        fields["completion_price"] = optional_cost(completion)
    if context is not None:
        what = "what a model can read at once"
        fields["context_tokens"] = optional_whole(context, what=what, most=CONTEXT_TOKENS_MAX)
    return fields


def _asked_key(around: Surroundings) -> str:
    """Return the key of the variable, of the terminal, or of standard input; raise SecretNeeded."""
    try:
        return around.secret(KEY_VARIABLE, "The key: ")
    except SecretNeeded:
        given = read_standard_input().strip()
        if not given:
            raise
        return given


def _price_words(one: OwnModelView, currency: str) -> str:
    if one.prompt_price is None or one.completion_price is None:
        return "not known"
    prices = (one.prompt_price, one.completion_price)
    return " / ".join(amount_words(price, currency) for price in prices)
