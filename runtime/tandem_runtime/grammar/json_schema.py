"""Which JSON schemas can be kept to the letter, and what becomes of the others.

The keywords are those of the drafts 4 to 2020-12. Strict schemas are exact: whatever an answer may be, it validates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar.bounds import with_exact_bounds
from tandem_runtime.grammar.control_characters import has_control_characters
from tandem_runtime.grammar.distinction import Distinction, types_of
from tandem_runtime.grammar.endings import can_end
from tandem_runtime.grammar.patterns import UnreadablePatternError, disjoint, to_rust
from tandem_runtime.grammar.references import ROOT, Place, References

Schema = Mapping[str, Any] | bool
Below = Literal["schema", "schemas", "named", "none"]
"""What a keyword's value is: a schema, a list of them, schemas by name, or neither."""

ENFORCED: dict[str, Below] = {
    "$ref": "none", "$defs": "none", "definitions": "none",
    "type": "none", "const": "none", "enum": "none", "anyOf": "schemas", "allOf": "schemas", "oneOf": "schemas",
    "properties": "named", "patternProperties": "named", "additionalProperties": "schema", "required": "none",
    "minProperties": "none", "maxProperties": "none",
    "items": "schema", "prefixItems": "schemas", "additionalItems": "schema", "minItems": "none", "maxItems": "none",
    "minLength": "none", "maxLength": "none", "pattern": "none", "format": "none",
    "minimum": "none", "maximum": "none", "exclusiveMinimum": "none", "exclusiveMaximum": "none", "multipleOf": "none",
}  # fmt: skip
"""`oneOf`, `minProperties`, `pattern` and `format` only as `_Reader` says, definitions where referred to."""

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
_DIALECTS = (
    *(f"http://json-schema.org/draft-0{number}/schema" for number in (4, 6, 7)),
    "https://json-schema.org/draft/2019-09/schema",
)
"""Others are taken for the newest."""
_MOST_SCHEMAS = 50_000
"""More than fit into what clients may send, unless references lead to parts of parts."""


