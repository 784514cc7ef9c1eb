"""The cluster under test: always that of $E2E_KUBECONFIG, never a user's default context."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from support import store
from support.release import NAME, Release
from tandem_cluster.kubectl import Kubectl
from tandem_cluster.plan import Plan


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    if not (path := os.environ.get("E2E_KUBECONFIG")):
        pytest.skip("set E2E_KUBECONFIG, or run make e2e")
    return Path(path)


@pytest.fixture
def kubectl(kubeconfig: Path) -> Iterator[Kubectl]:
    """kubectl in a namespace of the test's own."""
    kubectl = Kubectl(kubeconfig, f"e2e-{uuid4().hex[:8]}")
    kubectl("create", "namespace", kubectl.namespace)
    yield kubectl
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


@pytest.fixture(scope="session")
def release(kubeconfig: Path) -> Iterator[Release]:
    """Tandem, installed by helm."""
    release = Release(Kubectl(kubeconfig, NAME))
    release.install()
    yield release
    release.uninstall()


@pytest.fixture(scope="session")
def model_store(kubeconfig: Path) -> Iterator[None]:
    """An object store in the cluster that holds the tests' models."""
    kubectl = Kubectl(kubeconfig)
    store.start(kubectl)
    yield
    kubectl("delete", "namespace", store.NAMESPACE, "--wait=false")


@pytest.fixture
def throwaway(kubeconfig: Path) -> Iterator[Callable[..., None]]:
    """`e2e/cluster COMMAND ...` of the cluster under test; skips on a cluster that is not ours to break."""
    plan = Plan(int(os.environ.get("E2E_CLUSTER") or 0))
    if kubeconfig != plan.kubeconfig:
        pytest.skip("not a cluster of e2e/cluster")

    def run(*arguments: str) -> None:
        subprocess.run([Path(__file__).parents[1] / "cluster", f"--number={plan.number}", *arguments], check=True)

    yield run
    for node in plan.nodes:
        run("node-up", node.name)
