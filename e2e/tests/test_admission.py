"""What the API server says of good and bad InferenceServices, as kubectl shows it to a user."""

from __future__ import annotations

import json

import pytest
from support.bad_specs import BAD, GOOD_SPECS, BadSpec
from support.release import Release
from tandem_cluster.errors import ClusterError


def create(release: Release, body: dict[str, object]) -> str:
    return release.kubectl(
        "create", "--namespace=default", "--dry-run=server", "--validate=strict", "--filename=-", stdin=json.dumps(body)
    )


def test_there_are_enough_of_them() -> None:
    assert len(BAD) >= 60


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_a_bad_spec_is_refused_by_field_and_remedy(release: Release, case: BadSpec) -> None:
    with pytest.raises(ClusterError) as refusal:
        create(release, case.body)
    assert case.says in str(refusal.value)


@pytest.mark.parametrize("name", GOOD_SPECS)
def test_a_good_spec_is_taken(release: Release, name: str) -> None:
    assert "created (server dry run)" in create(release, GOOD_SPECS[name])
