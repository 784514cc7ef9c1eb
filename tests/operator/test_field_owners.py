"""What we created counts as applied, whoever else has written to the object since."""

from __future__ import annotations

from tandem_operator.cluster.field_owners import as_applied
from tandem_operator.plan.names import MANAGER

CREATED = {"manager": MANAGER, "operation": "Update", "apiVersion": "v1", "fieldsV1": {"f:spec": {"f:ours": {}}}}
APPLIED = {**CREATED, "operation": "Apply"}
OTHERS = [
    {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:spec": {"f:theirs": {}}}},
    {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {"f:theirs": {}}}},
    # Of ours too, but what a subresource wrote is its own.
    {"manager": MANAGER, "operation": "Update", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
]


def test_created_fields_become_applied_ones_and_those_of_others_stay_theirs() -> None:
    assert as_applied([OTHERS[0], CREATED, *OTHERS[1:]]) == [APPLIED, *OTHERS]


def test_nothing_changes_where_nothing_was_created_by_us() -> None:
    assert as_applied([]) is None
    assert as_applied(OTHERS) is None
    assert as_applied([APPLIED, *OTHERS]) is None


def test_what_was_applied_since_wins_over_what_was_created() -> None:
    """Else a field that the last apply had taken out would count as ours again."""
    earlier = {**APPLIED, "fieldsV1": {"f:spec": {}}}
    assert as_applied([CREATED, *OTHERS, earlier]) == [*OTHERS, earlier]
