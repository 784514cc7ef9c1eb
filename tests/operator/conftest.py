from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.bad_specs import service as body_of
from support.fake_cluster import FakeCluster
from support.reconciling import Operator
from tandem_operator.cluster.client import Client


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    async with FakeCluster() as cluster, Client(wrote=lambda kind, verb: None, login=cluster.login) as client:
        await cluster.put(body_of(("decode.replicas", 2)))
        yield Operator(cluster, client)
