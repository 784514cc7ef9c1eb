"""Several endpoints at one address: one pod."""

from __future__ import annotations

import itertools

import pytest
from tandem_gateway.endpoints import Endpoint, by_address

HERE = "http://10.0.0.1:8000"
GOING, STAYING = Endpoint(HERE, "decode", leaving=True), Endpoint(HERE, "decode")


@pytest.mark.parametrize(
    "order", list(itertools.permutations((GOING, STAYING, Endpoint("http://10.0.0.2:8000", "prefill"))))
)
def test_a_pod_that_stays_outdoes_one_that_leaves(order: tuple[Endpoint, ...]) -> None:
    """A pod with the address of one that was not quite gone took requests or not, as the hashes of the day had it."""
    known = by_address(order)
    assert known["10.0.0.1:8000"] == STAYING
    assert len(known) == 2


@pytest.mark.parametrize("order", list(itertools.permutations((Endpoint(HERE, "decode"), Endpoint(HERE, "prefill")))))
def test_the_order_decides_nothing(order: tuple[Endpoint, ...]) -> None:
    assert by_address(order) == {"10.0.0.1:8000": Endpoint(HERE, "prefill")}


def test_spellings_of_one_address_are_one_pod() -> None:
    """Two pods at one key: the second poller was never ended."""
    assert len(by_address([Endpoint("http://Pod-1:80", "decode"), Endpoint("http://pod-1", "decode")])) == 1
