"""An API server's certificate and the file by which its clients know it, either of which may be replaced."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import kopf


class Authority:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trusted = folder / "ca.crt"
        self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        """Of the server, for 127.0.0.1."""
        self.is_replaced()
        self.is_told()

    def is_replaced(self) -> None:
        """New connections get another certificate, which is its own authority."""
        key, certificate = self._folder / "server.key", self._folder / "server.crt"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days=1",
             "-subj=/CN=api", "-addext=subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
            check=True,
            capture_output=True,
        )  # fmt: skip
        self.tls.load_cert_chain(certificate, key)

    def is_told(self) -> None:
        """Clients find it in their file."""
        shutil.copy(self._folder / "server.crt", self._trusted)

    def login(self, url: str) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=url, ca_path=str(self._trusted))
