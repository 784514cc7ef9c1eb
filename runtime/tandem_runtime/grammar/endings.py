"""Whether an answer in a schema can come to an end: some only nest, as a list that each of its nodes must continue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tandem_runtime.grammar.distinction import types_of

_MOST_ROUNDS = 32
"""Longer chains of references are taken to end: each round looks through the whole schema."""


def can_end(root: Mapping[str, Any]) -> bool:
    """`root`: as `enforceable` makes it, so that its references lead to itself or under its `$defs`."""
    defined: Mapping[str, Any] = root.get("$defs", {})
    ending: set[str] = set()
    for _ in range(_MOST_ROUNDS):
        found = {"#"} if _ends(root, ending) else set()
        found |= {f"#/$defs/{name}" for name, schema in defined.items() if _ends(schema, ending)}
        if "#" in found:
            return True
        if found == ending:
            return False
        ending = found
    return True


def _ends(schema: Any, ending: set[str]) -> bool:
    """Whether it surely can be satisfied where references in `ending` can, but for what no text satisfies."""
    if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
        return True
    if isinstance(ref := schema.get("$ref"), str) and ref not in ending:
        return False
    if isinstance(parts := schema.get("allOf"), list) and not all(_ends(part, ending) for part in parts):
        return False
    for key in ("anyOf", "oneOf"):
        branches = schema.get(key)
        if isinstance(branches, list) and branches and not any(_ends(branch, ending) for branch in branches):
            return False
    return all(_ends(child, ending) for child in _inevitable(schema))


def _inevitable(schema: Mapping[str, Any]) -> list[Any]:
    """Of what its values consist, whichever it is."""
    types = types_of(schema)
    if types == {"object"}:
        required, properties = schema.get("required"), schema.get("properties")
        named = properties if isinstance(properties, Mapping) else {}
        names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        # A pattern may describe the others.
        rest = True if schema.get("patternProperties") else schema.get("additionalProperties", True)
        return [named.get(name, rest) for name in names]
    least = schema.get("minItems")
    if types == {"array"} and isinstance(least, int):
        items, first = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):  # older drafts
            items, first = schema.get("additionalItems", True), items
        first = first if isinstance(first, list) else []
        return first[:least] if least <= len(first) else [*first, items]
    return []
