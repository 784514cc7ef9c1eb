"""Which JSON schemas can be kept to the letter, and what becomes of the others.

The keywords are those of the drafts 4 to 2020-12. Strict schemas are exact: whatever an answer may be, it validates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal
from urllib.parse import unquote

from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar.bounds import with_exact_bounds
from tandem_runtime.grammar.control_characters import has_control_characters
from tandem_runtime.grammar.distinction import Distinction, types_of

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
"""`oneOf`, `minProperties`, `pattern` and `format` only as `_Reader` says."""

REFUSED: dict[str, str] = {
    "not": "say what is allowed instead",
    "if": "use anyOf", "then": "use anyOf", "else": "use anyOf",
    "dependentRequired": "use anyOf", "dependentSchemas": "use anyOf", "dependencies": "use anyOf",
    "propertyNames": "use patternProperties with additionalProperties false",
    "unevaluatedProperties": "use additionalProperties", "unevaluatedItems": "use items",
    "uniqueItems": "leave it out", "contains": "use prefixItems", "minContains": "leave it out",
    "maxContains": "leave it out",
    "$dynamicRef": "use $ref", "$recursiveRef": "use $ref",
}  # fmt: skip
"""With what to do instead. Unless the schema is strict, these are ignored."""

FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"])
"""29 February is a date in every year, 23:59:60 a time on every day."""
OTHER_FORMATS = frozenset([
    "idn-email", "idn-hostname", "iri", "iri-reference", "json-pointer", "regex", "relative-json-pointer",
    "uri-reference", "uri-template",
])  # fmt: skip
"""Of the standard too, but not enforced. Any other is foreign: it says nothing to who validates an answer."""

_HARMLESS: dict[str, Sequence[Any]] = {
    "uniqueItems": [False], "unevaluatedProperties": [True, {}], "unevaluatedItems": [True, {}], "minContains": [0],
    "propertyNames": [True, {}, {"type": "string"}],
}  # fmt: skip
"""Values that allow everything."""
_KEPT = frozenset(["$schema", "$id", "id", "$anchor", *ENFORCED])
"""All others say nothing about an answer; what a `$ref` finds below one of them is kept apart."""
_PARTS = re.compile(r"\\x\{|\\.|\[(?:\\.|[^\]\\])*\]?|\(\?<?.?", re.DOTALL)
_FOREIGN = re.compile(
    r"\(\?<?[=!]|\\[bB1-9k]"  # looks around, or back at what was matched
    r"|\(\?[a-zA-Z-]|\\[aAzZ<>cGQ]|\\x\{"  # means another thing to ECMA-262, or nothing
    r"|\[\^?(?:\]|(?:\\.|[^\]\\])*?(?:\[|&&|--|~~))",  # sets of nothing, and within sets
    re.DOTALL,
)
"""Of a pattern's parts, one that cannot be enforced, or that regular expressions of others read otherwise."""
_MOVED = "-moved-"
"""Begins names of definitions that a schema's author would hardly give."""
_DIALECTS = (
    *(f"http://json-schema.org/draft-0{number}/schema" for number in (4, 6, 7)),
    "https://json-schema.org/draft/2019-09/schema",
)
"""Others are taken for the newest."""


def enforceable(schema: Schema, *, strict: bool, foreign_formats: bool) -> Schema:
    """`schema` without what cannot be enforced; `strict`: raises `GrammarError` for that, with its place.

    `foreign_formats`: formats that the standard does not define are ignored all the same.
    """
    reader = _Reader(schema, strict, foreign_formats)
    kept = reader.read_all()
    if strict and reader.open_object is not None and has_control_characters(kept):
        # Where \\u is allowed, "\\u0061" is a property beside "a" to the grammar, and the same to its reader.
        raise _refusal(
            "an object with properties of any name, beside control characters elsewhere,",
            reader.open_object,
            "say additionalProperties false",
        )
    return kept


