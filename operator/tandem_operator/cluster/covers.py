"""Whether an object already is as it should be, so that nothing needs to be written. Pure."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

_EMPTY: tuple[Any, ...] = (None, {}, [], "", False, 0)
"""The API server leaves out what is empty."""
_TRUE_WHEN_MISSING = frozenset({"automountServiceAccountToken", "allowPrivilegeEscalation", "enableServiceLinks"})
"""Taken out by a hand, these are not false: the server keeps them where they are."""
_ATOMIC = frozenset({"selector", "podSelector", "labelSelector", "nodeSelector", "subjects", "metrics"})
"""Belong to one owner as a whole: one label more selects other pods, one subject more may see them, one metric more may
ask an autoscaler for more pods."""
_KEYS = ("name", "mountPath", "containerPort", "type", "uid")
_SUFFIX = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50),
}  # fmt: skip


def covers(actual: Any, desired: Any) -> bool:
    """Every desired field has its value in `actual`, which may hold more: defaults, fields of others."""
    if isinstance(desired, dict):
        if not isinstance(actual, dict):
            return actual is None and all(value in _EMPTY for value in desired.values())
        return all(
            covers(actual.get(key), value)
            and (key not in _ATOMIC or covers(value, actual.get(key)))
            and (key not in _TRUE_WHEN_MISSING or key in actual)
            for key, value in desired.items()
        )
    if isinstance(desired, list):
        return _covers_list(actual or [], desired)
    return bool(actual == desired or (actual is None and desired in _EMPTY) or _same_quantity(actual, desired))


def _covers_list(actual: list[Any], desired: list[Any]) -> bool:
    """Lists of named things may hold more (an injected variable); other lists are compared as they are."""
    key = next((k for k in _KEYS if desired and all(isinstance(item, dict) and k in item for item in desired)), None)
    if key is not None and len({str(item[key]) for item in desired}) == len(desired):
        known = {str(item.get(key)): item for item in actual}
        return all(str(item[key]) in known and covers(known[str(item[key])], item) for item in desired)
    return len(actual) == len(desired) and all(covers(a, d) for a, d in zip(actual, desired, strict=True))


def _same_quantity(a: Any, b: Any) -> bool:
    """The server writes 1000m as 1."""
    left, right = _quantity(a), _quantity(b)
    return left is not None and left == right


def _quantity(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    digits = text.rstrip("numkMGTPi")
    try:
        return Decimal(digits) * _SUFFIX[text[len(digits) :]]
    except (InvalidOperation, KeyError):
        return None
