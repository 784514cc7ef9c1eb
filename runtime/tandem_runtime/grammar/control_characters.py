"""Characters that JSON can only write as `\\u00..`, in the texts and patterns of a schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_CHARACTER = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_WORD = r"\\(?:x[017][0-9a-fA-F]|u00[017][0-9a-fA-F]|[xu]\{[0-9a-fA-F]+\}|[acev0])"
"""A pattern's words for them; that some mean others, such as \\x0a, costs nothing."""
_WORDS = re.compile(_WORD)
_CLASS = re.compile(rf"\[(?!(?:{_WORD}|-)+\])(?:[^\[\]\\]|\\.)+\]", re.DOTALL)
"""Of other characters too: those are left of it without `\\u`, as of [^\\x00-\\x1f]."""


def has_control_characters(schema: Any) -> bool:
    """Whether there is a text in it, or a pattern, that must be written with `\\u`."""
    if isinstance(schema, str):
        return _CHARACTER.search(schema) is not None or _WORDS.search(_CLASS.sub("", schema)) is not None
    if isinstance(schema, Mapping):
        return any(map(has_control_characters, (*schema.keys(), *schema.values())))
    return isinstance(schema, list) and any(map(has_control_characters, schema))
