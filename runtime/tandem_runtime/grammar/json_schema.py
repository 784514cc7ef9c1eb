"""Which JSON schemas can be kept to the letter, and what becomes of the others.

The keywords are those of the drafts 4 to 2020-12. Strict schemas are exact: whatever an answer may be, it validates.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

from tandem_runtime.core.errors import GrammarError

Schema = Mapping[str, Any] | bool
Below = Literal["schema", "schemas", "named", "none"]
"""What a keyword's value is: a schema, a list of them, schemas by name, or neither."""

ENFORCED: dict[str, Below] = {
    "$ref": "none", "$defs": "named", "definitions": "named",
    "type": "none", "const": "none", "enum": "none", "anyOf": "schemas", "allOf": "schemas", "oneOf": "schemas",
    "properties": "named", "patternProperties": "named", "additionalProperties": "schema", "required": "none",
    "minProperties": "none", "maxProperties": "none",
    "items": "schema", "prefixItems": "schemas", "additionalItems": "schema", "minItems": "none", "maxItems": "none",
    "minLength": "none", "maxLength": "none", "pattern": "none", "format": "none",
    "minimum": "none", "maximum": "none", "exclusiveMinimum": "none", "exclusiveMaximum": "none", "multipleOf": "none",
}  # fmt: skip
"""`oneOf`, `minProperties` and `format` only as `_Reader` says."""

REFUSED: dict[str, str] = {
    "not": "say what is allowed instead",
    "if": "use anyOf", "then": "use anyOf", "else": "use anyOf",
    "dependentRequired": "use anyOf", "dependentSchemas": "use anyOf", "dependencies": "use anyOf",
    "propertyNames": "use patternProperties with additionalProperties false",
    "unevaluatedProperties": "use additionalProperties", "unevaluatedItems": "use items",
    "uniqueItems": "check the answer", "contains": "use prefixItems, or check the answer",
    "minContains": "check the answer", "maxContains": "check the answer",
    "$dynamicRef": "use $ref", "$recursiveRef": "use $ref",
}  # fmt: skip
"""With what to do instead. Unless the schema is strict, these are ignored."""

FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"])
"""29 February is a date in every year, 23:59:60 a time on every day."""

_HARMLESS: dict[str, Sequence[Any]] = {
    "uniqueItems": [False], "unevaluatedProperties": [True, {}], "unevaluatedItems": [True, {}], "minContains": [0],
}  # fmt: skip
"""Values that allow everything."""
_DIALECTS = (
    *(f"http://json-schema.org/draft-0{number}/schema" for number in (4, 6, 7)),
    "https://json-schema.org/draft/2019-09/schema",
)
"""Others are taken for the newest."""
_MOST_STEPS = 10_000
_MOST_DEPTH = 64
"""In search of why no two alternatives of a `oneOf` have a value in common."""


def enforceable(schema: Schema, *, strict: bool) -> Schema:
    """`schema` without what cannot be enforced; `strict`: raises `GrammarError` for that, with its place."""
    kept: Schema = _Reader(schema, strict).read(schema, "#")
    return kept


class _Facts(NamedTuple):
    """What tells a schema from others."""

    types: set[str] | None
    values: frozenset[Hashable] | None
    """As `_frozen`; None: not a list of values."""
    required: set[str]
    """Properties, of those that it describes."""


