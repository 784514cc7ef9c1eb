"""Whether two schemas surely have no value in common, so that the alternatives of a `oneOf` exclude one another."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

_INTO_ITSELF = re.compile("#(/|$)")
"""References that are followed."""
_MOST_STEPS = 10_000
_MOST_DEPTH = 64
_MOST_NESTED = 3
"""Required properties in required properties, where many schemas are compared at once."""


class _Facts(NamedTuple):
    """What tells a schema from others."""

    types: set[str] | None
    values: frozenset[Hashable] | None
    """As `_frozen`; None: not a list of values."""
    required: set[str]
    """Properties, of those that it describes."""


class Distinction:
    def __init__(self, root: Any) -> None:
        """`root`: the schema that references lead into."""
        self._root = root
        self._steps = 0
        self._asked: set[tuple[int, int]] = set()
        """Pairs of schemas, by their ids, that are being compared: schemas may refer to themselves."""
        self._facts: dict[int, _Facts] = {}
        """By a schema's id: each is compared with many."""

    @property
    def is_spent(self) -> bool:
        """Whether so much has been compared that the rest is not."""
        return self._steps > _MOST_STEPS

    def all_apart(self, options: list[Any], depth: int = 0) -> bool:
        """Whether surely no value satisfies two of them, by what tells any number of them apart at once: their types,
        their values, or those of a required property."""
        resolved = [self._resolved(option) for option in options]
        if depth > _MOST_NESTED or not all(isinstance(option, Mapping) for option in resolved):
            return False
        groups: dict[frozenset[str], list[Any]] = {}
        for option in resolved:
            types = self._facts_of(option).types
            groups.setdefault(frozenset(types or ()), []).append(option)
        if frozenset() in groups or sum(map(len, groups)) > len(frozenset().union(*groups)):
            return False
        return all(len(group) == 1 or self._values_differ(types, group, depth) for types, group in groups.items())

    def _values_differ(self, types: frozenset[str], options: list[Any], depth: int) -> bool:
        facts = [self._facts_of(option) for option in options]
        values = [one.values for one in facts if one.values is not None]
        if len(values) == len(facts):
            return sum(map(len, values)) == len(frozenset().union(*values))
        names = set.intersection(*[one.required for one in facts]) if types == {"object"} else set()
        return any(self.all_apart([option["properties"][name] for option in options], depth + 1) for name in names)

    def apart(self, one: Any, other: Any) -> bool:
        """Whether surely no value satisfies both."""
        self._steps += 1
        one, other = self._resolved(one), self._resolved(other)
        pair = (id(one), id(other))
        if pair in self._asked or len(self._asked) >= _MOST_DEPTH or self.is_spent:
            return False
        self._asked.add(pair)
        try:
            return self._differ(one, other)
        finally:
            self._asked.remove(pair)

    def _differ(self, one: Any, other: Any) -> bool:
        """As `apart`, of schemas that are no references."""
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            return one is False or other is False
        for a, b in ((one, other), (other, one)):
            if isinstance(branches := a.get("anyOf", a.get("oneOf")), list) and all(
                self.apart(branch, b) for branch in branches
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
            self.apart(one["properties"][name], other["properties"][name])
            for name in sorted(mine.required & theirs.required)
        )

    def _facts_of(self, schema: Mapping[str, Any]) -> _Facts:
        if (facts := self._facts.get(id(schema))) is None:
            values = _values(schema)
            frozen = None if values is None else frozenset(map(_frozen, values))
            facts = self._facts[id(schema)] = _Facts(types_of(schema), frozen, _required_properties(schema))
        return facts

    def _resolved(self, schema: Any) -> Any:
        """What it refers to, if it does, which allows all that it allows itself; True where the end is not found."""
        seen = 0
        while isinstance(schema, Mapping) and isinstance(ref := schema.get("$ref"), str) and _INTO_ITSELF.match(ref):
            seen += 1
            if seen > 20:
                return True
            schema = self._root
            for part in ref.split("/")[1:]:
                name = part.replace("~1", "/").replace("~0", "~")
                schema = schema.get(name, True) if isinstance(schema, Mapping) else True
        return schema


def types_of(schema: Mapping[str, Any]) -> set[str] | None:
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
