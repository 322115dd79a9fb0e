"""What an operator writes about models is read exactly, or refused with its place."""

from __future__ import annotations

import re
import time
from pathlib import Path

import msgspec
import pytest

from mana.domain.errors import Invalid
from mana.domain.money import FREE, Price
from mana.models.choose import ModelUnknown, candidates, model_infos
from mana.models.rules import ENDPOINT
from mana.models.settings import (
    FILE_BYTES_MAX,
    OFFLINE,
    ModelSetting,
    ModelSettings,
    ModelsInvalid,
    load_models,
    models_from_env,
)
from mana.planning.ports import CONTEXT_TOKENS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
KEY = "sk-very-private"
ONE = 'alias = "a"\nurl = "https://models.example"\nmodel = "m"\n'


def written(home: Path, text: str, environ: dict[str, str] | None = None) -> ModelSettings:
    """Write models.toml and read it."""
    (home / "models.toml").write_text(text)
    return load_models(home, environ or {})


def models(*tables: str) -> str:
    """Return a file of these models."""
    return "".join(f"[[models]]\n{table}\n" for table in tables)


def named(alias: str, *fallback: str, url: str = "https://{}.example") -> str:
    """Return a model of this alias at a host of its own."""
    return f'alias = "{alias}"\nurl = "{url.format(alias)}"\nmodel = "m"\nfallback = {list(fallback)}\n'


def test_the_example_of_the_docs_is_read(tmp_path: Path) -> None:
    """The file that the docs show is one that can be used, and means what they say."""
    [example] = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "models.example").write_text(f"{KEY}\n")
    assert written(tmp_path, example).models == (
        ModelSetting(
            "default",
            "https://models.example/v1",
            "large-2",
            KEY,
            Price(2_500_000, 10_000_000),
            128_000,
            ("near", "rules"),
            True,
            180.0,
        ),
        ModelSetting("near", "http://127.0.0.1:11434", "qwen2.5:7b", price=FREE, stream=False),
        ModelSetting("rules", ENDPOINT, "rules", price=FREE),
    )


def test_the_docs_name_each_member() -> None:
    """No member is read that the docs do not show, and none is shown that is not read."""
    rows = re.findall(r"^\| (`.*?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    shown = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)} - {
        "off",
        "any",
        "public",
    }
    read = {field.name for field in msgspec.structs.fields(_Shown)}
    assert shown == read


class _Shown(msgspec.Struct):
    alias: str
    url: str
    model: str
    key: str
    key_file: str
    key_env: str
    prompt_price: float
    completion_price: float
    context_tokens: int
    fallback: list[str]
    stream: bool
    timeout_s: float


def test_without_a_file_the_environment_says_it(tmp_path: Path) -> None:
    """The three variables are one model of the alias `default`; none of them, the rules."""
    environ = {"MANA_LLM_URL": " http://gpu.example:1 ", "MANA_LLM_KEY": KEY, "MANA_LLM_MODEL": "m"}
    expected = ModelSetting("default", "http://gpu.example:1", "m", KEY)
    assert load_models(tmp_path, environ).models == (expected,)
    assert load_models(tmp_path, {}) == OFFLINE
    assert models_from_env({"MANA_LLM_URL": "http://localhost:1"}).models[0].price == FREE


def test_the_file_stands_over_the_environment(tmp_path: Path) -> None:
    """Where there is a file the three variables say nothing."""
    found = written(tmp_path, models(ONE), {"MANA_LLM_URL": "http://other.example"})
    assert [one.url for one in found.models] == ["https://models.example"]


