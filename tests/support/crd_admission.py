"""What an API server does with a custom resource before storing it: defaults, schema, unknown fields, CEL rules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import cel
import jsonschema  # type: ignore[import-untyped]

Schema = dict[str, Any]


def admit(body: Any, schema: Schema) -> tuple[dict[str, Any], list[str]]:
    """The object with defaults filled in, and everything that speaks against it (`fieldValidation=Strict`)."""
    filled = copy.deepcopy(body)
    _default(filled, schema)
    problems = [_described(error) for error in jsonschema.Draft202012Validator(schema).iter_errors(filled)]
    problems += [f'unknown field "{path}"' for path in _unknown(filled, schema, "")]
    # As the API server: rules see only objects of the right shape.
    return filled, problems or list(broken_rules(filled, schema, ""))


def _default(value: Any, schema: Schema) -> None:
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                _default(value[name], child)
    elif isinstance(value, list):
        for item in value:
            _default(item, schema.get("items", {}))


def _unknown(value: Any, schema: Schema, path: str) -> Iterator[str]:
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    for name, child, inner in _children(value, schema):
        where = f"{path}.{name}" if path else name
        if inner is None:
            yield where
        else:
            yield from _unknown(child, inner, where)


def broken_rules(value: Any, schema: Schema, path: str) -> Iterator[str]:
    """Raises where a rule reads a field that is not there."""
    for rule in schema.get("x-kubernetes-validations", []):
        if not _compiled(rule["rule"]).execute({"self": value}):
            yield f"{path}: {rule['message']}"
    for name, child, inner in _children(value, schema):
        yield from broken_rules(child, inner or {}, f"{path}.{name}")


def _children(value: Any, schema: Schema) -> Iterator[tuple[str, Any, Schema | None]]:
    """Name, value and schema (None: unknown field) of each child."""
    if isinstance(value, dict):
        extra = schema.get("additionalProperties")
        for name, child in value.items():
            if name in ("metadata", "apiVersion", "kind") and "spec" in schema.get("properties", {}):
                continue
            yield name, child, schema.get("properties", {}).get(name, extra)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield str(index), item, schema.get("items", {})


def _described(error: jsonschema.ValidationError) -> str:
    path = _dotted(error.absolute_path)
    if error.validator == "required":
        path += "." + error.message.split("'")[1]
    return f"{path}: {error.message}"


def _dotted(path: Any) -> str:
    return ".".join(map(str, path)) or "<root>"


@cache
def _compiled(rule: str) -> cel.Program:
    return cel.compile(rule)
