"""The committed CRD: up to date, structural, readable, and refusing what cannot work with a message that helps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from support import bad_specs
from support.crd_admission import admit, broken_rules
from tandem_operator.api.service import parse_spec
from tandem_operator.crdgen.__main__ import CRD_PATH, generated

ROOT = Path(__file__).parents[2]
CRD = yaml.safe_load((ROOT / CRD_PATH).read_text(encoding="utf-8"))
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("path", generated(), ids=str)
def test_committed_files_are_what_the_generator_writes(path: Path) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == generated()[path], "run python -m tandem_operator.crdgen"


def test_crd_is_a_valid_manifest_and_stays_readable() -> None:
    kubernetes_validate.validate(CRD, "1.34", strict=True)
    assert len((ROOT / CRD_PATH).read_text(encoding="utf-8").splitlines()) < 1500


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


def test_schema_is_structural() -> None:
    """kubernetes.io/docs, "Specifying a structural schema": types everywhere, no references, no free-form objects."""
    open_ended = []
    for path, schema in nodes(SCHEMA):
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
        assert not {"$ref", "$defs", "title", "const", "oneOf", "allOf", "uniqueItems"} & schema.keys(), path
        assert "anyOf" not in schema or "x-kubernetes-int-or-string" in schema, path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            open_ended.append(path)
    assert {path.rpartition(".")[2] for path in open_ended} == {"affinity"}


def test_lists_maps_and_strings_below_rules_are_bounded() -> None:
    """The API server refuses a CRD whose rules could cost too much; it estimates from these bounds."""
    for path, schema in nodes(SCHEMA["properties"]["spec"]):
        kind = schema.get("type")
        if path.rpartition(".")[2] != "affinity":
            assert kind != "array" or "maxItems" in schema, path
            assert kind != "object" or "properties" in schema or "maxProperties" in schema, path
            assert kind != "string" or "maxLength" in schema or "enum" in schema, path


def test_defaults_satisfy_the_rules_as_they_are_written() -> None:
    """Symptom: the API server refused the CRD, "no such key: strategy evaluating rule", for a default of {}."""
    for path, schema in nodes(SCHEMA):
        if "default" in schema:
            assert list(broken_rules(schema["default"], schema, path)) == []


def test_every_rule_names_a_field() -> None:
    for path, schema in nodes(SCHEMA):
        for rule in schema.get("x-kubernetes-validations", []):
            assert re.match(r"[a-z][A-Za-z.\[\]]+\b", rule["message"]), (path, rule)
            assert len(rule["message"]) < 2048, path


@pytest.mark.parametrize("case", bad_specs.BAD, ids=lambda case: case.name)
def test_bad_spec_is_refused(case: bad_specs.BadSpec) -> None:
    _, problems = admit(case.body, SCHEMA)
    assert any(case.says in problem for problem in problems), problems or "admitted"


@pytest.mark.parametrize("name", bad_specs.GOOD_SPECS)
def test_good_spec_is_admitted_and_understood(name: str) -> None:
    body, problems = admit(bad_specs.GOOD_SPECS[name], SCHEMA)
    assert problems == []
    assert parse_spec(body) == parse_spec(bad_specs.GOOD_SPECS[name]), "defaults of the CRD and of the types differ"
