"""Grammars in llguidance's form: of JSON schemas, regular expressions, choices, and combinations of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar.compiler import MAX_SOURCE_CHARS
from tandem_runtime.grammar.control_characters import has_control_characters
from tandem_runtime.grammar.json_schema import enforceable

_WHITESPACE = r" ?|\r?\n[ \t]{0,64}"
"""Between JSON tokens: enough for any common layout, but a model cannot lose itself in blanks."""

_ESCAPES = 'bfnrt\\"'
"""One way to write each character: "\\u0061" would be a property of its own to the grammar, and "a" to its reader."""
_CONTROL_ESCAPES = _ESCAPES + "u"
"""Where a schema has control characters: without it llguidance leaves them out."""

_ASCII_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\f\v"}
"""What a pattern's classes mean to those who write it; to Rust "\\d" is any of 700 digits of all scripts."""
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

_LARGEST = 2**53
"""Larger numbers are not exact in JSON (RFC 7493); -2^63 makes llguidance recurse until the stack ends."""

Part = dict[str, Any]
"""One of llguidance's grammars, without its name."""


def check_size(source: Any) -> None:
    """`source`: text or JSON of a client; megabytes would take seconds to convert. Raises `GrammarError`."""
    text = source if isinstance(source, str) else _quoted(source)
    if len(text) > MAX_SOURCE_CHARS:
        raise GrammarError(f"has {len(text)} characters; at most {MAX_SOURCE_CHARS} are allowed")


def of_json_schema(schema: Mapping[str, Any] | bool, *, strict: bool, foreign_formats: bool = False) -> Part:
    """`strict`: exactly; else keywords that cannot be enforced are ignored, and `oneOf` is taken as `anyOf`.

    Raises `GrammarError` for strict schemas that cannot be enforced, with `foreign_formats` or without (see
    `enforceable`), and for numbers beyond 2^53.
    """
    kept = enforceable(schema, strict=strict, foreign_formats=foreign_formats)
    _check_numbers(kept)
    options = {
        "whitespace_pattern": _WHITESPACE,
        "json_allowed_escapes": _CONTROL_ESCAPES if has_control_characters(kept) else _ESCAPES,
        "coerce_one_of": not strict,
        "lenient": not strict,
    }
    as_object = dict(kept) if isinstance(kept, Mapping) else {} if kept else {"not": {}}
    return _part(LLMatcher.grammar_from_json_schema(as_object, overrides=options))  # type: ignore[arg-type]


def of_json_object() -> Part:
    return of_json_schema({"type": "object"}, strict=True)


def of_regex(pattern: str) -> Part:
    """The whole answer matches; `^` and `$` around it say the same and are dropped. Classes like `\\d` are ASCII's."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and not pattern.endswith("\\$"):
        pattern = pattern[:-1]
    return _part(LLMatcher.grammar_from_regex(_ESCAPED.sub(_in_ascii, pattern)))


def _in_ascii(escaped: re.Match[str]) -> str:
    letter = escaped[1]
    members = _ASCII_CLASSES.get(letter.lower())
    if members is None:
        return escaped[0]
    return f"[{'^' * letter.isupper()}{members}]"


def of_choices(choices: Sequence[str]) -> Part:
    # One terminal, which is a regular expression: a rule may have two thousand alternatives at most, and a trie of
    # short terminals takes twice as long to compile and as long for a mask.
    return {"lark_grammar": "start: CHOICE\nCHOICE: " + " | ".join(map(_quoted, choices))}


def of_grammar(text: str) -> Part:
    """Lark in llguidance's dialect, without its `%json`, or GBNF (`root ::= ...`). Raises `GrammarError`."""
    if "%json" in text:
        raise GrammarError("a grammar must not contain %json; ask for a JSON schema instead")
    try:
        return {"lark_grammar": any_to_lark(text)}
    except Exception as error:  # whatever the converter's parser raises
        raise GrammarError(f"neither Lark nor GBNF: {error}") from error


def of_tool_calls(arguments: Mapping[str, Part], *, text_between: bool, most_one: bool) -> Part:
    """Calls in the hermes format of functions by name; `arguments`: from `of_json_schema`.

    `text_between`: any text may come before, between and after calls, none included.
    """
    rules = [f"args_{i}: %json {_quoted(part['json_schema'])}" for i, part in enumerate(arguments.values())]
    names = [_quoted(f'{{"name": {_quoted(name)}, "arguments": ') for name in arguments]
    functions = " | ".join(f"{name} args_{i}" for i, name in enumerate(names))
    rules += [
        f"function: {functions}",
        r'body: "\n" function "}\n</tool_call>"',
    ]
    if text_between:
        rules += [
            f"start: (before body){'?' if most_one else '*'} after",
            # The text before a call ends with its tag; the text after the last has none.
            r'before[lazy]: /(.|\n)*/ "<tool_call>"',
            "after: AFTER",
            r"AFTER: /(.|\n)*/ & ~/(.|\n)*<tool_call>(.|\n)*/",
        ]
    else:
        rules += [
            "start: call" if most_one else r'start: call ("\n" call)*',
            'call: "<tool_call>" body',
        ]
    return {"lark_grammar": "\n".join(rules)}


def combine(*alternatives: Part) -> str:
    """The text of a grammar: any one of `alternatives`."""
    if len(alternatives) == 1:
        return _quoted({"grammars": [*alternatives]})
    names = [f"part_{index}" for index in range(len(alternatives))]
    start = {"lark_grammar": "start: " + " | ".join(f"@{name}" for name in names)}
    parts = [part | {"name": name} for name, part in zip(names, alternatives, strict=True)]
    return _quoted({"grammars": [start, *parts]})


def _quoted(value: Any) -> str:
    """As JSON whose length is what the client wrote: escapes count six for each Chinese character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which Lark has in no string


def _check_numbers(value: Any) -> None:
    if isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST:
        raise GrammarError(f"the schema contains {value}; numbers must be between -2^53 and 2^53")
    for child in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _check_numbers(child)


def _part(grammar: str) -> Part:
    [part] = json.loads(grammar)["grammars"]
    return {key: value for key, value in part.items() if value is not None}
