import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from tandem_cluster import pki
from tandem_cluster.kubeconfig import kubeconfig
from tandem_cluster.plan import Plan

PLAN = Plan(0)
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates") / "pki"
    pki.write(folder, pki.certificates(PLAN))
    return folder


def _openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


def test_every_certificate_is_signed_by_the_authority(folder: Path) -> None:
    for certificate in pki.certificates(PLAN):
        _openssl("verify", "-x509_strict", "-CAfile", str(folder / "ca.crt"), str(folder / f"{certificate.file}.crt"))


def test_a_node_is_who_the_node_authorizer_wants(folder: Path) -> None:
    subject = _openssl("x509", "-in", str(folder / "node-1.crt"), "-noout", "-subject")
    assert "O = system:nodes" in subject
    assert "CN = system:node:node-1" in subject


def test_the_api_server_is_known_by_its_service_and_its_addresses(folder: Path) -> None:
    served = _openssl("x509", "-in", str(folder / "api-server.crt"), "-noout", "-ext", "subjectAltName")
    for name in ("DNS:kubernetes.default.svc", f"IP Address:{PLAN.control.address}", f"IP Address:{PLAN.services[1]}"):
        assert name in served


def test_keys_are_the_owners_alone(folder: Path) -> None:
    assert folder.stat().st_mode & 0o077 == 0


def test_keys_belong_to_their_certificates(folder: Path) -> None:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "admin.crt", folder / "admin.key")


def test_a_kubeconfig_names_one_cluster_and_carries_its_credentials(folder: Path) -> None:
    text = kubeconfig(PLAN, folder, "admin")
    assert PLAN.api_server in text
    assert str(folder) not in text
