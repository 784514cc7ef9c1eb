"""From created to applied: who owns which field of an object, as its `metadata.managedFields` say. Pure.

For the API server creating an object is about half the work of looking for it and applying it, and it fails by itself
where the name is taken. But an apply takes out only what was applied before. So objects are created, and before their
first change what we created is made to count as applied, as in `kubectl apply --server-side` (client-go: csaupgrade).
"""

from __future__ import annotations

from collections.abc import Sequence

from tandem_operator.plan.context import Manifest
from tandem_operator.plan.names import MANAGER


def as_applied(managed: Sequence[Manifest]) -> list[Manifest] | None:
    """None where nothing needs to change."""
    created = [e for e in managed if _is(e, "Update")]
    if not created:
        return None
    rest = [entry for entry in managed if entry not in created]
    # What was applied since says more than what was once created.
    return rest if any(_is(e, "Apply") for e in rest) else [{**created[0], "operation": "Apply"}, *rest]


def _is(entry: Manifest, operation: str) -> bool:
    return entry.get("manager") == MANAGER and entry.get("operation") == operation and not entry.get("subresource")