class _Reader:
    def __init__(self, root: Schema, strict: bool) -> None:
        self._root = root
        self._strict = strict
        self._steps = 0
        self._asked: set[tuple[int, int]] = set()
        """Pairs of schemas, by their ids, that are being compared: schemas may refer to themselves."""
        self._facts: dict[int, _Facts] = {}
        """By a schema's id: each is compared with many."""

    def read(self, schema: Any, path: str) -> Any:
        if not isinstance(schema, Mapping):
            return schema  # a boolean; what else it may be, the compiler refuses
        made: dict[str, Any] = {}
        for key, value in schema.items():
            if key in REFUSED:
                if self._strict and value not in _HARMLESS.get(key, ()):
                    raise _refusal(f"'{key}'", path, REFUSED[key])
            elif self._is_kept(key, schema, path):
                made[key] = self._below(ENFORCED.get(key, "none"), value, f"{path}/{key}")
        if self._strict and isinstance(schema.get("oneOf"), list):
            self._check_one_of(schema["oneOf"], path)
            others = made["allOf"] if isinstance(made.get("allOf"), list) else []
            made["allOf"] = [*others, {"anyOf": made.pop("oneOf")}]
        return made

    def _below(self, kind: Below, value: Any, path: str) -> Any:
        if kind in ("schema", "schemas") and isinstance(value, list):  # `items` may be a list in older drafts
            return [self.read(child, f"{path}/{index}") for index, child in enumerate(value)]
        if kind == "schema":
            return self.read(value, path)
        if kind == "named" and isinstance(value, Mapping):
            return {name: self.read(child, f"{path}/{_escaped(name)}") for name, child in value.items()}
        return value

    def _is_kept(self, key: str, schema: Mapping[str, Any], path: str) -> bool:
        """Raises `GrammarError` where a keyword can be enforced only sometimes, and not here."""
        match key:
            case "x-guidance" | "$dynamicAnchor" | "$recursiveAnchor":
                return False  # llguidance would take the first for options, and the others for what cannot be ignored
            case "$schema":
                return isinstance(schema[key], str) and schema[key].rstrip("#") in _DIALECTS
            case "format":
                types = _types(schema)
                known = (isinstance(schema[key], str) and schema[key] in FORMATS) or (
                    types is not None and "string" not in types
                )
                if self._strict and not known:
                    raise _refusal(
                        f"the format {schema[key]!r}", path, f"use a pattern, or one of {', '.join(sorted(FORMATS))}"
                    )
                return known
            case "minProperties":
                if self._strict and not _counts_surely(schema):
                    raise _refusal("'minProperties'", path, "name the properties, with additionalProperties false")
        return True

    def _check_one_of(self, options: list[Any], path: str) -> None:
        for (i, one), (j, other) in combinations(enumerate(options), 2):
            if not self._apart(one, other):
                raise _refusal(
                    f"'oneOf', whose alternatives {i} and {j} may both hold,",
                    path,
                    "use anyOf, or give them different types or a required property with a different const each",
                )

    def _apart(self, one: Any, other: Any) -> bool:
        """Whether surely no value satisfies both."""
        self._steps += 1
        one, other = self._resolved(one), self._resolved(other)
        pair = (id(one), id(other))
        if pair in self._asked or len(self._asked) >= _MOST_DEPTH or self._steps > _MOST_STEPS:
            return False
        self._asked.add(pair)
        try:
            return self._differ(one, other)
        finally:
            self._asked.remove(pair)

    def _differ(self, one: Any, other: Any) -> bool:
        """As `_apart`, of schemas that are no mere references."""
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            return one is False or other is False
        for a, b in ((one, other), (other, one)):
            if isinstance(branches := a.get("anyOf", a.get("oneOf")), list) and all(
                self._apart(branch, b) for branch in branches
            ):
                return True
        mine, theirs = self._facts_of(one), self._facts_of(other)
        if mine.types is not None and theirs.types is not None and not mine.types & theirs.types:
            return True
        if mine.values is not None and theirs.values is not None:
            return mine.values.isdisjoint(theirs.values)
        if mine.types != {"object"} or theirs.types != {"object"}:
            return False
        return any(
            self._apart(one["properties"][name], other["properties"][name])
            for name in sorted(mine.required & theirs.required)
        )

    def _facts_of(self, schema: Mapping[str, Any]) -> _Facts:
        if (facts := self._facts.get(id(schema))) is None:
            values = _values(schema)
            frozen = None if values is None else frozenset(map(_frozen, values))
            facts = self._facts[id(schema)] = _Facts(_types(schema), frozen, _required_properties(schema))
        return facts

    def _resolved(self, schema: Any) -> Any:
        """Where it is nothing but a reference into the schema, what it refers to; True where that is not told."""
        seen = 0
        while isinstance(schema, Mapping) and isinstance(ref := schema.get("$ref"), str) and ref.startswith("#/"):
            seen += 1
            if seen > 20 or any(key in ENFORCED for key in schema if key != "$ref"):
                return True
            schema = self._root
            for part in ref[2:].split("/"):
                name = part.replace("~1", "/").replace("~0", "~")
                schema = schema.get(name, True) if isinstance(schema, Mapping) else True
        return schema


def _types(schema: Mapping[str, Any]) -> set[str] | None:
    """None: any. An integer is a number."""
    named = schema.get("type")
    if named is None:
        values = _values(schema)
        return None if values is None else {_type_of(value) for value in values}
    listed = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return {"number" if name == "integer" else name for name in listed if isinstance(name, str)}


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    """None: not a list of values."""
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def _frozen(value: Any) -> Hashable:
    """Equal for equal JSON, where 1 is 1.0 but not true."""
    if isinstance(value, Mapping):
        return "object", frozenset((name, _frozen(child)) for name, child in value.items())
    if isinstance(value, list):
        return "array", tuple(map(_frozen, value))
    return _type_of(value), value


def _required_properties(schema: Mapping[str, Any]) -> set[str]:
    required, properties = schema.get("required"), schema.get("properties")
    if not isinstance(required, list) or not isinstance(properties, Mapping):
        return set()
    return {name for name in required if isinstance(name, str) and name in properties}


def _counts_surely(schema: Mapping[str, Any]) -> bool:
    """Else the same property, written twice, would count as two."""
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    required, least = schema.get("required"), schema["minProperties"]
    return closed or (isinstance(required, list) and isinstance(least, int) and least <= len(set(map(str, required))))


def _refusal(what: str, path: str, remedy: str) -> GrammarError:
    return GrammarError(
        f"{what} at {path} cannot be enforced: {remedy}, or ask without 'strict', which does not insist on it"
    )


def _escaped(name: str) -> str:
    """As JSON pointers have it (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
