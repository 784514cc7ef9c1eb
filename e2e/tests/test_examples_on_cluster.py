"""Every example, applied as a user would: taken by the API server, and turned into pods by the operator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from support import examples
from support.release import CHART, Release
from support.services import SLOW_S
from tandem_cluster.kubectl import Kubectl
from tandem_cluster.waiting import wait_for
from tandem_contract import labels


@pytest.fixture(scope="module")
def on_volcengine(release: Release) -> Iterator[None]:
    """An operator that knows what the cloud calls things: one example needs it, the others must not mind."""
    values = yaml.safe_load((CHART / "values-volcengine.yaml").read_text(encoding="utf-8"))
    release.install(platform=values["platform"])
    yield
    release.install()


@pytest.mark.parametrize("name", examples.NAMES)
def test_example_becomes_pods(on_volcengine: None, kubectl: Kubectl, name: str) -> None:
    kubectl.apply(*examples.manifests(name))
    service = examples.service(name)["metadata"]["name"]
    chosen = f"--selector={labels.SERVICE}={service}"

    def pods_are_made() -> bool:
        status = kubectl.get("infsvc", service).get("status", {})
        roles = [status.get(role, {}) for role in ("prefill", "decode")]
        return all(role.get("replicas", 0) == role.get("desired", -1) for role in roles)

    # Without a GPU and a model that is as far as they come.
    wait_for("pods of both roles", pods_are_made, SLOW_S)
    conditions = {c["type"]: c["reason"] for c in kubectl.get("infsvc", service)["status"]["conditions"]}
    assert conditions["Ready"] not in ("InvalidSpec", "ChildRefused", "NameTaken")
    kubectl("delete", "infsvc", service)
    wait_for("children to go with it", lambda: not kubectl.get("statefulsets", chosen)["items"], SLOW_S)
