"""The alert rules and the dashboard: they fire when they should, and on figures that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from mana.hub.runner.metrics import Metrics
from tests.tooling.files import ROOT
from tools import promtool

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
TESTS = ROOT / "deploy" / "prometheus" / "alerts_test.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "mana.json"
PAGE = ROOT / "docs" / "metrics.md"
FIGURE = re.compile(r"\bmana_ai_[a-z_]+")
LABELS = frozenset(
    [
        "decision",
        "kind",
        "le",
        "method",
        "model",
        "outcome",
        "path",
        "policy",
        "producer",
        "provider",
        "reason",
        "severity",
        "status",
        "table",
        "tool",
    ]
)
"""All of them are words of the code; none is an id or a text of a person."""


@pytest.fixture(scope="session")
def tool() -> str:
    """Return the path of promtool; without it, skip in one line, or fail where it is required."""
    path = promtool.find()
    if path is not None:
        return path
    if promtool.is_required():
        pytest.fail(promtool.MISSING, pytrace=False)
    pytest.skip(promtool.MISSING)


def run(tool: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run promtool and return what it said."""
    return subprocess.run([tool, *words], capture_output=True, text=True, check=False)


def exported() -> dict[str, set[str]]:
    """Return by figure, as it is scraped, the names of its labels."""
    found: dict[str, set[str]] = {}
    for family in Metrics().registry.collect():
        names = {
            "counter": [f"{family.name}_total"],
            "histogram": [f"{family.name}_{end}" for end in ("bucket", "count", "sum")],
        }.get(family.type, [family.name])
        for name in names:
            found[name] = set()
    return found


def test_rules_fire_as_they_should(tool: str) -> None:
    """Each alert comes when its fact does, and not before; every rule is among those tested."""
    assert run(tool, "check", "rules", str(RULES)).returncode == 0
    done = run(tool, "test", "rules", str(TESTS))
    assert done.returncode == 0, done.stdout + done.stderr
    names = set(re.findall(r"- alert: (\w+)", RULES.read_text("utf-8")))
    assert names == set(re.findall(r"alertname: (\w+)", TESTS.read_text("utf-8")))


def test_a_rule_that_never_fires_is_found(tool: str, tmp_path: Path) -> None:
    """The tests of the rules would tell a threshold that moved."""
    text = RULES.read_text("utf-8").replace("> 0.2", "> 0.9")
    (tmp_path / "alerts.yml").write_text(text, "utf-8")
    (tmp_path / TESTS.name).write_text(TESTS.read_text("utf-8"), "utf-8")
    assert run(tool, "test", "rules", str(tmp_path / TESTS.name)).returncode == 1


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=lambda path: path.name)
def test_only_figures_that_exist_are_asked_for(path: Path) -> None:
    """An alert or a panel on a figure that nobody exports would be silent for ever."""
    asked = set(FIGURE.findall(path.read_text("utf-8")))
    assert asked
    assert asked <= set(exported())


def test_the_page_lists_every_figure() -> None:
    """Whoever reads docs/metrics.md reads every figure of ours, and none that does not exist."""
    listed = set(re.findall(r"^\| `(mana_ai_[a-z_]+)`", PAGE.read_text("utf-8"), re.MULTILINE))
    ours = {family.name for family in Metrics().registry.collect()}
    assert listed == {name for name in ours if name.startswith("mana_ai_")}


def test_labels_are_words_of_the_code() -> None:
    """No label of a figure can hold an id or a text of a person."""
    metrics = Metrics()
    collectors = set(metrics.registry._collector_to_names)
    names = {label for one in collectors for label in getattr(one, "_labelnames", ())}
    assert names
    assert names <= LABELS


def test_the_dashboard_is_one() -> None:
    """The dashboard's file is JSON of Grafana's form, and each panel asks for something."""
    made = json.loads(DASHBOARD.read_text("utf-8"))
    assert made["title"] == "Mana runner"
    ids = [panel["id"] for panel in made["panels"]]
    assert len(ids) == len(set(ids)) > 10
    assert all(panel["targets"][0]["expr"] for panel in made["panels"])
