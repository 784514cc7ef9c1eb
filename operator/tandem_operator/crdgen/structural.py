"""From pydantic's JSON schema to a structural schema (kubernetes.io/docs, "Specifying a structural schema")."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
_DROPPED = ("title", "$defs")


def structural(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, schema.get("$defs", {}))


def _convert(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Inlines references, drops null alternatives and defaults that say nothing, writes `const` as `enum`."""
    schema = _resolve(schema, definitions)
    if "anyOf" in schema and "x-kubernetes-int-or-string" not in schema:
        (only,) = (option for option in schema["anyOf"] if option.get("type") != "null")
        outer = {key: value for key, value in schema.items() if key != "anyOf"}
        schema = _resolve(only, definitions) | outer
    converted = {key: value for key, value in schema.items() if key not in _DROPPED}
    if "const" in converted:
        converted["enum"] = [converted.pop("const")]
    if "default" in converted and (converted["default"] is None or _says_nothing(converted)):
        del converted["default"]
    if "properties" in converted:
        converted["properties"] = {k: _convert(v, definitions) for k, v in converted["properties"].items()}
        if converted.get("default") == {}:
            # The API server checks rules against a default as it is written, with nothing filled in.
            converted["default"] = {k: v["default"] for k, v in converted["properties"].items() if "default" in v}
    for key in ("items", "additionalProperties"):
        if isinstance(converted.get(key), dict):
            converted[key] = _convert(converted[key], definitions)
    if converted.get("x-kubernetes-preserve-unknown-fields"):
        converted.pop("additionalProperties", None)
    return converted


def _says_nothing(schema: Schema) -> bool:
    """An empty list or map. The {} of a section is kept, since its fields have defaults of their own."""
    return schema["default"] == [] or (schema["default"] == {} and "properties" not in schema)


def _resolve(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    if "$ref" not in schema:
        return schema
    target = definitions[schema["$ref"].rpartition("/")[2]]
    # The field's own words say more than its type's docstring.
    return target | {key: value for key, value in schema.items() if key != "$ref"}
