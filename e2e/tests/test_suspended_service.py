"""A suspended service while Tandem is upgraded. No node fits its pods: what counts is whether they are made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.release import ENGINE_IMAGE, Release
from support.services import SLOW_S, Service, eventually, manifest
from tandem_cluster.kubectl import Kubectl
from tandem_contract import labels

NOWHERE = {"template": {"nodeSelector": {"e2e/no-node": "fits"}}}


@pytest.fixture
def upgrade(release: Release) -> Iterator[Release]:
    release.install()  # other tests may have taken it out
    yield release
    release.install()


def test_upgrade_starts_nothing_and_resume_brings_back_the_pods_that_were(upgrade: Release, kubectl: Kubectl) -> None:
    service = Service(kubectl, "chat")
    kubectl.apply(manifest("chat", **dict.fromkeys(("prefill", "decode", "gateway"), NOWHERE)))
    eventually(lambda: len(service.pods()) == 4, service.tell, SLOW_S)
    before = service.revisions()
    service.patch(suspend=True)
    eventually(lambda: not service.pods() and is_suspended(service), service.tell, SLOW_S)
    sets = kubectl.get("statefulsets")["items"]

    operators = upgrade.operator_pods()
    upgrade.install(engineImage={"tag": "2"}, operator={"logLevel": "debug"})
    eventually(lambda: not set(operators) & set(upgrade.operator_pods()), service.tell, SLOW_S)
    # The new operator has looked at it once it has answered for a change that needs no pod.
    service.patch(gateway={"service": {"annotations": {"e2e/asked": "yes"}}})
    eventually(lambda: is_suspended(service), service.tell, SLOW_S)
    assert not service.pods()
    assert [s["spec"] for s in kubectl.get("statefulsets")["items"]] == [s["spec"] for s in sets]

    service.patch(suspend=False)
    eventually(lambda: len(service.pods()) == 4, service.tell, SLOW_S)
    assert service.revisions() == before
    engines = [pod for pod in service.pods() if labels.REVISION in pod["metadata"]["labels"]]
    assert {pod["spec"]["containers"][0]["image"] for pod in engines} == {f"{ENGINE_IMAGE}:1"}


def is_suspended(service: Service) -> bool:
    return service.condition("Ready")["reason"] == "Suspended"
