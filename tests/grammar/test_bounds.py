"""Numbers between bounds: whatever text is accepted is read as a number that is between them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.slow_grammars import ByteCompiler
from tandem_runtime.grammar import sources

COMPILER = ByteCompiler()
BOUNDS = [0, 1, -1, 0.5, -0.5, 0.1, 0.25, 1.5, 2, 9.9, 10, 100, -0.01, 99.5, 0.30000000000000004, 1e-7, -1e-7, 1e15]
KEYS = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"]


def accepted(schema: Any, texts: list[str]) -> list[str]:
    matcher = COMPILER.compile(sources.combine(sources.of_json_schema(schema, strict=True)))

    def accepts(text: str) -> bool:
        asked, told = matcher.deep_copy(), list(text.encode())
        return asked.try_consume_tokens(told) == len(told) and asked.is_accepting()

    return [text for text in texts if accepts(text)]


@pytest.mark.parametrize(
    ("bounds", "out", "within"),
    [
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, ["0", "0.0", "-0", "0.5"], ["0.1", "0.49", "0.000000001"]),
        ({"exclusiveMinimum": 0, "maximum": 1}, ["0", "0.0", "1.1"], ["1", "0.9", "0.50"]),
        ({"exclusiveMinimum": 1, "exclusiveMaximum": 1.5}, ["1", "1.0", "1.5"], ["1.2", "1.49"]),
        ({"exclusiveMaximum": 0, "exclusiveMinimum": -0.5}, ["-0", "0", "-0.0", "-0.5"], ["-0.1"]),
        ({"exclusiveMaximum": 0, "minimum": -0.5}, ["-0", "0"], ["-0.1", "-0.5"]),
        ({"exclusiveMaximum": 10}, ["10", "10.0", "9." + "9" * 40], ["9", "9.9", "9.99", "-5", "9.999999999"]),
        ({"exclusiveMinimum": -10}, ["-10", "-9." + "9" * 40], ["-9.9", "3"]),
        ({"exclusiveMinimum": 0}, ["0", "0." + "0" * 400 + "1"], ["0.1", "0.20", "7", "123456789"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1e-8}, ["0", "0.00000001"], ["0.000000005"]),
        ({"exclusiveMinimum": 0, "minimum": 0.2}, ["0.1"], ["0.2", "0.3"]),
        ({"minimum": 0, "exclusiveMinimum": True, "maximum": 0.5}, ["0", "0.0"], ["0.2", "0.5"]),
        ({"exclusiveMinimum": 0, "multipleOf": 0.5}, ["0", "0.7"], ["0.5", "1.5"]),
    ],
)
def test_exclusive_bounds(bounds: dict[str, Any], out: list[str], within: list[str]) -> None:
    """Symptom: 0 was an answer where pydantic's `Field(gt=0, lt=0.5)` asked for more, and 9.999... where it asked for
    less than 10, which it is read as. Cause: llguidance, where the bounds share their digits before the point."""
    assert accepted({"type": "number"} | bounds, [*out, *within]) == within
    assert accepted(bounds, [*out, *within, '"a"', "null"]) == [*within, '"a"', "null"]


def test_integers_are_counted_to_the_last() -> None:
    assert accepted({"type": ["integer", "null"], "exclusiveMinimum": 0, "exclusiveMaximum": 3}, [*"0123"]) == [*"12"]
    much = {"allOf": [{"type": "integer"}, {"exclusiveMinimum": 10**15, "exclusiveMaximum": 10**15 + 2}]}
    assert accepted(much, [str(10**15 + more) for more in range(3)]) == [str(10**15 + 1)]


@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(BOUNDS), min_size=1))
@settings(max_examples=150, deadline=None)
def test_no_text_is_read_as_a_number_out_of_bounds(bounds: dict[str, float]) -> None:
    schema = {"type": "number"} | bounds
    lower = max(bounds.get("minimum", -1e300), bounds.get("exclusiveMinimum", -1e300))
    upper = min(bounds.get("maximum", 1e300), bounds.get("exclusiveMaximum", 1e300))
    if upper - lower < 1e-3:
        return
    texts = ["0", "-0", "0.0", "-0.0", "0." + "0" * 330 + "1"]
    for bound in bounds.values():
        whole = int(bound)
        texts += [str(whole), f"-{whole}", str(bound), f"{bound:.2f}", f"{bound:.17f}", f"{bound + 0.01:.2f}"]
        texts += [
            f"{bound - 0.01:.2f}",
            f"{whole}." + "9" * 25,
            f"{whole - 1}." + "9" * 25,
            f"{whole}." + "0" * 25 + "1",
        ]
    judge = jsonschema.Draft202012Validator(schema)
    for text in accepted(schema, texts):
        assert judge.is_valid(json.loads(text)), text
