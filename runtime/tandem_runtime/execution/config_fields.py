"""Fields of a `config.json`, each read as what it must be. Raises `StartupError` naming the field; KeyError where a
field that has no default is absent."""

from __future__ import annotations

import math
from typing import Any

from tandem_runtime.core.errors import StartupError

Fields = dict[str, Any]


def count(raw: Fields, name: str, default: int | None = None) -> int:
    """At least 1. null is absence where there is a default."""
    value = raw[name] if default is None else _given(raw, name, default)
    if not _is_whole(value) or value < 1:
        raise _wrong(name, "a whole number of at least 1", value)
    return int(value)


def positive(raw: Fields, name: str) -> float:
    value = raw[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise _wrong(name, "a number above 0", value)
    return float(value)


def flag(raw: Fields, name: str) -> bool:
    """False where it is absent or null."""
    value = _given(raw, name, False)
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def mapping(raw: Fields, name: str) -> Fields:
    """Empty where it is absent or null."""
    value = _given(raw, name, {})
    if not isinstance(value, dict):
        raise _wrong(name, "an object", value)
    return value


def strings(raw: Fields, name: str) -> list[str]:
    """Empty where it is absent or null."""
    value = _given(raw, name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _wrong(name, "a list of names", value)
    return value


def whole_numbers(raw: Fields, name: str, *, file: str = "config.json") -> list[int]:
    """One or a list of them; empty where it is absent or null."""
    value = _given(raw, name, [])
    listed = value if isinstance(value, list) else [value]
    if not all(_is_whole(each) for each in listed):
        raise _wrong(name, "a whole number or a list of them", value, file=file)
    return listed


def _given(raw: Fields, name: str, default: Any) -> Any:
    value = raw.get(name)
    return default if value is None else value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(name: str, wanted: str, value: Any, *, file: str = "config.json") -> StartupError:
    return StartupError(f"{file}: {name} must be {wanted}, not {value!r}")
