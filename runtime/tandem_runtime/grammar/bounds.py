"""Exclusive bounds of numbers, said so that no text is taken for less or more than what it is read as."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal
from typing import Any, TypeGuard

_DIGITS = 15
"""Decimals of so many are different doubles; 9.9999999999999999 is read as 10."""
_MOST_FRACTION = 9
"""Digits of a fraction; of more llguidance cannot say that there are no others."""
_FINE = 1e-6
"""Bounds closer to zero want more digits."""
_LEAST = Decimal("1e-30")
"""Above zero; llguidance nests a group for each zero that follows the point."""


def with_exact_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` of the same numbers, but for those with many digits, where it bounds numbers exclusively.

    llguidance takes 0 for more than `exclusiveMinimum` 0 where the maximum is below 1, and -0 likewise for less.
    """
    lower, upper = _exclusive(schema, "Minimum"), _exclusive(schema, "Maximum")
    if (lower is None and upper is None) or schema.get("type") == "integer" or "const" in schema or "enum" in schema:
        return schema
    made = {key: value for key, value in schema.items() if key not in ("exclusiveMinimum", "exclusiveMaximum")}
    bounds = [bound for bound in (lower, upper, made.get("minimum"), made.get("maximum")) if _is_number(bound)]
    if any(0 < abs(bound) < _FINE for bound in bounds):
        if lower is not None:
            _at_least(made, _above(lower, _fine_step(lower)))
        if upper is not None:
            _at_most(made, -_above(-upper, _fine_step(upper)))
        return made
    whole = max(len(str(int(abs(bound)))) for bound in (lower, upper) if bound is not None)
    step = Decimal(1).scaleb(-max(0, min(_MOST_FRACTION, _DIGITS - whole)))
    # The side towards zero stays as it is: a maximum of 9.999999999 would leave no room for "9.9".
    if lower is not None and lower < 0:
        made["exclusiveMinimum"] = lower
    elif lower is not None:
        _at_least(made, _above(lower, step))
    if upper is not None and upper > 0:
        made["exclusiveMaximum"] = upper
    elif upper is not None:
        _at_most(made, -_above(-upper, step))
    return {"multipleOf": _number(step), **made}


def _exclusive(schema: dict[str, Any], side: str) -> float | None:
    """None: there is none, or none that could be a bound."""
    bound = schema.get(f"exclusive{side}")
    if bound is True:  # draft 4, and OpenAPI 3.0
        bound = schema.get(side.lower())
    return bound if _is_number(bound) and abs(bound) < 2**63 else None


def _fine_step(bound: float) -> Decimal:
    return min(Decimal(1), Decimal(1).scaleb(Decimal(repr(bound)).adjusted() + 2 - _DIGITS)) if bound else _LEAST


def _above(bound: float, step: Decimal) -> Decimal:
    """The next of the numbers that `step` divides."""
    return (Decimal(repr(bound)) / step).to_integral_value(ROUND_FLOOR) * step + step


def _at_least(schema: dict[str, Any], bound: Decimal) -> None:
    other = schema.get("minimum")
    schema["minimum"] = max(_number(bound), other) if _is_number(other) else _number(bound)


def _at_most(schema: dict[str, Any], bound: Decimal) -> None:
    other = schema.get("maximum")
    schema["maximum"] = min(_number(bound), other) if _is_number(other) else _number(bound)


def _number(value: Decimal) -> float:
    return int(value) if value == value.to_integral_value() else float(value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
