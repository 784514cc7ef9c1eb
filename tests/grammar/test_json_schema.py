"""Every keyword of JSON schema, by what becomes of it: enforced to the letter, refused when strict, or without meaning.

`jsonschema` is the judge of what an instance is worth.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.slow_grammars import ByteCompiler
from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar import sources
from tandem_runtime.grammar.json_schema import ENFORCED, FORMATS, OTHER_FORMATS, REFUSED

API_PAGE = Path(__file__).parents[2] / "docs" / "api.md"
COMPILER = ByteCompiler()


def accepts(schema: Any, text: str, *, strict: bool = True) -> bool:
    """Whether an answer may be `text`."""
    matcher = COMPILER.compile(sources.combine(sources.of_json_schema(schema, strict=strict)))
    told = list(text.encode())
    return matcher.try_consume_tokens(told) == len(told) and matcher.is_accepting()


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


NODE = closed({"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, required=["next"])
CAT = closed({"kind": {"const": "cat"}, "lives": {"type": "integer"}}, required=["kind"])
DOG = closed({"kind": {"enum": ["dog", "wolf"]}, "barks": {"type": "boolean"}}, required=["kind"])
PETS = {"$defs": {"Cat": CAT, "Dog": DOG}, "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}
OPERANDS = [f"operand_{number}" for number in range(9)]
OPERATIONS = [
    closed({"op": {"const": sign}} | {name: {"$ref": "#/$defs/any"} for name in OPERANDS}, required=["op", *OPERANDS])
    for sign in "+*"
]
FORMULA = {"oneOf": [*OPERATIONS, {"type": "number"}]}
"""`op` alone tells the operations apart; looking into an operand leads back to the beginning."""
OLD = {"$schema": "http://json-schema.org/draft-07/schema#"}

ENFORCED_BY_EXAMPLE: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "$ref": (NODE, [{"next": {"next": None}}], [{"next": {}}, {"next": {"next": 1}}]),
    "$defs": ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "null"}}}, [None], [1]),
    "definitions": ({"$ref": "#/definitions/n", "definitions": {"n": {"type": "null"}}}, [None], [1]),
    "type": ({"type": ["integer", "null"]}, [1, None], ["1", 1.5, [], True]),
    "const": ({"const": {"a": [1, "é"]}}, [{"a": [1, "é"]}], [{"a": [1]}, 1]),
    "enum": ({"enum": ["größe", 1, None, [2]]}, ["größe", 1, None, [2]], ["grosse", 2, True]),
    "anyOf": ({"anyOf": [{"type": "string"}, {"minimum": 3, "type": "number"}]}, ["a", 4], [1, None]),
    "allOf": ({"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 3}]}, ["ab"], ["a", "abcd"]),
    "oneOf": (PETS, [{"kind": "cat", "lives": 9}, {"kind": "wolf"}], [{"kind": "cat", "barks": True}, {}]),
    "properties": (closed({"a": {"type": "null"}, "b": {}}), [{}, {"a": None, "b": 1}], [{"a": 1}]),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}},
        [{"n_a": 1, "x": "y"}],
        [{"n_a": "x"}],
    ),
    "additionalProperties": (
        {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "null"}},
        [{"a": 1, "b": None}],
        [{"b": 1}],
    ),
    "required": ({"type": "object", "required": ["a"]}, [{"a": 1}], [{}, {"b": 1}]),
    "minProperties": (closed({"a": {}, "b": {}}, minProperties=1), [{"b": 1}], [{}]),
    "maxProperties": ({"type": "object", "maxProperties": 1}, [{}, {"b": 1}], [{"a": 1, "b": 1}]),
    "items": ({"type": "array", "items": {"type": "null"}}, [[], [None]], [[1], [None, 1]]),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "null"}]}, [[], [None, 1]], [[1]]),
    "additionalItems": ({**OLD, "items": [{"type": "null"}], "additionalItems": False}, [[None]], [[1], [None, 1]]),
    "minItems": ({"type": "array", "minItems": 2}, [[1, 2]], [[1]]),
    "maxItems": ({"type": "array", "maxItems": 2}, [[1, 2]], [[1, 2, 3]]),
    "minLength": ({"type": "string", "minLength": 2}, ["éé", "\n\t"], ["é", "😀"]),
    "maxLength": ({"type": "string", "maxLength": 2}, ["éé", "😀"], ["abc"]),
    "pattern": ({"type": "string", "pattern": "b\\d"}, ["ab1c", "b2"], ["b", "B1"]),
    "format": ({"type": "string", "format": "date"}, ["2024-02-29"], ["2024-02-30", "24-1-1", ""]),
    "minimum": ({"type": "number", "minimum": -1.5}, [-1.5, 0, 1e3], [-1.6, -2]),
    "maximum": ({"type": "integer", "maximum": 10}, [10, -4], [11]),
    "exclusiveMinimum": ({"type": "number", "exclusiveMinimum": 3}, [3.1], [3, 2]),
    "exclusiveMaximum": ({"type": "integer", "exclusiveMaximum": 3}, [2], [3]),
    "multipleOf": ({"type": "integer", "multipleOf": 5}, [0, 15], [7]),
}

REFUSED_BY_EXAMPLE: dict[str, tuple[dict[str, Any], Any]] = {
    "not": ({"type": "string", "not": {"const": "a"}}, "a"),
    "if": ({"type": "integer", "if": {"minimum": 3}, "then": {"multipleOf": 2}}, 5),
    "then": ({"type": "integer", "then": {"multipleOf": 2}, "if": {"minimum": 3}}, 5),
    "else": ({"type": "integer", "else": {"multipleOf": 2}, "if": {"minimum": 3}}, 1),
    "dependentRequired": ({"type": "object", "dependentRequired": {"a": ["b"]}}, {"a": 1}),
    "dependentSchemas": ({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, {"a": 1}),
    "dependencies": ({**OLD, "type": "object", "dependencies": {"a": ["b"]}}, {"a": 1}),
    "propertyNames": ({"type": "object", "propertyNames": {"pattern": "^a"}}, {"b": 1}),
    "unevaluatedProperties": ({"type": "object", "unevaluatedProperties": False}, {"b": 1}),
    "unevaluatedItems": ({"type": "array", "unevaluatedItems": False}, [1]),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, [1, 1]),
    "contains": ({"type": "array", "contains": {"type": "null"}}, [1]),
    "minContains": ({"type": "array", "minContains": 2, "contains": {"type": "null"}}, [None]),
    "maxContains": ({"type": "array", "maxContains": 1, "contains": {"type": "null"}}, [None, None]),
    "$dynamicRef": ({"$dynamicRef": "#/$defs/n", "$defs": {"n": {"type": "null"}}}, 1),
    "$recursiveRef": (
        {
            "$schema": "https://json-schema.org/draft/2019-09/schema",
            "type": "object",
            "additionalProperties": {"$recursiveRef": "#"},
        },
        {"a": 1},
    ),
}  # fmt: skip

WITHOUT_MEANING = [
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$id", "$anchor",
    "example", "$dynamicAnchor", "$vocabulary", "contentMediaType", "contentEncoding", "contentSchema", "discriminator",
    "nullable", "x-guidance", "made_up",
]  # fmt: skip


def test_every_keyword_has_an_example() -> None:
    assert ENFORCED_BY_EXAMPLE.keys() == ENFORCED.keys()
    assert REFUSED_BY_EXAMPLE.keys() == REFUSED.keys()


@pytest.mark.parametrize("keyword", ENFORCED)
def test_enforced_to_the_letter(keyword: str) -> None:
    schema, valid, invalid = ENFORCED_BY_EXAMPLE[keyword]
    assert keyword in json.dumps(schema)
    judge = jsonschema.validators.validator_for(schema)(schema, format_checker=jsonschema.FormatChecker())
    for strict in (True, False):
        for instance in valid:
            assert judge.is_valid(instance)
            assert accepts(schema, json.dumps(instance, ensure_ascii=False), strict=strict), instance
        for instance in invalid:
            assert not judge.is_valid(instance)
            assert not accepts(schema, json.dumps(instance, ensure_ascii=False), strict=strict), instance


@pytest.mark.parametrize("keyword", REFUSED)
def test_refused_when_strict_with_its_place_and_else_ignored(keyword: str) -> None:
    schema, violating = REFUSED_BY_EXAMPLE[keyword]
    nested = {"properties": {"a/b": {"items": schema}}, "type": "object"}
    with pytest.raises(GrammarError) as refused:
        sources.of_json_schema(nested, strict=True)
    first = next((key for key in schema if key in REFUSED), keyword)
    place = rf"'{re.escape(first)}' at #/properties/a~1b/items(/additionalProperties)? cannot be enforced: "
    assert re.match(place, str(refused.value))
    assert REFUSED[first] in str(refused.value)
    assert not jsonschema.validators.validator_for(schema)(schema).is_valid(violating)
    assert accepts(schema, json.dumps(violating), strict=False)


@pytest.mark.parametrize("keyword", WITHOUT_MEANING)
def test_what_says_nothing_about_an_answer_is_accepted(keyword: str) -> None:
    value: Any = {"title": 1, "$id": "https://example.com/x", "$anchor": "here", "$dynamicAnchor": "here"}.get(
        keyword, {"a": True}
    )
    assert accepts({"type": "string", keyword: value}, '"a"')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": False},
        {"type": "object", "unevaluatedProperties": True},
        {"type": "object", "propertyNames": {"type": "string"}},
        {"type": "number", "default": 1e300, "examples": [2**63]},
        {"type": "string", "pattern": "^(a|[(?=]|\\\\b|(?:c))$"},
        {"type": "object", "properties": {"next": {"oneOf": [{"$ref": "#"}, {"type": "null"}]}}},
        {"oneOf": [{"$ref": "#/$defs/a", "title": "A"}, {"type": "null"}], "$defs": {"a": {"type": "array"}}},
        {"type": "object", "properties": {"not": {"type": "null"}, "if": {}}},
        {"enum": [{"not": 1, "uniqueItems": True}]},
        {"const": {"oneOf": [1, 2]}},
        {"type": "integer", "format": "int64"},
        {"type": "object", "minProperties": 1, "required": ["a"]},
        {"$schema": "https://example.com/own", "type": "string"},
        {"oneOf": [{"type": "string"}, {"type": "null"}, {"type": "integer"}]},
        {"oneOf": [{"const": 1}, {"const": True}, {"enum": ["a", None]}]},
        {"oneOf": [{"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "array"}]},
        {"oneOf": [{"const": [1, {"a": None}]}, {"const": [True, {"a": None}]}, {"const": [1, {"a": False}]}]},
        {"$ref": "#/$defs/any", "$defs": {"any": FORMULA}},
        {"oneOf": [{"enum": list(range(4_000))}, {"enum": list(range(10_000, 14_000))}]},
        {"oneOf": [*({"const": f"v{number}", "title": "V"} for number in range(400)), {"type": "null"}]},
        {"oneOf": [closed({"kind": {"const": number}}, required=["kind"]) for number in range(200)]},
    ],
)
def test_exact_though_it_looks_otherwise(schema: Any) -> None:
    COMPILER.compile(sources.combine(sources.of_json_schema(schema, strict=True)))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "format": "zorp"}, "the format 'zorp' at # .* use a pattern, or one of date, "),
        ({"format": "unknown"}, "the format 'unknown' at #"),
        ({"type": "string", "format": "iri"}, "the format 'iri' at #"),
        ({"type": "string", "pattern": "^(?!a)"}, "'pattern' that looks around or back at #"),
        ({"type": "string", "pattern": "(?<=a)b"}, "'pattern' that looks around or back at #"),
        ({"type": "string", "pattern": "\\bb"}, "'pattern' that looks around or back at #"),
        ({"type": "string", "pattern": "(a)\\1"}, "'pattern' that looks around or back at #"),
        ({"type": "object", "additionalProperties": {"oneOf": [{"$ref": "#"}, {"type": "object"}]}}, "0 and 1"),
        ({"type": "object", "minProperties": 1}, "'minProperties' at # .* additionalProperties false"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "'oneOf', whose alternatives 0 and 1 may both hold"),
        ({"oneOf": [{"const": 1}, {"enum": [2, 1.0]}]}, "alternatives 0 and 1"),
        ({"oneOf": [{"type": "null"}, {"type": "object"}, CAT]}, "alternatives 1 and 2"),
        ({"oneOf": [CAT, closed({"kind": {"const": "dog"}})]}, "alternatives 0 and 1"),
        ({"oneOf": [NODE, NODE]}, "alternatives 0 and 1"),
        ({"oneOf": [OPERATIONS[0]] * 2, "$defs": {"any": FORMULA}}, "alternatives 0 and 1"),
        ({"oneOf": [*({"const": number} for number in range(9)), {"const": 8.0}]}, "alternatives 8 and 9"),
        (
            {
                "oneOf": [
                    *({"type": ["string", "null"], "const": f"v{number}"} for number in range(200)),
                    {"const": "v"},
                ]
            },
            "'oneOf' of 201 alternatives, too many to compare",
        ),
    ],
)
def test_exact_only_sometimes(schema: Any, words: str) -> None:
    with pytest.raises(GrammarError, match=words):
        sources.of_json_schema(schema, strict=True)
    COMPILER.compile(sources.combine(sources.of_json_schema(schema, strict=False)))


@pytest.mark.parametrize("others", [[{"enum": list(range(-1, -4_000, -1))}], [{"const": -n} for n in range(1, 1_000)]])
def test_alternatives_of_many_values_are_compared_in_bounded_time(others: list[Any]) -> None:
    """The requests of a whole pod wait meanwhile."""
    began = time.process_time()
    with suppress(GrammarError):
        sources.of_json_schema({"oneOf": [{"enum": list(range(6_000))}, *others]}, strict=True)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("junk", [None, True, -1, 1.5, "a", [], [[]], [{}], [1, "a"], {}, {"a": 1}, {"a": {"a": []}}])
@pytest.mark.parametrize("keyword", [*ENFORCED, *REFUSED, "$schema"])
def test_values_of_the_wrong_kind_are_no_crash(keyword: str, junk: Any) -> None:
    other = closed({"a": {"const": 1}}, required=["a"])
    for strict in (True, False):
        for schema in ({keyword: junk}, {"oneOf": [{keyword: junk, "type": "object"}, other], keyword: junk}):
            with suppress(GrammarError):
                COMPILER.compile(sources.combine(sources.of_json_schema(schema, strict=strict)))


@pytest.mark.parametrize("name", ["a", "a/b", "é"])
def test_a_property_has_one_spelling(name: str) -> None:
    """Symptom: {"\\u0061": "x"} was an answer where "a" had to be an integer: a property of another name, it seemed."""
    schema = {"type": "object", "properties": {name: {"type": "integer"}}}
    spelt = "".join(f"\\u{ord(char):04x}" for char in name)
    assert not accepts(schema, f'{{"{spelt}": "x"}}')
    assert not accepts(schema, json.dumps({name: "x"}).replace("/", "\\/"))
    assert accepts(schema, json.dumps({name: 1}, ensure_ascii=False))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"const": "0\x0b"}, "0\x0b"),
        ({"enum": ["1", "0\x7f"]}, "0\x7f"),
        ({"type": "string", "pattern": "^0\\x1b$"}, "0\x1b"),
        ({"type": "string", "pattern": "^0\\u0001$"}, "0\x01"),
    ],
)
def test_control_characters_are_not_left_out(schema: Any, text: str) -> None:
    """Symptom: {"const": "0\\u000b"} was answered with "0". Cause: llguidance, where \\u is not allowed."""
    assert accepts(schema, json.dumps(text).replace("\x7f", "\\u007f"))
    assert not accepts(schema, '"0"')


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"const": "\x01"}}},
        {"type": "object", "properties": {"a\x0b": {"type": "integer"}}},
        {"type": "object", "patternProperties": {"^a$": {"type": "integer"}, "b": {"pattern": "\\x01"}}},
    ],
)
def test_control_characters_give_no_property_a_second_spelling(schema: Any) -> None:
    """Symptom: {"\\u0061": "x"} was an answer where "a" had to be an integer, if some other text needed \\u."""
    with pytest.raises(GrammarError, match="properties of any name, beside control characters"):
        sources.of_json_schema(schema, strict=True)
    assert accepts(schema, '{"\\u0061\\u000b": "x"}', strict=False)
    closed_too = schema | {"additionalProperties": False}
    if "properties" in schema:
        assert not accepts(closed_too, '{"\\u0061": "x"}')
        assert not accepts(closed_too, '{"a\\u000B": "x"}')


@pytest.mark.parametrize("pattern", ["^[^\\x00-\\x1f\\x7f]+$", "^[\\u0009\\u000a\\u0020-\\u00ff]+$"])
def test_a_class_with_others_beside_control_characters_needs_no_spelling(pattern: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    assert accepts(schema, '{"a": "b"}')
    assert not accepts(schema, '{"\\u0061": 1}')


@pytest.mark.parametrize("pattern", ["[" * 30_000, "[\\x01" * 8_000, "[-" * 15_000, "(?" * 15_000, "\\" * 30_001])
def test_patterns_are_read_in_bounded_time(pattern: str) -> None:
    began = time.process_time()
    with suppress(GrammarError):
        sources.of_json_schema({"type": "string", "pattern": pattern}, strict=True)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("blank", ["\n\n", "  ", "\t", "\n" + " " * 65, "\r"])
@pytest.mark.parametrize(
    "form", ['{%s"a":[1]}', '{"a"%s:[1]}', '{"a":%s[1]}', '{"a":[1]%s}', '{"a":[1]}%s', '%s{"a":[1]}']
)
def test_a_model_cannot_lose_itself_in_blanks(form: str, blank: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array"}}}
    assert accepts(schema, form.replace("%s", ""))
    assert not accepts(schema, form.replace("%s", blank))


@pytest.mark.parametrize("indent", [None, 1, 2, 4, 8, "\t"])
def test_common_layouts_are_possible(indent: int | str | None) -> None:
    instance = {"a": [1, {"b": {"c": [[], {}, "d"]}}], "e": None}
    assert accepts({"type": "object"}, json.dumps(instance, indent=indent))
    assert accepts({"type": "object"}, json.dumps(instance, indent=indent).replace("\n", "\r\n"))
    assert accepts({"type": "object"}, json.dumps(instance, separators=(",", ":")))


def test_the_page_lists_the_same_keywords() -> None:
    page = API_PAGE.read_text()

    def listed(beginning: str) -> set[str]:
        [row] = re.findall(rf"^\| {beginning} \|(.*)\|$", page, re.MULTILINE)
        return set(re.findall("`([^`]+)`", row))

    assert listed("enforced") == set(ENFORCED)
    assert listed("refused when strict, else ignored") == set(REFUSED)
    assert listed("`format`") == FORMATS
    assert listed("`format` when strict refused, else ignored") == OTHER_FORMATS


CONTROL = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"const": "\u0001"}}}


@pytest.mark.parametrize(
    ("target", "text"),
    [({"type": "object", "minProperties": 2}, '{"x": 1, "x": 1}'), (CONTROL, '{"\\u0061": "x"}')],
)
@pytest.mark.parametrize("place", ["components/schemas", "x-of/others"])
def test_what_a_reference_finds_anywhere_is_read_like_the_rest(target: Any, text: str, place: str) -> None:
    """Only llguidance looked into OpenAPI's `components`, and took twice the same property for two."""
    outer, inner = place.split("/")
    schema = {outer: {inner: {"A/B": target}}, "$ref": f"#/{place}/A~1B"}
    with pytest.raises(GrammarError, match=f"#/{place}/A~1B cannot be enforced"):
        accepts(schema, text)
    assert accepts(schema, text, strict=False)


