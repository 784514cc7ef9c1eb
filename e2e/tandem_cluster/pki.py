"""The cluster's certificates, made by openssl: one authority that signs every client and the API server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tandem_cluster.errors import ClusterError
from tandem_cluster.plan import DNS_DOMAIN, Plan

_DAYS = "30"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


@dataclass(frozen=True)
class Certificate:
    """`user` and `group` are who its bearer is to the API server; `hosts` are subjectAltName entries if it serves."""

    file: str
    user: str
    group: str = ""
    hosts: tuple[str, ...] = ()


def certificates(plan: Plan) -> list[Certificate]:
    api_server = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DNS_DOMAIN}")
    addresses = ("127.0.0.1", str(plan.control.address), str(plan.services[1]))
    return [
        Certificate(
            "api-server",
            "kube-apiserver",
            hosts=(*(f"DNS:{name}" for name in api_server), *(f"IP:{address}" for address in addresses)),
        ),
        Certificate("admin", "admin", "system:masters"),
        Certificate("kubelet-client", "kube-apiserver", "system:masters"),
        Certificate("front-proxy", "front-proxy"),
        Certificate("controller-manager", "system:kube-controller-manager"),
        Certificate("scheduler", "system:kube-scheduler"),
        Certificate("proxy", "system:kube-proxy"),
        Certificate("dns", "system:coredns"),
        Certificate("policies", "system:policies"),
        *(Certificate(node.name, f"system:node:{node.name}", "system:nodes") for node in plan.nodes),
    ]


def write(folder: Path, wanted: Iterable[Certificate]) -> None:
    """Fills `folder` with `ca` and each certificate (`.crt`, `.key`), and with `service-accounts.key` and `.pub`."""
    folder.mkdir(parents=True, mode=0o700)
    _issue(folder, "ca", authority_request(), ())
    signed_by_us = ("-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key"))
    for certificate in wanted:
        _issue(folder, certificate.file, request(certificate), signed_by_us)
    key, public_key = str(folder / "service-accounts.key"), str(folder / "service-accounts.pub")
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    _openssl("pkey", "-in", key, "-pubout", "-out", public_key)


def request(certificate: Certificate) -> str:
    lines = [
        *_header(certificate.user, certificate.group),
        "basicConstraints = critical, CA:FALSE",
        "keyUsage = critical, digitalSignature",
        "extendedKeyUsage = clientAuth, serverAuth",
    ]
    if certificate.hosts:
        lines.append("subjectAltName = " + ", ".join(certificate.hosts))
    return "\n".join(lines) + "\n"


def authority_request() -> str:
    lines = [*_header("tandem-e2e", ""), "basicConstraints = critical, CA:TRUE", "keyUsage = critical, keyCertSign"]
    return "\n".join(lines) + "\n"


def _header(user: str, group: str) -> list[str]:
    who = [*([f"O = {group}"] if group else []), f"CN = {user}"]
    return [
        "[req]",
        "prompt = no",
        "distinguished_name = who",
        "x509_extensions = extensions",
        "[who]",
        *who,
        "[extensions]",
    ]


def _issue(folder: Path, name: str, config: str, signer: tuple[str, ...]) -> None:
    request_file = folder / f"{name}.cnf"
    request_file.write_text(config)
    files = ("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt"))
    _openssl("req", "-x509", "-days", _DAYS, "-config", str(request_file), *_NEW_KEY, *signer, *files)
    request_file.unlink()


def _openssl(*arguments: str) -> None:
    done = subprocess.run(("openssl", *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"openssl {arguments[0]} failed (version 3 or newer is needed): {done.stderr.strip()}")
