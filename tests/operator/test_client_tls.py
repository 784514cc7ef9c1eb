"""The operator's client and the authority that signs the API server's certificate."""

from __future__ import annotations

import shutil
from pathlib import Path

import aiohttp
import pytest
from support.certificates import Authority
from support.fake_cluster import FakeCluster
from tandem_operator.cluster.client import Client
from tandem_operator.cluster.kinds import LEASE


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
async def test_authority_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """Symptom: the certificate was read once; after a rotation every request failed until a restart."""
    authority = Authority(tmp_path)
    async with (
        FakeCluster(authority.tls) as cluster,
        Client(wrote=lambda kind, verb: None, login=lambda: authority.login(cluster.url)) as client,
    ):
        assert await client.get(LEASE, "default", "none") is None
        authority.is_replaced()
        cluster.hang_up()
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await client.get(LEASE, "default", "none")
        authority.is_told()
        assert await client.get(LEASE, "default", "none") is None