def test_a_reference_into_what_is_kept_elsewhere_or_not_at_all() -> None:
    node = closed({"next": {"anyOf": [{"$ref": "#/components/node"}, {"type": "null"}]}}, required=["next"])
    assert accepts({"components": {"node": node}, "$ref": "#/components/node"}, '{"next": {"next": null}}')
    other = {
        "properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "null"}]}, "b": {"$ref": "#/properties/a/oneOf/0"}}
    }
    assert accepts(closed(**other), '{"a": null, "b": 1}')
    assert not accepts(closed(**other), '{"a": null, "b": null}')
    named = {"not": {"type": "null"}, "$defs": {"n": {"$ref": "#/not"}}, "$ref": "#/$defs/n"}
    assert accepts(named, "null", strict=False)
    with pytest.raises(GrammarError, match="leads to"):
        accepts({"$ref": "#/components/none"}, "1")


@pytest.mark.parametrize(
    "unread", [{"x-order": 2**60}, {"components": {"A": {"default": 1e300}}}, {"deprecated": -(2**63)}]
)
def test_numbers_that_nothing_is_compared_with_may_be_any(unread: dict[str, Any]) -> None:
    assert accepts({"type": "integer", **unread}, "7")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"^\x61\[&&--$", "a[&&--"),
        ("^(?:a|b)$", "b"),
        (r"^[\[&\]-]+$", "[&]-"),
        (r"^[a\-~&]$", "~"),
        ("^(?<n>a)$", "a"),
    ],
)
def test_patterns_that_all_read_alike(pattern: str, text: str) -> None:
    assert accepts({"type": "string", "pattern": pattern}, json.dumps(text))
