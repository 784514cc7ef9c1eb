"""Patterns as JSON schema has them, which is ECMA-262's way, in the syntax of Rust, which llguidance reads.

Where one reads what the other does not, or both read different things, a pattern is not translated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

MOST_COMPARED = 32
"""Patterns of properties: each is compared with each."""

_ESCAPE = (
    r"\\(?:c[A-Za-z]|x[0-9a-fA-F]{2}|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}"
    r"|u\{[0-9a-fA-F]+\}|[pP]\{[^{}]*\}|0(?![0-9])|[^0])"
)
_TOKEN = re.compile(
    rf"(?P<escape>{_ESCAPE})"
    r"|(?P<look>\(\?<?[=!])"
    r"|(?P<open>\((?:\?:|\?P?<[A-Za-z_][A-Za-z0-9_]*>|(?!\?)))"
    r"|(?P<count>(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\})\??)"
    r"|(?P<class>\[(?:\\.|[^\]\\])*\])"
    r"|(?P<char>.)",
    re.DOTALL,
)
_MEMBER = re.compile(rf"{_ESCAPE}|.", re.DOTALL)
_SPECIAL = frozenset(r"\.+*?()|[]{}^$#&-~")
_BLANKS = r"\t\n\x0b\x0c\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORDS = {
    "v": r"\x0b", "0": r"\x00", "s": f"[{_BLANKS}]", "S": rf"[^{_BLANKS}\x1c-\x1f\x85\ufeff]",
    **{letter: f"\\{letter}" for letter in "dDwWnrtf"},
}  # fmt: skip
"""Of blanks those that all agree on: `\\s` of ECMA, Python and Rust differ in some."""
_SETS = frozenset("dDwWsSpP")
_LOOKS = "that looks around or back"


class UnreadablePatternError(ValueError):
    """Says what a pattern has, after "a 'pattern'"."""


@lru_cache(1024)
def to_rust(pattern: str) -> str:
    """Raises `UnreadablePatternError`."""
    text = "".join(_translated(pattern))
    if problem := _problem({"type": "string", "pattern": text}):
        raise UnreadablePatternError(problem)
    return text


def disjoint(patterns: Sequence[str]) -> bool:
    """Whether no property can match two of these, which `to_rust` has made; of many only whether all differ."""
    schema = {"type": "object", "patternProperties": dict.fromkeys(patterns, True)}
    return len(set(patterns)) == len(patterns) and (len(patterns) > MOST_COMPARED or not _problem(schema))


def _problem(schema: dict[str, Any]) -> str | None:
    """Why llguidance cannot enforce it."""
    error: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    if "lookarounds" in error:
        return "with '^' or '$' in its middle"
    return f"that is not understood ({error.rpartition('error: ')[2].split(' in regex ')[0][:200]})" if error else None


def _translated(pattern: str) -> Iterator[str]:
    repeatable = False
    """Whether a quantifier may come."""
    for token in _TOKEN.finditer(pattern):
        text, was_repeatable, repeatable = token[0], repeatable, True
        match token.lastgroup:
            case "escape":
                yield _escape(text, in_class=False)
            case "look":
                raise UnreadablePatternError(_LOOKS)
            case "open":
                repeatable = False
                yield "(?:"
            case "count":
                if not was_repeatable:
                    raise UnreadablePatternError(f"with {text!r} after nothing that it could repeat")
                repeatable = False
                yield text if len(text) == 1 else text.removesuffix("?")
            case "class":
                yield _class(text[1:-1])
            case _ if text in ("\\", "(", "["):
                raise UnreadablePatternError(f"with an unclosed or unknown {pattern[token.start() :][:8]!r}")
            case _ if text == "{" and pattern.startswith("{,", token.start()):
                raise UnreadablePatternError("with '{,', which is not read alike everywhere,")
            case _ if text == ".":
                yield r"[^\n\r\u2028\u2029]"
            case _:
                repeatable = text not in "^$|"
                yield f"\\{text}" if text in "{}]" else text


def _class(inner: str) -> str:
    negation, members = ("^", inner[1:]) if inner.startswith("^") else ("", inner)
    tokens = _MEMBER.findall(members)
    if not tokens:
        raise UnreadablePatternError("with an empty class")
    made: list[str] = []
    at = 0
    while at < len(tokens):
        first = _member(tokens[at])
        if at + 2 < len(tokens) and tokens[at + 1] == "-":
            if any(token[0] == "\\" and token[1] in _SETS for token in (tokens[at], tokens[at + 2])):
                raise UnreadablePatternError(f"with a range of classes {''.join(tokens[at : at + 3])!r}")
            made.append(f"{first}-{_member(tokens[at + 2])}")
            at += 3
        else:
            made.append(first)
            at += 1
    return f"[{negation}{''.join(made)}]"


def _member(token: str) -> str:
    if token.startswith("\\"):
        return _escape(token, in_class=True)
    return f"\\{token}" if token in _SPECIAL else token


def _escape(text: str, *, in_class: bool) -> str:
    letter = text[1:2]
    if letter == "b" and in_class:
        return r"\x08"
    if letter in "bBk" or letter in "123456789":
        raise UnreadablePatternError(_LOOKS)
    if letter == "c" and len(text) == 3:
        return f"\\x{ord(text[2]) & 31:02x}"
    if len(text) == 12:
        return text.encode().decode("unicode_escape").encode("utf-16", "surrogatepass").decode("utf-16")
    if letter in "xupP" and len(text) > 2:
        return text
    if letter in _WORDS:
        return _WORDS[letter]
    if letter.isascii() and letter.isalnum():
        raise UnreadablePatternError(f"with {text!r}, which is not read alike everywhere,")
    return f"\\{letter}" if letter in _SPECIAL else letter
