"""Ticket key rotation: at every moment each verifier knows the key that signs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.infsvc import KEY, NOW, service
from tandem_contract.ticket import DEFAULT_TTL_S
from tandem_operator.plan.ticket_keys import ROTATE_AFTER_S, SPREAD_S, KeyRing, next_ring, read_ring, secret

HOUR = 3600.0


def test_rotation_is_never_ahead_of_its_verifiers() -> None:
    ring = next_ring(None, fresh="a" * 32, now=0.0)
    written = [(0.0, ring)]
    now, fresh = 0.0, "b" * 32
    while now < ROTATE_AFTER_S + HOUR:
        now += 20.0
        ring = next_ring(ring, fresh=fresh, now=now)
        if ring != written[-1][1]:
            written.append((now, ring))
    assert [r.stage for _, r in written] == ["steady", "learn", "sign", "steady"]
    assert written[-1][1].keys == (fresh,)
    for (before, old), (after, new) in pairwise(written):
        # A pod that still has the previous Secret understands one that has the next, and the other way round.
        assert new.keys[0] in old.keys
        assert old.keys[0] in new.keys or after - before >= SPREAD_S + DEFAULT_TTL_S


@pytest.mark.parametrize(
    "ring", [KeyRing((KEY,), "steady", NOW), KeyRing((KEY, "b" * 32), "learn", NOW), KeyRing((KEY, KEY), "sign", NOW)]
)
def test_ring_survives_the_secret(ring: KeyRing) -> None:
    assert read_ring(secret(service(), ring), NOW + 5) == ring


def test_lost_annotation_only_delays() -> None:
    lost = secret(service(), KeyRing((KEY, "b" * 32), "sign", NOW))
    lost["metadata"]["annotations"] = {}
    assert read_ring(lost, NOW + 9) == KeyRing((KEY, "b" * 32), "learn", NOW + 9)


@pytest.mark.parametrize("data", [{}, {"keys": "!"}, {"keys": "c2hvcnQ="}, {"keys": ""}])
def test_broken_secret_is_made_anew(data: dict[str, str]) -> None:
    assert read_ring({"metadata": {}, "data": data}, NOW) is None