def enforceable(schema: Schema, *, strict: bool, foreign_formats: bool) -> Schema:
    """`schema` without what cannot be enforced; `strict`: raises `GrammarError` for that, with its place.

    `foreign_formats`: formats that the standard does not define are ignored all the same.
    """
    reader = _Reader(schema, strict, foreign_formats)
    kept: Schema = reader.read_all()
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
        self._references = References(root)
        self._names: dict[Place, str] = {}
        """Under `$defs`, of all that references lead to."""
        self._waiting: list[tuple[Place, Any]] = []
        """Of these, what is yet to be read."""
        self._one_ofs: list[tuple[dict[str, Any], str]] = []
        """What was made of schemas with `oneOf`, and where they are."""
        self._read = 0

    def read_all(self) -> Any:
        made = self._schema(self._root, Place(ROOT, ROOT))
        defined: dict[str, Any] = {}
        while self._waiting:
            place, schema = self._waiting.pop()
            defined[self._names[place]] = self._schema(schema, place)
        if not isinstance(made, dict):
            return made
        if defined:
            made["$defs"] = defined
        self._make_any_of(made)
        if not can_end(made):
            raise GrammarError(
                "no finite answer satisfies the schema: what it requires leads to itself; let one of the references on "
                'the way be optional, or an anyOf with {"type": "null"}'
            )
        return made

    def _schema(self, schema: Any, place: Place) -> Any:
        self._read += 1
        if self._read > _MOST_SCHEMAS:
            raise GrammarError("the schema is too large: its references lead to parts of one another too often")
        if not isinstance(schema, Mapping):
            return schema  # a boolean; what else it may be, the compiler refuses
        path = place.pointer
        made: dict[str, Any] = {}
        for key, value in schema.items():
            if key in REFUSED:
                if self._strict and value not in _HARMLESS.get(key, ()):
                    raise _refusal(f"'{key}'", path, REFUSED[key])
            elif key == "$ref" and isinstance(value, str):
                made[key] = self._reference(value, place)
            elif self._is_kept(key, schema, path):
                made[key] = self._below(ENFORCED.get(key, "none"), value, self._references.below(place, key))
        if self.open_object is None and not _is_closed(schema) and _names_properties(schema):
            self.open_object = path
        self._translate_patterns(made, path)
        made = with_exact_bounds(made)
        if self._strict and isinstance(made.get("oneOf"), list):
            self._one_ofs.append((made, path))
        return made

    def _reference(self, ref: str, origin: Place) -> str:
        place, schema = self._references.follow(ref, origin)
        if place.pointer == ROOT:
            return ROOT
        if place not in self._names:
            self._names[place] = str(len(self._names))
            self._waiting.append((place, schema))
        return f"#/$defs/{self._names[place]}"

    def _below(self, kind: Below, value: Any, place: Place) -> Any:
        below = self._references.below
        if kind in ("schema", "schemas") and isinstance(value, list):  # `items` may be a list in older drafts
            return [self._schema(child, below(place, str(index))) for index, child in enumerate(value)]
        if kind == "schema":
            return self._schema(value, place)
        if kind == "named" and isinstance(value, Mapping):
            return {name: self._schema(child, below(place, name)) for name, child in value.items()}
        return value

    def _translate_patterns(self, made: dict[str, Any], path: str) -> None:
        try:
            if isinstance(made.get("pattern"), str):
                made["pattern"] = to_rust(made["pattern"])
        except UnreadablePatternError as error:
            if self._strict:
                raise _refusal(f"a 'pattern' {error}", path, "write it without") from error
            del made["pattern"]
        if not isinstance(by_pattern := made.get("patternProperties"), Mapping):
            return
        try:
            patterns = [to_rust(pattern) for pattern in by_pattern]
            if not disjoint(patterns):
                raise UnreadablePatternError("that may match what another one matches")
            made["patternProperties"] = dict(zip(patterns, by_pattern.values(), strict=True))
        except UnreadablePatternError as error:
            if self._strict:
                raise _refusal(f"a pattern of 'patternProperties' {error}", path, "write it without") from error
            del made["patternProperties"]
            made.pop("additionalProperties", None)  # which may not hold for what the patterns match

    def _make_any_of(self, root: dict[str, Any]) -> None:
        """Of each `oneOf`, which only what has been read to the end tells."""
        distinction = Distinction(root)
        for made, path in self._one_ofs:
            self._check_one_of(made["oneOf"], path, distinction)
        for made, _ in self._one_ofs:
            others = made["allOf"] if isinstance(made.get("allOf"), list) else []
            made["allOf"] = [*others, {"anyOf": made.pop("oneOf")}]

    def _is_kept(self, key: str, schema: Mapping[str, Any], path: str) -> bool:
        """Raises `GrammarError` where a keyword can be enforced only sometimes, and not here."""
        match key:
            case "$schema":
                return isinstance(schema[key], str) and schema[key].rstrip("#") in _DIALECTS
            case "format":
                return self._is_format_kept(schema, path)
            case "minProperties":
                if self._strict and not _counts_surely(schema):
                    raise _refusal("'minProperties'", path, "name the properties, with additionalProperties false")
        # Of all others llguidance would take some for options, and compare numbers that no answer is compared with.
        return key in ENFORCED and key not in ("$defs", "definitions")

    def _is_format_kept(self, schema: Mapping[str, Any], path: str) -> bool:
        named, types = schema["format"], types_of(schema)
        known = isinstance(named, str) and named in FORMATS
        of_no_string = types is not None and "string" not in types
        foreign = isinstance(named, str) and named not in OTHER_FORMATS
        if self._strict and not (known or of_no_string or (foreign and self._foreign_formats)):
            raise _refusal(f"the format {named!r}", path, f"use a pattern, or one of {', '.join(sorted(FORMATS))}")
        return known

    def _check_one_of(self, options: list[Any], path: str, distinction: Distinction) -> None:
        if distinction.all_apart(options):
            return
        for (i, one), (j, other) in combinations(enumerate(options), 2):
            if not distinction.apart(one, other):
                if distinction.is_spent:
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
