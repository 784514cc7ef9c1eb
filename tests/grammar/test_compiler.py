"""What cannot be enforced, or costs too much, is refused soon and in words."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar import sources
from tandem_runtime.grammar.compiler import ENCODED_CHARS, MAX_GRAMMAR_CHARS, GrammarCompiler

BOUND_S = 2.0
"""Of CPU time, so that a busy machine changes little; half a second is what the costliest takes."""


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "frob"}, "Invalid type: frob"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"type": "string", "pattern": "(["}, "unclosed"),
        ({"type": "string", "format": "zorp"}, "zorp"),
        ({"allOf": [{"type": "string"}, {"type": "number"}]}, "Unsatisfiable"),
        ({"type": "integer", "multipleOf": 999_983, "minimum": 1, "maximum": 10**15}, "fuel"),
        ({"enum": ["x" * 100 + str(i) for i in range(3000)]}, "too large"),
    ],
)
def test_schemas_that_are_refused(compiler: GrammarCompiler, schema: Any, words: str) -> None:
    with pytest.raises(GrammarError, match=words):
        compiler.compile(sources.combine(sources.of_json_schema(schema, strict=True)))


def test_unless_strict_only_what_means_nothing_is_ignored(compiler: GrammarCompiler) -> None:
    compiler.compile(sources.combine(sources.of_json_schema({"type": "array", "uniqueItems": True}, strict=False)))
    with pytest.raises(GrammarError):
        compiler.compile(sources.combine(sources.of_json_schema({"type": "frob"}, strict=False)))


@pytest.mark.parametrize("number", [-(2**63), 2**64, -1e300, {"a": [2**63]}])
def test_numbers_beyond_what_json_holds_are_refused(number: Any) -> None:
    """Symptom: {"const": -9223372036854775808} ended the process. Cause: endless recursion inside llguidance."""
    with pytest.raises(GrammarError, match="2\\^53"):
        sources.of_json_schema({"const": number}, strict=True)


def test_a_grammar_cannot_smuggle_a_schema_in() -> None:
    with pytest.raises(GrammarError, match="%json"):
        sources.of_grammar('start: %json {"const": -9223372036854775808}')


@pytest.mark.parametrize(
    "part",
    [
        sources.of_json_schema(
            {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1800)}}, strict=True
        ),
        sources.of_json_schema({"type": "string", "maxLength": 10**7}, strict=True),
        sources.of_json_schema({"type": "array", "minItems": 10**6}, strict=True),
        sources.of_regex("((a{1,1000}){1,1000}){1,1000}"),
        sources.of_regex("(.*a){500}.*"),
        sources.of_choices([f"choice {i}" for i in range(3000)]),
        {"lark_grammar": 'start: a+\na: b b | b\nb: "x" | "xx" | a'},
    ],
    ids=["wide", "long", "many", "powers", "stars", "choices", "ambiguous"],
)
def test_any_grammar_of_the_size_allowed_takes_bounded_time(compiler: GrammarCompiler, part: sources.Part) -> None:
    grammar = sources.combine(part)
    assert len(grammar) <= MAX_GRAMMAR_CHARS
    began = time.thread_time()
    with suppress(GrammarError):
        compiler.compile(grammar)
    assert time.thread_time() - began < BOUND_S


@pytest.mark.parametrize(
    "part",
    [
        sources.of_choices(["house " * 200, "boat " * 200]),
        sources.of_json_schema({"const": "house " * 200}, strict=True),
    ],
    ids=["choice", "const"],
)
def test_a_long_text_without_a_choice_is_not_encoded_whole_for_each_token(part: sources.Part) -> None:
    """Symptom: TPOT with a choice of texts of 400 words was 1.25 of that without. Cause: llguidance asks the tokenizer,
    one sequence after another, how all that must follow is written, to tell the next token of it."""
    encoded: list[int] = []

    def encode(text: str) -> list[int]:
        encoded.append(len(text))
        return list(text.encode())

    tokens = [bytes([byte]) for byte in range(256)] + [b"<end>"]
    compiler = GrammarCompiler(tokens, special_token_ids=[256], eos_token_ids=[256], encode=encode)
    matcher = compiler.compile(sources.combine(part))
    text = ("house " * 200).encode()
    for byte in text if "lark_grammar" in part else b'"' + text + b'"':
        matcher.compute_bitmask()
        assert matcher.consume_token(byte)
    assert matcher.is_accepting()
    assert len(encoded) > 1_000
    assert max(encoded) < 2 * ENCODED_CHARS
