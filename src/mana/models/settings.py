"""Which models there are: `models.toml`, or the environment, or the offline rules.

Hub, runner and device read the same file in the same way. What is wrong is told at the start, by
file, model and member, and never at the first run. docs/models.md shows the form.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn, cast, get_args

from mana.domain.errors import Invalid
from mana.domain.grants import ENDPOINTS_MAX
from mana.domain.money import COST_PER_DAY_MAX, FREE, Price
from mana.domain.own_models import (
    CONTEXT_TOKENS_MAX,
    CONTEXT_TOKENS_MIN,
    KEY_CHARS_MAX,
    NAME_CHARS_MAX,
    URL_CHARS_MAX,
)
from mana.models.addresses import OwnModels, endpoint, fits_header
from mana.models.openai_compatible import TIMEOUT_S
from mana.models.rules import ENDPOINT as RULES
from mana.planning.ports import CONTEXT_TOKENS

FILE: Final = "models.toml"
MODELS_MAX: Final = 64
FILE_BYTES_MAX: Final = 131_072
LINE_BYTES_MAX: Final = 2_000
"""Keys with many dots cost the parser the square of their number, and stand on one line."""
TIMEOUT_S_MAX: Final = 3_600
DEFAULT: Final = "default"
OWN_MODELS: Final = "MANA_OWN_MODELS"
_MILLION: Final = 1_000_000
_ALIAS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,79}")
_PLACE: Final = re.compile(r"\(at (?:line \d+, column \d+|end of document)\)")
_MEMBERS: Final = frozenset(
    {
        "alias",
        "url",
        "model",
        "key",
        "key_file",
        "key_env",
        "prompt_price",
        "completion_price",
        "context_tokens",
        "fallback",
        "stream",
        "timeout_s",
    }
)
_KEYS: Final = ("key", "key_file", "key_env")


class ModelsInvalid(Invalid):
    """The models that the operator set up cannot be used as they are written.

    `detail`: the file or variable, and the model (its alias, or its place from 1) and the member
    where one is at fault. Values are never quoted: they may be keys.
    """

    code: ClassVar[str] = "MODELS_INVALID"
    advice: ClassVar[str] = "Correct what it names in models.toml; docs/models.md shows the form."

    def __init__(self, file: str, problem: str, *, model: str = "", member: str = "") -> None:
        place = "".join(
            (file, f", model {model}" if model else "", f", {member}" if member else "")
        )
        super().__init__(
            f"{place}: {problem}", detail={"file": file, "model": model, "member": member}
        )


@dataclass(frozen=True, slots=True)
class ModelSetting:
    """One model: an alias, where it is, and what it costs.

    `url` is `rules:offline` for the offline rules. `price` None: nobody said. `fallback` holds
    aliases; `stream` False: never ask for the reply in pieces; `timeout_s` bounds a whole call.
    """

    alias: str
    url: str
    model: str
    key: str = field(default="", repr=False)
    price: Price | None = None
    context_tokens: int = CONTEXT_TOKENS
    fallback: tuple[str, ...] = ()
    stream: bool = True
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """All models, at least one, the first of which is everybody's who names none.

    `own_models`: which endpoints of a person's own are called: none, those on the public internet
    by https, or any.
    """

    models: tuple[ModelSetting, ...]
    own_models: OwnModels = "public"

    def chain(self, alias: str) -> tuple[ModelSetting, ...]:
        """Return a model and those after it, in the order they are asked; empty if unknown."""
        by_alias = {one.alias: one for one in self.models}
        wanted = alias or self.models[0].alias
        return tuple(by_alias[name] for name in _order(wanted, by_alias))


OFFLINE: Final = ModelSettings((ModelSetting(DEFAULT, RULES, "rules", price=FREE),))


def load_models(
    home: Path,
    environ: Mapping[str, str],
    *,
    with_keys: bool = True,
    own_models: OwnModels | None = None,
) -> ModelSettings:
    """Return the models of `home/models.toml`, else of `MANA_LLM_…`, else the offline rules.

    `with_keys` False leaves all keys out: the hub names models and calls none. `own_models`
    replaces what `MANA_OWN_MODELS` says. Raises ModelsInvalid.
    """
    own = own_models or _own_models(environ)
    path = home / FILE
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return models_from_env(environ, with_keys=with_keys, own_models=own)
    except OSError as error:
        raise ModelsInvalid(str(path), f"it cannot be read: {error.strerror}") from None
    if len(raw) > FILE_BYTES_MAX:
        raise ModelsInvalid(str(path), f"it has more than {FILE_BYTES_MAX} bytes")

    def secret(member: str, value: str) -> str:
        """Return the key that a member names; raise ValueError with what is wrong."""
        if not with_keys:
            return ""
        return _secret(member, value, environ=environ, folder=home)

    return parse_models(raw, str(path), secret=secret, own_models=own)


def models_from_env(
    environ: Mapping[str, str], *, with_keys: bool = True, own_models: OwnModels = "public"
) -> ModelSettings:
    """Return the one model of `MANA_LLM_URL`, `MANA_LLM_KEY` and `MANA_LLM_MODEL`, or the rules.

    Raises ModelsInvalid for a key or model without an address: it would silently do nothing.
    """
    url, key, model = (
        environ.get(name, "").strip() for name in ("MANA_LLM_URL", "MANA_LLM_KEY", "MANA_LLM_MODEL")
    )
    if not url:
        if key or model:
            raise ModelsInvalid("MANA_LLM_URL", "MANA_LLM_KEY and MANA_LLM_MODEL need it")
        return ModelSettings(OFFLINE.models, own_models)
    reading = _Reading("the environment", DEFAULT)
    found = reading.setting(
        {"alias": DEFAULT, "url": url, "model": model or DEFAULT, "key": key},
        lambda _member, value: value if with_keys else "",
    )
    return ModelSettings((found,), own_models)


def parse_models(
    raw: bytes,
    file: str,
    *,
    secret: Callable[[str, str], str],
    own_models: OwnModels = "public",
) -> ModelSettings:
    """Return the models of a file's bytes. Pure: `secret` finds the key that a member names.

    `secret` is given `key`, `key_file` or `key_env` and its value, and raises ValueError with what
    is wrong. Raises ModelsInvalid.
    """
    document = _document(raw, file)
    if set(document) != {"models"} or not isinstance(document["models"], list):
        raise ModelsInvalid(file, "it holds tables [[models]] and nothing else")
    tables = document["models"]
    if not 0 < len(tables) <= MODELS_MAX:
        raise ModelsInvalid(file, f"it names 1 to {MODELS_MAX} models")
    found: dict[str, ModelSetting] = {}
    for place, table in enumerate(tables, start=1):
        reading = _Reading(file, str(place))
        one = reading.setting(table, secret)
        if one.alias in found:
            reading.fail("alias", "another model has it already")
        found[one.alias] = one
    for one in found.values():
        _check_fallback(one, found, file)
    return ModelSettings(tuple(found.values()), own_models)


def _document(raw: bytes, file: str) -> dict[str, Any]:
    """Return the parsed file; of what the parser says only the place is kept, it may quote a key."""
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if len(line) > LINE_BYTES_MAX:
            raise ModelsInvalid(file, f"line {number} has more than {LINE_BYTES_MAX} bytes")
    problem = "it is not TOML"
    try:
        return tomllib.loads(raw.decode("utf-8"), parse_float=Decimal)
    except UnicodeDecodeError:
        problem = "it is not UTF-8"
    except (RecursionError, ArithmeticError):
        problem = "it is nested too deeply, or has a number that nothing can hold"
    except ValueError as error:
        place = _PLACE.search(str(error))
        problem += f" {place[0]}" if place else ""
    raise ModelsInvalid(file, problem)


class _Reading:
    """One model as it is written, and where, for what there is to say against it."""

    def __init__(self, file: str, model: str) -> None:
        self._file = file
        self._model = model
        self._table: dict[str, Any] = {}

    def fail(self, member: str, problem: str) -> NoReturn:
        """Refuse a member."""
        raise ModelsInvalid(self._file, problem, model=self._model, member=member)

    def setting(self, table: object, secret: Callable[[str, str], str]) -> ModelSetting:
        """Return the setting of a table."""
        if not isinstance(table, dict):
            self.fail("", "it is no table")
        self._table = table
        alias = self._text("alias", 80)
        if not _ALIAS.fullmatch(alias):
            self.fail("alias", "letters, digits and . _ - / only, and no space")
        self._model = alias
        for member in table:
            if member not in _MEMBERS:
                self.fail(_name(member), "there is no such member")
        url = self._text("url", URL_CHARS_MAX)
        rules = url == RULES
        local = rules or self._is_local(url)
        if rules and any(member in table for member in _KEYS):
            self.fail("url", "the offline rules have no key")
        return ModelSetting(
            alias=alias,
            url=url,
            model=self._text("model", NAME_CHARS_MAX, "rules" if rules else None),
            key=self._key(secret),
            price=self._price() or (FREE if local else None),
            context_tokens=self._whole("context_tokens", CONTEXT_TOKENS),
            fallback=self._aliases(),
            stream=self._switch("stream", True),
            timeout_s=self._seconds("timeout_s"),
        )

    def _is_local(self, url: str) -> bool:
        try:
            return endpoint(url).is_this_machine
        except Invalid as error:
            self.fail("url", error.message)

    def _text(self, member: str, chars_max: int, default: str | None = None) -> str:
        value = self._table.get(member, default)
        if value is None:
            self.fail(member, "it is missing")
        if not isinstance(value, str) or not value.strip() or len(value) > chars_max:
            self.fail(member, f"it is text of 1 to {chars_max} characters")
        return value.strip()

    def _key(self, secret: Callable[[str, str], str]) -> str:
        given = [member for member in _KEYS if member in self._table]
        if len(given) > 1:
            self.fail(given[1], f"{given[0]} is there already; one of them is enough")
        if not given:
            return ""
        member, value = given[0], self._table[given[0]]
        if not isinstance(value, str) or len(value) > KEY_CHARS_MAX:
            self.fail(member, f"it is text of at most {KEY_CHARS_MAX} characters")
        try:
            found = secret(member, value)
        except ValueError as error:
            self.fail(member, str(error))
        if len(found) > KEY_CHARS_MAX or not fits_header(found):
            self.fail(member, "the key has characters that a header cannot hold, or too many")
        return found

    def _price(self) -> Price | None:
        prompt, completion = self._cost("prompt_price"), self._cost("completion_price")
        if prompt is None and completion is None:
            return None
        if prompt is None or completion is None:
            missing = "prompt_price" if prompt is None else "completion_price"
            self.fail(missing, "it is missing; both prices are given, or none")
        return Price(prompt, completion)

    def _cost(self, member: str) -> int | None:
        """Return a price in millionths: exact, so that no rounding is anybody's loss."""
        value = self._table.get(member)
        if value is None:
            return None
        exact = _number(value)
        if exact is None or not 0 <= exact <= COST_PER_DAY_MAX // _MILLION:
            self.fail(member, "it is a number from 0, in the hub's currency for a million tokens")
        if exact != exact.quantize(Decimal("0.000001")):
            self.fail(member, "it has at most six digits after the point")
        return int(exact * _MILLION)

    def _whole(self, member: str, default: int) -> int:
        value = self._table.get(member, default)
        low, high = CONTEXT_TOKENS_MIN, CONTEXT_TOKENS_MAX
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(member, f"it is a whole number from {low} to {high}")
        return value

    def _switch(self, member: str, default: bool) -> bool:
        value = self._table.get(member, default)
        if not isinstance(value, bool):
            self.fail(member, "it is true or false")
        return value

    def _seconds(self, member: str) -> float:
        exact = _number(self._table.get(member, int(TIMEOUT_S)))
        if exact is None or not 1 <= exact <= TIMEOUT_S_MAX:
            self.fail(member, f"it is a number of seconds from 1 to {TIMEOUT_S_MAX}")
        return float(exact)

    def _aliases(self) -> tuple[str, ...]:
        value = self._table.get("fallback", [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.fail("fallback", "it is a list of aliases")
        if len(set(value)) != len(value):
            self.fail("fallback", "it names a model twice")
        return tuple(value)


def _check_fallback(one: ModelSetting, by_alias: Mapping[str, ModelSetting], file: str) -> None:
    """Refuse names that nobody has, ways that lead back, and chains that no grant could hold."""
    problem = ""
    unknown = next((name for name in one.fallback if name not in by_alias), None)
    if unknown is not None:
        problem = f"there is no model {_name(unknown)}"
    elif _leads_back(one.alias, by_alias):
        problem = "it leads back to this model"
    elif sum(1 for _ in _order(one.alias, by_alias)) > ENDPOINTS_MAX:
        problem = f"it leads to more than {ENDPOINTS_MAX} models"
    if problem:
        raise ModelsInvalid(file, problem, model=one.alias, member="fallback")


def _leads_back(alias: str, by_alias: Mapping[str, ModelSetting]) -> bool:
    seen: set[str] = set()
    waiting = list(by_alias[alias].fallback)
    while waiting:
        name = waiting.pop()
        if name == alias:
            return True
        if name in by_alias and name not in seen:
            seen.add(name)
            waiting += by_alias[name].fallback
    return False


def _order(alias: str, by_alias: Mapping[str, ModelSetting]) -> Iterator[str]:
    """Yield an alias and what it falls back to, each once, those of a fall-back right after it."""
    seen: set[str] = set()
    waiting = [alias]
    while waiting:
        name = waiting.pop()
        if name in by_alias and name not in seen:
            seen.add(name)
            yield name
            waiting += reversed(by_alias[name].fallback)


def _secret(member: str, value: str, *, environ: Mapping[str, str], folder: Path) -> str:
    """Return the key itself, of a file, or of a variable; raise ValueError with what is wrong."""
    if member == "key":
        return value.strip()
    if member == "key_env":
        found = environ.get(value, "").strip()
        if not found:
            raise ValueError("the variable that it names is not set")
        return found
    try:
        with (folder / Path(value).expanduser()).open("rb") as file:
            found = file.read(KEY_CHARS_MAX + 3).decode("ascii").strip()
    except (OSError, UnicodeDecodeError, RuntimeError):
        found = ""
    if not found:
        raise ValueError("the file that it names cannot be read, or holds no key")
    return found


def _own_models(environ: Mapping[str, str]) -> OwnModels:
    found = environ.get(OWN_MODELS, "").strip().lower() or "public"
    if found not in get_args(OwnModels):
        raise Invalid(f"{OWN_MODELS} is off, public or any")
    return cast(OwnModels, found)


def _number(value: object) -> Decimal | None:
    """Return an exact number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    exact = Decimal(value)
    return exact if exact.is_finite() else None


def _name(written: str) -> str:
    """Return a name that a file gives as far as it can be repeated in a line."""
    return "".join(char if char.isprintable() else "?" for char in written[:40])
