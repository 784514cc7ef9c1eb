"""Kubernetes, etcd, CoreDNS, kubectl and helm, built once from Go modules and kept in the user's cache by version."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tandem_cluster.errors import ClusterError

_MODULES = Path(__file__).parent.parent / "go"


@dataclass(frozen=True)
class Module:
    """A folder with a go.mod, and its programs: name -> Go package."""

    folder: Path
    programs: dict[str, str]


KUBERNETES = Module(
    _MODULES / "kubernetes",
    {
        **{
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kube-proxy",
                "kubelet",
                "kubectl",
            )
        },
        "etcd": "go.etcd.io/etcd/server/v3",
    },
)
ADDONS = Module(
    _MODULES / "addons",
    {"coredns": "./coredns", "policies": "./policies", "box": "./box", "helm": "helm.sh/helm/v4/cmd/helm"},
)
_ALL = (KUBERNETES, ADDONS)


def folder() -> Path:
    """All programs in one folder, which is there as a whole or not at all."""
    digest = hashlib.sha256()
    for module in _ALL:
        for file in sorted(path for path in module.folder.rglob("*") if path.is_file()):
            digest.update(str(file.relative_to(_MODULES)).encode() + b"\0" + file.read_bytes())
    return _cache() / f"kubernetes-{kubernetes_version()}-{digest.hexdigest()[:12]}"


def kubernetes_version() -> str:
    found = re.search(r"k8s\.io/kubernetes (v[\d.]+)", (KUBERNETES.folder / "go.mod").read_text())
    assert found, "go.mod requires k8s.io/kubernetes"
    return found[1]


def ensure() -> Path:
    """Returns `folder()`, built first (minutes) if it is not there. A second process waits for the first."""
    target = folder()
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / ".lock"):
        for left_by_a_killed_build in target.parent.glob(".partial-*"):
            shutil.rmtree(left_by_a_killed_build)
        if not target.is_dir():
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
            for module in _ALL:
                for name, package in module.programs.items():
                    _build(module, package, partial / name)
            partial.chmod(0o755)
            partial.rename(target)
    return target


def _build(module: Module, package: str, output: Path) -> None:
    print(f"building {output.name} {'' if package.startswith('.') else package}".rstrip(), file=sys.stderr, flush=True)
    command = [
        "nice",
        "go",
        "build",
        "-trimpath",
        "-buildvcs=false",
        "-ldflags",
        _link_flags(),
        "-o",
        str(output),
        package,
    ]
    done = subprocess.run(
        command, cwd=module.folder, env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise ClusterError(f"go build {package} failed in {module.folder}")


def _link_flags() -> str:
    """Without them Kubernetes programs say that they are v0.0.0-master."""
    major, minor, _ = kubernetes_version().removeprefix("v").split(".")
    facts = {"gitVersion": kubernetes_version(), "gitMajor": major, "gitMinor": minor}
    return " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{name}={value}" for name, value in facts.items())])


def _cache() -> Path:
    return Path(os.environ.get("TANDEM_CACHE") or "~/.cache/tandem").expanduser().absolute() / "e2e"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
