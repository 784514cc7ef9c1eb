"""The operator's client and the authority that signs the API server's certificate."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import kopf
import pytest
from aiohttp import web
from tandem_operator.cluster.client import Client
from tandem_operator.cluster.kinds import LEASE


def certificate(folder: Path) -> Path:
    """Self-signed, for 127.0.0.1; its key is in the same file."""
    folder.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days=1",
         "-subj=/CN=api", "-addext=subjectAltName=IP:127.0.0.1", "-keyout", folder / "key", "-out", folder / "crt"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_text((folder / "key").read_text() + (folder / "crt").read_text())
    return both


@asynccontextmanager
async def api_server(pem: Path, port: int = 0) -> AsyncIterator[int]:
    """Has no objects; yields its port."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pem)
    runner = web.AppRunner(web.Application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls, reuse_address=True).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
async def test_authority_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """Symptom: the certificate was read once; after a rotation every request failed until a restart."""
    first, second = certificate(tmp_path / "first"), certificate(tmp_path / "second")
    trusted = Path(shutil.copy(first, tmp_path / "ca.crt"))

    async with api_server(first) as port:

        def login() -> kopf.ConnectionInfo:
            return kopf.ConnectionInfo(server=f"https://127.0.0.1:{port}", ca_path=str(trusted))

        client = Client(wrote=lambda kind, verb: None, login=login)
        assert await client.get(LEASE, "default", "none") is None
    async with client, api_server(second, port):
        shutil.copy(second, trusted)
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await client.get(LEASE, "default", "none")
        assert await client.get(LEASE, "default", "none") is None