class _Reader:
    def __init__(self, root: Schema, strict: bool, foreign_formats: bool) -> None:
        self.open_object: str | None = None
        """Where the first one is that describes properties and allows others."""
        self._root = root
        self._strict = strict
        self._foreign_formats = foreign_formats
        self._distinction = Distinction(root)
        self._moved: dict[str, str] = {}
        """Names of what references find where no keyword that is kept leads to, by their pointers."""
        self._definitions: dict[str, Any] = {}

    def read_all(self) -> Schema:
        kept: Schema = self.read(self._root, "#")
        if self._definitions and isinstance(kept, Mapping):
            defined = kept.get("$defs")
            kept = {**kept, "$defs": {**(defined if isinstance(defined, Mapping) else {}), **self._definitions}}
        return kept

    def read(self, schema: Any, path: str) -> Any:
        if not isinstance(schema, Mapping):
            return schema  # a boolean; what else it may be, the compiler refuses
        made: dict[str, Any] = {}
        for key, value in schema.items():
            if key in REFUSED:
                if self._strict and value not in _HARMLESS.get(key, ()):
                    raise _refusal(f"'{key}'", path, REFUSED[key])
            elif key == "$ref":
                made[key] = self._reference(value)
            elif key in _KEPT and self._is_kept(key, schema, path):
                made[key] = self._below(ENFORCED.get(key, "none"), value, f"{path}/{key}")
        if self.open_object is None and not _is_closed(schema) and _names_properties(schema):
            self.open_object = path
        if self._strict and isinstance(schema.get("oneOf"), list):
            self._check_one_of(schema["oneOf"], path)
            others = made["allOf"] if isinstance(made.get("allOf"), list) else []
            made["allOf"] = [*others, {"anyOf": made.pop("oneOf")}]
        return with_exact_bounds(made)

    def _below(self, kind: Below, value: Any, path: str) -> Any:
        if kind in ("schema", "schemas") and isinstance(value, list):  # `items` may be a list in older drafts
            return [self.read(child, f"{path}/{index}") for index, child in enumerate(value)]
        if kind == "schema":
            return self.read(value, path)
        if kind == "named" and isinstance(value, Mapping):
            return {name: self.read(child, f"{path}/{_escaped(name)}") for name, child in value.items()}
        return value

    def _reference(self, reference: Any) -> Any:
        """To where its target is kept. OpenAPI has schemas in `components`, and others refer to a neighbour's parts."""
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return reference
        if reference not in self._moved:
            steps = [_unescaped(step) for step in unquote(reference).split("/")[1:]]
            # Strict alternatives of a `oneOf` are kept elsewhere too.
            if _leads_through_schemas(steps) and not (self._strict and "oneOf" in steps):
                return reference
            target: Any = self._root
            for step in steps:
                target = _child(target, step)
            if not isinstance(target, Mapping | bool):
                return reference  # the compiler says that there is none
            name = f"{_MOVED}{len(self._moved)}"
            self._moved[reference] = name
            self._definitions[name] = self.read(target, reference)
        return f"#/$defs/{self._moved[reference]}"

    def _is_kept(self, key: str, schema: Mapping[str, Any], path: str) -> bool:
        """Raises `GrammarError` where a keyword can be enforced only sometimes, and not here."""
        match key:
            case "$schema":
                return isinstance(schema[key], str) and schema[key].rstrip("#") in _DIALECTS
            case "format":
                return self._is_format_kept(schema, path)
            case "pattern":
                foreign = isinstance(schema[key], str) and any(map(_FOREIGN.match, _PARTS.findall(schema[key])))
                if self._strict and foreign:
                    raise _refusal(
                        "a 'pattern' that looks around or back, or that others read otherwise,",
                        path,
                        "write it plainly",
                    )
                return not foreign
            case "minProperties":
                if self._strict and not _counts_surely(schema):
                    raise _refusal("'minProperties'", path, "name the properties, with additionalProperties false")
        return True

    def _is_format_kept(self, schema: Mapping[str, Any], path: str) -> bool:
        named, types = schema["format"], types_of(schema)
        known = isinstance(named, str) and named in FORMATS
        of_no_string = types is not None and "string" not in types
        foreign = isinstance(named, str) and named not in OTHER_FORMATS
        if self._strict and not (known or of_no_string or (foreign and self._foreign_formats)):
            raise _refusal(f"the format {named!r}", path, f"use a pattern, or one of {', '.join(sorted(FORMATS))}")
        return known

    def _check_one_of(self, options: list[Any], path: str) -> None:
        if self._distinction.all_apart(options):
            return
        for (i, one), (j, other) in combinations(enumerate(options), 2):
            if not self._distinction.apart(one, other):
                if self._distinction.is_spent:
                    raise _refusal(
                        f"'oneOf' of {len(options)} alternatives, too many to compare each with each,",
                        path,
                        "use anyOf, or give all of them the same required property with a different const each",
                    )
                raise _refusal(
                    f"'oneOf', whose alternatives {i} and {j} may both hold,",
                    path,
                    "use anyOf, or give them different types or a required property with a different const each",
                )


def _leads_through_schemas(steps: list[str]) -> bool:
    """Whether every step of a JSON pointer is one that `_Reader` takes."""
    at: Below = "schema"
    for step in steps:
        if at == "schema" and not step.isdecimal():
            at = ENFORCED.get(step, "none")
            if at == "none":
                return False
        else:
            at = "schema"
    return True


def _child(value: Any, step: str) -> Any:
    if isinstance(value, list):
        return value[int(step)] if step.isdecimal() and int(step) < len(value) else None
    return value.get(step) if isinstance(value, Mapping) else None


def _counts_surely(schema: Mapping[str, Any]) -> bool:
    """Else the same property, written twice, would count as two."""
    required, least = schema.get("required"), schema["minProperties"]
    return _is_closed(schema) or (
        isinstance(required, list) and isinstance(least, int) and least <= len(set(map(str, required)))
    )


def _is_closed(schema: Mapping[str, Any]) -> bool:
    """Whether it names every property that an object may have."""
    return schema.get("additionalProperties") is False and not schema.get("patternProperties")


def _names_properties(schema: Mapping[str, Any]) -> bool:
    return bool(schema.get("properties") or schema.get("patternProperties"))


def _refusal(what: str, path: str, remedy: str) -> GrammarError:
    return GrammarError(
        f'{what} at {path} cannot be enforced: {remedy}, or say "strict": false, which ignores it, and check the answer'
    )


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def _escaped(name: str) -> str:
    """As JSON pointers have it (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
