"""What docs/tracing.md says is so."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from repo.checkout import ROOT, text_of
from support.bad_specs import service as body_of
from support.infsvc import plan, service

PAGE = text_of(Path("docs/tracing.md"))
VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


def test_every_attribute_of_ours_is_explained() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "runtime").rglob("*.py"))
    ours = set(re.findall(r'"(tandem\.[a-z_.]+)"', sources))
    assert len(ours) > 8
    assert ours == set(re.findall(r"`(tandem\.[a-z_.]+)`", PAGE.partition("Tandem's own attributes")[2]))


def test_every_span_of_the_engine_is_shown() -> None:
    engine = ROOT / "runtime" / "tandem_runtime" / "engine"
    sources = "\n".join((engine / name).read_text() for name in ("spans.py", "live.py"))
    names = set(re.findall(r'(?:Phase\(|name=)"([a-z_]+)"', sources))
    assert len(names) >= 8
    assert [name for name in sorted(names) if f"─ {name} " not in PAGE] == []


def test_the_shown_fields_reach_the_pods_that_make_spans() -> None:
    [shown] = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    body = body_of()
    for role, fields in yaml.safe_load(shown)["spec"].items():
        body["spec"].setdefault(role, {}).update(fields)
    made = plan(service(body=body)).children
    pods = [child["spec"]["template"]["spec"] for child in made if child["kind"] in ("Deployment", "StatefulSet")]
    assert len(pods) == 3
    for pod in pods:
        names = {entry["name"] for container in pod["containers"] for entry in container["env"]}
        assert VARIABLE in names
