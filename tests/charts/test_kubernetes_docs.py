"""What the pages about Kubernetes say exists: chart values, fields of the CRD, files."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from support.chart import CHART, ROOT, render
from tandem_operator.crdgen.crd import openapi_schema

OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
MIGRATING = (ROOT / "docs" / "migrating-from-vemlp.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPEC: dict[str, Any] = openapi_schema()["properties"]["spec"]
ROLE = SPEC["properties"]["prefill"]


def field(path: str, schema: dict[str, Any]) -> dict[str, Any] | None:
    for part in path.split("."):
        schema = schema.get("properties", {}).get(part, {})
    return schema or None


def roots() -> set[str]:
    return set(SPEC["properties"]) | set(ROLE["properties"])


def fields_named(page: str) -> list[str]:
    """Paths such as `model.storage.secretRef` or, of a role, `template.image`."""
    spans = re.findall(r"`([a-zA-Z.]+)(?:: [^`]+)?`", page)
    return sorted({span for span in spans if span.split(".")[0] in roots()})


@pytest.mark.parametrize("path", sorted({*fields_named(OPERATIONS), *fields_named(MIGRATING)}))
def test_fields_exist(path: str) -> None:
    # `platform.rdma` and the like are values of the chart.
    assert field(path, SPEC) or field(path, ROLE), path


@pytest.mark.parametrize(
    "command",
    [c for page in (OPERATIONS, README) for c in re.findall(r"^helm install (?:.|\\\n)+", page, re.MULTILINE)],
)
def test_install_commands_work(command: str) -> None:
    argv = re.findall(r"--(?:set|values) (?:'[^']+'|\S+)", command)
    assert render(*(part.replace("'", "").replace(" ", "=", 1).replace("charts/tandem", str(CHART)) for part in argv))


def test_values_in_tables_exist() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    install = OPERATIONS.partition("## Install")[2].partition("## ")[0]
    named = re.findall(r"^\| `([a-zA-Z.]+)", install, re.MULTILINE)
    assert len(named) >= 5
    for path in [*named, "platform.monitorLabels", "engineImage.digest"]:
        found: Any = values
        for part in path.split("."):
            assert part in found, path
            found = found[part]


def test_rule_of_the_metrics_adapter_names_exported_metrics() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", OPERATIONS, re.MULTILINE | re.DOTALL)
    (rule,) = yaml.safe_load(block)["rules"]
    pattern = re.search(r'__name__=~"([^"]+)"', rule["seriesQuery"])
    assert pattern is not None
    target = ROLE["properties"]["scaling"]["properties"]["targets"]["items"]["properties"]["metric"]
    for name in set(target["enum"]) - {"cpu"}:
        assert re.fullmatch(pattern[1], name)


def test_pages_are_reached_from_the_readme() -> None:
    for page in ("operations", "migrating-from-vemlp", "reference/inferenceservice"):
        assert f"(docs/{page}.md)" in README
