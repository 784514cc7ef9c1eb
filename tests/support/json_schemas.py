"""JSON schemas at random, of the keywords that clients use and a grammar can enforce."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_NAMES = st.sampled_from(["a", "name", "größe", "x y", 'q"uote', "<tool_call>", "</think>"])
_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=6)


def _object(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def shape(properties: dict[str, Any], data: tuple[bool, ...]) -> dict[str, Any]:
        required = [name for name, wanted in zip(properties, data, strict=False) if wanted]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.builds(shape, st.dictionaries(_NAMES, children, max_size=3), st.tuples(*[st.booleans()] * 3))


_BOUNDS = st.one_of(st.sampled_from([0, 1, -1, 0.5, 100]), st.decimals(-20, 20, places=3).map(float))


def _range(drawn: tuple[float, float, bool, bool]) -> dict[str, Any]:
    lower, upper = sorted(drawn[:2])
    return {
        "type": "number",
        "exclusiveMinimum" if drawn[2] else "minimum": lower,
        "exclusiveMaximum" if drawn[3] else "maximum": upper + 0.5,
    }


_LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.integers(0, 6).map(lambda n: {"type": "string", "maxLength": n}),
    st.integers(1, 3).map(lambda n: {"type": "string", "minLength": n, "maxLength": n + 2}),
    st.sampled_from(["^[a-z]{2,4}$", "^\\d{3}-\\d{2}$", "^(yes|no)$"]).map(lambda p: {"type": "string", "pattern": p}),
    st.sampled_from(["date", "uuid", "ipv4"]).map(lambda f: {"type": "string", "format": f}),
    st.tuples(st.integers(-50, 50), st.integers(0, 200)).map(
        lambda r: {"type": "integer", "minimum": r[0], "maximum": r[0] + r[1]}
    ),
    st.tuples(_BOUNDS, _BOUNDS, st.booleans(), st.booleans()).map(_range),
    st.lists(st.one_of(_TEXTS, st.integers(-(2**53), 2**53), st.booleans(), st.none()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    _TEXTS.map(lambda text: {"const": text}),
)

_trees: st.SearchStrategy[Any] = st.recursive(
    _LEAVES,
    lambda children: st.one_of(
        _object(children),
        st.tuples(children, st.integers(0, 3)).map(lambda p: {"type": "array", "items": p[0], "maxItems": p[1]}),
        st.lists(children, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
    ),
    max_leaves=6,
)


def _by_reference(schema: Any) -> Any:
    return {"$defs": {"it": schema}, "type": "array", "items": {"$ref": "#/$defs/it"}, "maxItems": 2}


json_schemas = st.one_of(_trees, _trees.map(_by_reference))
