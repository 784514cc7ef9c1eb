"""Patterns mean what they mean to those who validate an answer, or are refused."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from support.slow_grammars import ByteCompiler
from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar import sources
from tandem_runtime.grammar.patterns import UnreadablePatternError, disjoint, to_rust

COMPILER = ByteCompiler()


def accepts(schema: dict[str, Any], text: str, *, strict: bool = True) -> bool:
    matcher = COMPILER.compile(sources.combine(sources.of_json_schema(schema, strict=strict)))
    told = list(text.encode())
    return matcher.try_consume_tokens(told) == len(told) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (r"^\<a\>$", ["<a>"], ["a"]),
        ("^[[:alpha:]]$", [":]", "a]", "[]"], ["b"]),
        ("^[a&&b]$", ["a", "&"], ["c"]),
        ("^[!-~~]$", ["~", "!"], ["\u00e9"]),
        ("^[+--]$", ["+", ",", "-"], ["a"]),
        ("^[a-]$", ["a", "-"], ["b"]),
        ("^[\\]\\[]$", ["[", "]"], ["\\\\"]),
        ("^.$", ["a", "\u00e9"], ["\\n", "\\r", "\u2028"]),
        (r"^\cA?$", ["\\u0001", ""], ["a"]),
        (r"^[\b]$", ["\\b"], ["b"]),
        (r"^\s$", [" ", "\\t", "\u00a0"], ["a", "\u200b"]),
        (r"^[\S\d]$", ["a", "1"], [" "]),
        (r"^\x41\u0042\ud83d\ude00$", ["AB\U0001f600"], ["AB"]),
        (r"^\u{41}$", ["A"], ["u"]),
        (r"^(?<y>\d{2})(?P<m>\d)$", ["123"], ["12"]),
        (r"^\.\/\-\@\_$", ["./-@_"], ["a/-@_"]),
        ("a{b", ["a{b"], ["ab"]),
        ("^(a|^b)$", ["a", "b"], ["ab"]),
        ("^(?:a|b)+?c??$", ["aab", "abc"], ["c"]),
        ("^a|b$", ["ax", "xb"], ["xa"]),
        ("^\\p{Lu}$", ["A"], ["a"]),
        ("", ["", "a"], []),
    ],
)
def test_what_matches(pattern: str, matching: list[str], others: list[str]) -> None:
    """Symptom: "b" was an answer where the pattern was [[:alpha:]]. Cause: it was read as Rust's."""
    schema = {"type": "string", "pattern": pattern}
    for strict in (True, False):
        for text in matching:
            assert accepts(schema, f'"{text}"', strict=strict), text
        for text in others:
            assert not accepts(schema, f'"{text}"', strict=strict), text


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("^(a|b^)$", "with '^' or '$' in its middle"),
        ("a$b", "with '^' or '$' in its middle"),
        (r"^\a$", r"with '\\a', which is not read alike everywhere"),
        (r"\Aa\z", r"with '\\A'"),
        (r"^\x{61}$", r"with '\\x'"),
        ("(?x) a", "unknown '(?x) a'"),
        ("(?i)a", "unknown"),
        ("a{2}{3}", "with '{3}' after nothing"),
        ("*", "with '*' after nothing"),
        ("a{,3}", "with '{,'"),
        ("^[]$", "an empty class"),
        ("^[^]$", "an empty class"),
        (r"^[\d-z]$", "a range of classes"),
        ("^[b-a]$", "not understood (invalid character class range"),
        ("([", "unclosed"),
        ("a)", "not understood (unopened group"),
        ("\\", "unclosed"),
        (r"\p{Foo}", "not understood (Unicode property not found)"),
        (r"\01", "unclosed or unknown"),
    ],
)
def test_refused_when_strict_and_else_ignored(pattern: str, words: str) -> None:
    """Symptom: `strict: false` was the remedy that no error named, and it did not help."""
    nested = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    with pytest.raises(
        GrammarError, match=f"^a 'pattern' .*{re.escape(words)}.* at #/properties/a cannot be enforced: "
    ):
        sources.of_json_schema(nested, strict=True)
    assert accepts(nested, '{"a":"anything"}', strict=False)
    by_name = {"type": "object", "patternProperties": {pattern: {"type": "integer"}}, "additionalProperties": False}
    with pytest.raises(GrammarError, match=f"a pattern of 'patternProperties' .*{re.escape(words)}.* at # "):
        sources.of_json_schema(by_name, strict=True)
    assert accepts(by_name, '{"anything":"x"}', strict=False)


def test_patterns_of_one_property_are_refused_when_strict_and_else_ignored() -> None:
    schema = {"type": "object", "patternProperties": {"^a": {"type": "integer"}, "b$": {"type": "integer"}}}
    with pytest.raises(GrammarError, match="'patternProperties' that may match what another one matches at # "):
        sources.of_json_schema(schema, strict=True)
    assert accepts(schema, '{"ab":"x"}', strict=False)
    assert disjoint(["^a", "^b"])
    assert not disjoint(["^a", "b$"])
    assert not disjoint([to_rust("^/a"), to_rust("^\\/a")])


@pytest.mark.parametrize("pattern", ["[" * 30_000, "(" * 3_000, "\\x01" * 8_000, "(a{1,1000}){1,1000}", "[a-" * 9_000])
def test_no_pattern_is_a_crash(pattern: str) -> None:
    with suppress(UnreadablePatternError):
        to_rust(pattern)


def test_errors_quote_no_grammar_of_ours() -> None:
    part = sources.of_json_schema({"allOf": [{"type": "string"}, {"type": "number"}]}, strict=True)
    calls = sources.of_tool_calls({"f": part}, text_between=False, most_one=True)
    for grammar in (sources.combine(part), sources.combine(calls)):
        with pytest.raises(GrammarError) as error:
            COMPILER.compile(grammar)
        assert str(error.value).startswith("Unsatisfiable schema")
        assert not any(word in str(error.value) for word in ("args_0", "x-guidance", json.dumps("type")))
