"""Dashboards and alerts: only metrics and labels that are exported, and alerts that fire when they should."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from dashboards.__main__ import generated
from dashboards.queries import ROLE, SERVICE
from support.chart import CHART, of_kind, render
from support.kube_tools import promtool
from tandem_contract import metrics as m

RULES = CHART / "rules" / "tandem.rules.yaml"
RULE_TESTS = Path(__file__).parent / "tandem.rules.test.yaml"
BOARDS = {path.name: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
TARGET = {"namespace", "pod", SERVICE, ROLE}
"""Labels of every series, from the PodMonitor's targets."""
APIS = [f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in ("PodMonitor", "PrometheusRule")]


def exported() -> dict[str, set[str]]:
    """Labels by name of series."""
    found: dict[str, set[str]] = {}
    for metric in m.ALL:
        # A label that the target has too is renamed.
        labels = TARGET | {f"exported_{name}" if name in TARGET else name for name in metric.labels}
        if metric.kind == "histogram":
            found[f"{metric.name}_bucket"] = labels | {"le"}
            found |= {f"{metric.name}_{part}": labels for part in ("sum", "count")}
        else:
            found[metric.name] = labels
    return found


EXPORTED = exported()


def panels() -> Iterator[tuple[str, Any]]:
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield f"{name}: {panel['title']}", panel


def queries() -> Iterator[tuple[str, str, str]]:
    """Where, expression, legend."""
    for where, panel in panels():
        for target in panel["targets"]:
            yield where, target["expr"], target["legendFormat"]
    for rule in ALERTS:
        yield rule["alert"], rule["expr"], ""


def selectors(node: Any) -> Iterator[Any]:
    if isinstance(node, promql.VectorSelector):
        yield node
    for part in ("expr", "lhs", "rhs", "vector_selector"):
        if (child := getattr(node, part, None)) is not None:
            yield from selectors(child)
    for argument in getattr(node, "args", []):
        yield from selectors(argument)


def labels_used(node: Any) -> set[str]:
    """Of groupings and matchings."""
    used: set[str] = set()
    modifier = getattr(node, "modifier", None)
    if isinstance(node, promql.AggregateExpr) and modifier is not None:
        used |= set(modifier.labels)
    for part in ("expr", "lhs", "rhs"):
        if (child := getattr(node, part, None)) is not None:
            used |= labels_used(child)
    for argument in getattr(node, "args", []):
        used |= labels_used(argument)
    return used


def parsed(expression: str) -> Any:
    return promql.parse(expression.replace("$__rate_interval", "5m"))


@pytest.mark.parametrize(("where", "expression", "legend"), list(queries()))
def test_queries_name_only_what_is_exported(where: str, expression: str, legend: str) -> None:
    tree = parsed(expression)
    found = list(selectors(tree))
    assert found
    known = set.intersection(*(EXPORTED[selector.name] for selector in found))
    for selector in found:
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= EXPORTED[selector.name], selector.name
    assert labels_used(tree) <= known
    shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
    assert shown <= known
    if isinstance(tree, promql.AggregateExpr):
        assert shown <= labels_used(tree), "the legend shows a label that the query drops"


def test_every_metric_is_shown_somewhere() -> None:
    shown = {
        selector.name for _, panel in panels() for t in panel["targets"] for selector in selectors(parsed(t["expr"]))
    }
    hidden = {metric.name for metric in m.ALL if not {metric.name, f"{metric.name}_bucket"} & shown}
    assert hidden == {m.KV_PAGES.name, m.HANDOFF_PAGES.name}, "these follow from others that are shown"


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_committed_dashboards_are_what_the_generator_writes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated()[path], "run: cd charts && python -m dashboards"


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_places_of_their_own(name: str) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= mine
    ids = [panel["id"] for panel in BOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)
    known = {variable["name"] for variable in BOARDS[name]["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(BOARDS[name]["panels"]))) <= known | {"__rate_interval"}


def test_promtool_accepts_the_rules() -> None:
    for argv in (["check", "rules", str(RULES)], ["test", "rules", str(RULE_TESTS)]):
        done = subprocess.run([promtool(), *argv], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_was_seen_firing_and_says_what_to_do() -> None:
    tests = [one for group in yaml.safe_load(RULE_TESTS.read_text())["tests"] for one in group["alert_rule_test"]]
    assert {one["alertname"] for one in tests if one["exp_alerts"]} == {rule["alert"] for rule in ALERTS}
    for rule in ALERTS:
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_monitoring_kinds_appear_where_the_cluster_has_them() -> None:
    kinds = {"PodMonitor", "PrometheusRule"}
    assert not kinds & {made["kind"] for made in render()}
    made = render(*APIS, f"--values={CHART}/values-volcengine.yaml", "--set=monitoring.labels.team=a")
    for kind in kinds:
        (found,) = of_kind(made, kind)
        assert found["metadata"]["labels"].items() >= {("volcengine.vmp", "true"), ("team", "a")}
    (rules,) = of_kind(made, "PrometheusRule")
    assert rules["spec"] == yaml.safe_load(RULES.read_text())
    (monitor,) = of_kind(made, "PodMonitor")
    (deployment,) = of_kind(made, "Deployment")
    template = deployment["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert {e["port"] for e in monitor["spec"]["podMetricsEndpoints"]} == {
        port["name"] for port in template["spec"]["containers"][0]["ports"]
    }
    assert of_kind(render("--set=monitoring.podMonitor=true"), "PodMonitor")
    assert not of_kind(render(*APIS, "--set=monitoring.prometheusRule=false"), "PrometheusRule")


def test_dashboards_reach_the_sidecar() -> None:
    (config,) = (made for made in of_kind(render(), "ConfigMap") if made["metadata"]["name"] == "tandem-dashboards")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert [json.loads(text) for _, text in sorted(config["data"].items())] == list(BOARDS.values())
    assert all(key.startswith("tandem-") for key in config["data"])
    names = {
        made["metadata"]["name"] for made in of_kind(render("--set=monitoring.dashboards.enabled=false"), "ConfigMap")
    }
    assert "tandem-dashboards" not in names
