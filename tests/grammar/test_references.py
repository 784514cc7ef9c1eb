"""References: what they lead to is read like everything else, and may need an end."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest
from support.slow_grammars import ByteCompiler
from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar import sources

COMPILER = ByteCompiler()
OLD = {"$schema": "http://json-schema.org/draft-04/schema#"}
NESTED = {"$id": "https://example.com/q", "$defs": {"q": {"type": "integer"}}, "$ref": "#/$defs/q"}


def accepts(schema: Any, instance: Any) -> bool:
    matcher = COMPILER.compile(sources.combine(sources.of_json_schema(schema, strict=True)))
    told = list(json.dumps(instance).encode())
    return matcher.try_consume_tokens(told) == len(told) and matcher.is_accepting()


def in_components(schema: dict[str, Any]) -> dict[str, Any]:
    """As OpenAPI has it, where no keyword of JSON schema holds it."""
    reference = {"$ref": "#/components/schemas/A"}
    return {"type": "object", "properties": {"a": reference}, "components": {"schemas": {"A": schema}}}


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "object", "minProperties": 2}, "'minProperties'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "string", "format": "iri"}, "the format 'iri'"),
        ({"type": "string", "pattern": "^(?!a)"}, "a 'pattern'"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "'oneOf'"),
    ],
)
def test_what_is_referred_to_is_exact_wherever_it_is(schema: dict[str, Any], what: str) -> None:
    """Symptom: {"x": 1, "x": 1} was an answer where minProperties was 2. Cause: a keyword unknown held the schema."""
    with pytest.raises(GrammarError, match=f"^{what}.* at #/components/schemas/A cannot be enforced"):
        sources.of_json_schema(in_components(schema), strict=True)
    COMPILER.compile(sources.combine(sources.of_json_schema(in_components(schema), strict=False)))


def test_what_is_referred_to_has_one_spelling_wherever_it_is() -> None:
    schema = in_components({"type": "object", "properties": {"b": {"type": "integer"}}})
    assert accepts(schema, {"a": {"b": 1}})
    assert not accepts(schema, {"a": {"b": "x"}})
    with pytest.raises(GrammarError, match="beside control characters elsewhere, at #/components/schemas/A "):
        sources.of_json_schema(schema | {"required": ["\x01"], "additionalProperties": False}, strict=True)


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"properties": {"a": NESTED}, "$defs": {"q": {"type": "string"}}, "type": "object"}, {"a": 1}, {"a": "x"}),
        ({"$ref": "https://example.com/q", "$defs": {"x": NESTED}}, 1, "x"),
        ({"$ref": "#here", "$defs": {"x": {"$anchor": "here", "type": "integer"}}}, 1, "x"),
        ({"$ref": "#/$defs/a~1b%20c%25", "$defs": {"a/b c%": {"type": "integer"}}}, 1, "x"),
        ({"$ref": "#/$defs/x/anyOf/1", "$defs": {"x": {"anyOf": [{}, {"type": "integer"}]}}}, 1, "x"),
        ({"$ref": "#/$defs/x/oneOf/1", "$defs": {"x": {"oneOf": [{"type": "null"}, {"type": "integer"}]}}}, 1, None),
        ({"type": "object", "properties": {"$ref": {"type": "null"}, "b": {}}}, {"$ref": None}, {"$ref": 1}),
        (OLD | {"definitions": {"x": {"type": "integer"}}, "$ref": "#/definitions/x"}, 1, "x"),
        (OLD | {"$ref": "#x", "definitions": {"x": {"type": "integer", "id": "#x"}}}, 1, "x"),
    ],
)  # fmt: skip
def test_where_references_lead(schema: Any, valid: Any, invalid: Any) -> None:
    judge = jsonschema.validators.validator_for(schema)(schema)
    assert judge.is_valid(valid)
    assert not judge.is_valid(invalid)
    assert accepts(schema, valid)
    assert not accepts(schema, invalid)


def test_alternatives_are_told_apart_by_what_their_references_mean() -> None:
    """Symptom: 1 was an answer though both alternatives hold for it: they were looked for in the document's root."""
    inner = {"q": {"type": "number"}, "r": {"type": "integer"}}
    outer = {"q": {"type": "string"}, "r": {"type": "null"}}
    one_of = {"oneOf": [{"$ref": "#/$defs/q"}, {"$ref": "#/$defs/r"}]}
    schema = {"type": "object", "properties": {"a": one_of | {"$id": "https://example.com/q", "$defs": inner}}}
    with pytest.raises(GrammarError, match="'oneOf', whose alternatives 0 and 1 may both hold, at #/properties/a"):
        sources.of_json_schema(schema | {"$defs": outer}, strict=True)
    schema["properties"]["a"]["$defs"] = outer  # type: ignore[index]
    assert accepts(schema | {"$defs": inner}, {"a": None})


@pytest.mark.parametrize("ref", ["#/$defs/none", "https://example.com/x", "#nowhere", "#/type/1", "#/required/9"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_reference_to_nothing_is_named(ref: str, strict: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": ref}}, "required": ["a"]}
    with pytest.raises(GrammarError, match=f"^'\\$ref' at #/properties/a leads to '{ref.replace('$', '.')}'"):
        sources.of_json_schema(schema, strict=strict)


@pytest.mark.parametrize("key", ["x-order", "default", "components", "$defs"])
def test_numbers_that_nothing_is_compared_with_are_no_obstacle(key: str) -> None:
    assert accepts({"type": "integer", key: {"x": {"default": 1e300, "x-max": 2**60}}}, 1)


def test_parts_of_parts_are_read_in_bounded_time() -> None:
    """Each of these references leads to a part of what the one before it leads to."""
    part: Any = {f"p{number}": {} for number in range(2_000)}
    for _ in range(150):
        part = {"a": {"properties": part}}
    references = [{"$ref": "#/x" + "/a/properties" * depth + "/a"} for depth in range(150)]
    began = time.process_time()
    with pytest.raises(GrammarError, match="its references lead to parts of one another"):
        sources.of_json_schema({"x": part, "anyOf": references}, strict=True)
    assert time.process_time() - began < 2


def to_itself(**more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"next": {"$ref": "#"}, "to": {"type": "null"}}, **more}


@pytest.mark.parametrize(
    "schema",
    [
        to_itself(required=["next"]),
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 2},
        {"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#"}]}}},
        {"type": "object", "required": ["a"], "additionalProperties": {"$ref": "#"}},
        to_itself(required=["to"], allOf=[to_itself(required=["next"])]),
    ],
)
def test_what_never_ends_is_refused(schema: Any) -> None:
    """Symptom: every answer nested until it had had its tokens."""
    for strict in (True, False):
        with pytest.raises(GrammarError, match="no finite answer satisfies the schema"):
            sources.of_json_schema(schema, strict=strict)


@pytest.mark.parametrize(
    "schema",
    [
        to_itself(),
        to_itself(required=["to"]),
        {"type": ["object", "null"], "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "array", "prefixItems": [{}], "items": {"$ref": "#"}, "minItems": 1},
        {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/0"}}, "required": ["a"],
         "$defs": {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}]} for n in range(99)} | {"99": {"type": "null"}}},
    ],
)  # fmt: skip
def test_what_may_end_is_not(schema: Any) -> None:
    COMPILER.compile(sources.combine(sources.of_json_schema(schema, strict=True)))