@pytest.mark.parametrize(
    "environ",
    [
        {"MANA_LLM_KEY": KEY},
        {"MANA_LLM_MODEL": "m"},
        {"MANA_LLM_URL": "example.com"},
        {"MANA_LLM_URL": "http://localhost:1", "MANA_LLM_KEY": "k\u00e9y"},
        {"MANA_LLM_URL": "http://localhost:1", "MANA_LLM_KEY": "a\nb"},
    ],
)
def test_an_environment_that_cannot_be_meant_is_refused(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """What would silently do nothing, or fail at the first call, is told at the start."""
    with pytest.raises(ModelsInvalid) as refused:
        load_models(tmp_path, environ)
    assert KEY not in refused.value.message


@pytest.mark.parametrize(
    ("key", "environ"),
    [
        (f'key = "{KEY}"', {}),
        ('key_file = "key.txt"', {}),
        ('key_env = "LARGE"', {"LARGE": f" {KEY} "}),
    ],
)
def test_a_key_is_found_where_it_is(key: str, environ: dict[str, str], tmp_path: Path) -> None:
    """In the file, in another one, or in a variable; the hub reads none of them, nor needs any."""
    (tmp_path / "key.txt").write_text(f"{KEY}\n")
    found = written(tmp_path, models(ONE + key), environ)
    assert found.models[0].key == KEY
    assert KEY not in repr(found)
    (tmp_path / "key.txt").unlink()
    assert load_models(tmp_path, {}, with_keys=False).models[0].key == ""


def test_the_environment_s_key_is_not_the_hub_s(tmp_path: Path) -> None:
    """Without keys that of the environment is left out too."""
    environ = {"MANA_LLM_URL": "http://localhost:1", "MANA_LLM_KEY": KEY}
    assert load_models(tmp_path, environ, with_keys=False).models[0].key == ""


@pytest.mark.parametrize(
    ("price", "millionths"),
    [
        ("prompt_price = 0.15\ncompletion_price = 0.6", Price(150_000, 600_000)),
        ("prompt_price = 1e-6\ncompletion_price = 3", Price(1, 3_000_000)),
        ("prompt_price = 0\ncompletion_price = 0", FREE),
        ("", None),
    ],
)
def test_prices_are_exact(price: str, millionths: Price | None, tmp_path: Path) -> None:
    """A price becomes whole millionths without any rounding; without one there is none."""
    assert written(tmp_path, models(ONE + price)).models[0].price == millionths


def test_what_runs_here_is_free_unless_a_price_is_given(tmp_path: Path) -> None:
    """An endpoint of this machine costs nothing, but the operator may count its tokens' worth."""
    near = ONE.replace("https://models.example", "http://localhost:1")
    assert written(tmp_path, models(near)).models[0].price == FREE
    priced = near + "prompt_price = 1\ncompletion_price = 2"
    assert written(tmp_path, models(priced)).models[0].price == Price(1_000_000, 2_000_000)


@pytest.mark.parametrize(
    ("text", "model", "member"),
    [
        ("", "", ""),
        ("models = 5", "", ""),
        ("models = []", "", ""),
        ("[[model]]", "", ""),
        (models(ONE) + "[other]", "", ""),
        ("models = [5]", "1", ""),
        ("[[models]", "", ""),
        ("a = " + "[" * 5_000, "", ""),
        ("a = " + "1" * 5_000, "", ""),
        (models('url = "https://a.example"\nmodel = "m"'), "1", "alias"),
        (models(ONE.replace('"a"', '"a b"')), "1", "alias"),
        (models(ONE.replace('"a"', '"own:x"')), "1", "alias"),
        (models(ONE.replace('"a"', "5")), "1", "alias"),
        (models(ONE, ONE), "a", "alias"),
        (models(ONE.replace("https://models.example", "models.example")), "a", "url"),
        (models(ONE.replace("models.example", f"u:{KEY}@models.example")), "a", "url"),
        (models(ONE.replace('model = "m"', "")), "a", "model"),
        (models(ONE.replace('"m"', '" "')), "a", "model"),
        (models(ONE + f'api_key = "{KEY}"'), "a", "api_key"),
        (models(ONE + f'key = "{KEY}"\nkey_env = "X"'), "a", "key_env"),
        (models(ONE + f'key = ["{KEY}"]'), "a", "key"),
        (models(ONE + f'key = "{KEY}é"'), "a", "key"),
        (models(ONE + f'key = "{KEY * 80}"'), "a", "key"),
        (models(ONE + 'key_env = "NOT_SET"'), "a", "key_env"),
        (models(ONE + 'key_file = "none.txt"'), "a", "key_file"),
        (models(ONE + 'key_file = "."'), "a", "key_file"),
        (models(ONE + "prompt_price = 1"), "a", "completion_price"),
        (models(ONE + "completion_price = 1"), "a", "prompt_price"),
        (models(ONE + "prompt_price = -1\ncompletion_price = 1"), "a", "prompt_price"),
        (models(ONE + "prompt_price = nan\ncompletion_price = 1"), "a", "prompt_price"),
        (models(ONE + "prompt_price = inf\ncompletion_price = 1"), "a", "prompt_price"),
        (models(ONE + "prompt_price = true\ncompletion_price = 1"), "a", "prompt_price"),
        (models(ONE + 'prompt_price = "1"\ncompletion_price = 1'), "a", "prompt_price"),
        (models(ONE + "prompt_price = 1000001\ncompletion_price = 1"), "a", "prompt_price"),
        (models(ONE + "prompt_price = 0.0000001\ncompletion_price = 1"), "a", "prompt_price"),
        (models(ONE + "context_tokens = 1023"), "a", "context_tokens"),
        (models(ONE + "context_tokens = 1e5"), "a", "context_tokens"),
        (models(ONE + "context_tokens = true"), "a", "context_tokens"),
        (models(ONE + 'stream = "no"'), "a", "stream"),
        (models(ONE + "timeout_s = 0.5"), "a", "timeout_s"),
        (models(ONE + "timeout_s = nan"), "a", "timeout_s"),
        (models(ONE + f"timeout_s = {'9' * 400}"), "a", "timeout_s"),
        (models(ONE + 'timeout_s = "9"'), "a", "timeout_s"),
        (models(ONE + 'fallback = "b"'), "a", "fallback"),
        (models(ONE + "fallback = [5]"), "a", "fallback"),
        (models(ONE + 'fallback = ["none"]'), "a", "fallback"),
        (models(named("a", "b", "b"), named("b")), "a", "fallback"),
        (models(named("a", "a")), "a", "fallback"),
        (models(named("a", "b"), named("b", "a")), "a", "fallback"),
        (models(named("a", "b"), named("b", "c"), named("c", "b")), "b", "fallback"),
        (models(named("a", *"bcdefghi"), *(named(x) for x in "bcdefghi")), "a", "fallback"),
        (models('alias = "a"\nurl = "rules:offline"\nkey = ""'), "a", "url"),
        (models(*(named(f"m{n}") for n in range(65))), "", ""),
        (models(ONE) + "#" * 262_145, "", ""),
    ],
)
def test_what_is_wrong_is_named(text: str, model: str, member: str, tmp_path: Path) -> None:
    """The error says file, model and member, and never repeats a value, which may be a key."""
    with pytest.raises(ModelsInvalid) as refused:
        written(tmp_path, text)
    found = refused.value
    assert found.code == "MODELS_INVALID"
    assert found.detail == {
        "file": str(tmp_path / "models.toml"),
        "model": model,
        "member": member,
    }
    assert str(tmp_path / "models.toml") in found.message
    assert KEY not in f"{found.message} {found.__cause__} {found.__context__}"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and what is no file, are refused like all else."""
    (tmp_path / "models.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelsInvalid):
        load_models(tmp_path, {})
    (tmp_path / "models.toml").unlink()
    (tmp_path / "models.toml").mkdir()
    with pytest.raises(ModelsInvalid):
        load_models(tmp_path, {})


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        (b"a" + b".a" * 60_000 + b"=1", "line 1 "),
        (b"[[models]]\n[" + b"a." * 1_000 + b"a]", "line 2 "),
        (b"#" * 1_000 + b"\n" + b"a = 1\n" * 40_000, f"more than {FILE_BYTES_MAX} "),
    ],
)
def test_a_file_that_would_take_minutes_is_not_parsed(
    raw: bytes, place: str, tmp_path: Path
) -> None:
    """What costs a parser the square of its size is refused by its size, and told where."""
    (tmp_path / "models.toml").write_bytes(raw)
    began = time.process_time()
    with pytest.raises(ModelsInvalid) as refused:
        load_models(tmp_path, {})
    assert place in refused.value.message
    assert time.process_time() - began < 2


def test_a_syntax_error_has_its_place(tmp_path: Path) -> None:
    """Where TOML itself is broken, the line is said and its text is not."""
    with pytest.raises(ModelsInvalid) as refused:
        written(tmp_path, models(f'key = "{KEY}'))
    assert "line 2" in refused.value.message
    assert KEY not in refused.value.message


@pytest.mark.parametrize(("said", "own"), [("", "public"), ("off", "off"), (" ANY ", "any")])
def test_the_operator_says_which_own_models(said: str, own: str, tmp_path: Path) -> None:
    """`MANA_OWN_MODELS` is off, public or any, and public where nobody says; a device has all."""
    environ = {"MANA_OWN_MODELS": said}
    assert load_models(tmp_path, environ).own_models == own
    assert written(tmp_path, models(ONE), environ).own_models == own
    assert load_models(tmp_path, environ, own_models="any").own_models == "any"


def test_another_word_for_own_models_is_refused(tmp_path: Path) -> None:
    """A word that is none does not become the default."""
    with pytest.raises(Invalid):
        load_models(tmp_path, {"MANA_OWN_MODELS": "yes"})


def test_settings_travel_whole(tmp_path: Path) -> None:
    """What the runner hands to its workers is what it read."""
    text = models(named("a", "b") + f'key = "{KEY}"', named("b"))
    found = written(tmp_path, text, {"MANA_OWN_MODELS": "any"})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=ModelSettings) == found


CHAIN = models(
    named("a", "b", "d"),
    named("b", "c"),
    named("c"),
    named("d", "c"),
    named("e", "rules"),
    'alias = "rules"\nurl = "rules:offline"',
)


@pytest.mark.parametrize(
    ("alias", "order"),
    [("", "a b c d"), ("a", "a b c d"), ("b", "b c"), ("c", "c"), ("d", "d c"), ("e", "e rules")],
)
def test_a_chain_is_in_its_order(alias: str, order: str, tmp_path: Path) -> None:
    """A fall-back's own fall-backs follow it, each model once; no alias is the first one."""
    settings = written(tmp_path, CHAIN)
    assert [one.alias for one in settings.chain(alias)] == order.split()
    asked = [one.model.endpoint for one in candidates(settings, alias, None)]
    assert asked == [ENDPOINT if x == "rules" else f"https://{x}.example" for x in order.split()]


def test_only_named_endpoints_are_asked(tmp_path: Path) -> None:
    """Of a chain only what the grant's header names is left, in its order; perhaps nothing."""
    settings = written(tmp_path, CHAIN)
    named_ones = {"https://d.example", "https://b.example", "https://x.example"}
    found = candidates(settings, "a", named_ones)
    assert [one.model.endpoint for one in found] == ["https://b.example", "https://d.example"]
    assert candidates(settings, "a", set()) == []


def test_a_model_that_is_not_set_up_is_not_there(tmp_path: Path) -> None:
    """An alias that nobody has is no other model."""
    with pytest.raises(ModelUnknown):
        candidates(written(tmp_path, CHAIN), "gone", None)


def test_a_candidate_has_its_price_and_context(tmp_path: Path) -> None:
    """What a model costs and can read is known to the run."""
    text = ONE + "prompt_price = 1\ncompletion_price = 2\ncontext_tokens = 8000"
    [found] = candidates(written(tmp_path, models(text)), "", None)
    assert (found.price, found.context_tokens) == (Price(1_000_000, 2_000_000), 8_000)
    [rules] = candidates(OFFLINE, "", None)
    assert (rules.price, rules.model.metered) == (FREE, False)


def test_people_see_each_model(tmp_path: Path) -> None:
    """The consent can say alias, price and context of all, and what each falls back to."""
    infos = model_infos(written(tmp_path, CHAIN))
    assert [one.alias for one in infos] == ["a", "b", "c", "d", "e", "rules"]
    assert infos[0].fallback == ["b", "c", "d"]
    assert (infos[0].prompt_price, infos[0].completion_price) == (None, None)
    assert (infos[5].endpoint, infos[5].prompt_price, infos[5].local) == (ENDPOINT, 0, True)
    assert infos[0].context_tokens == CONTEXT_TOKENS
