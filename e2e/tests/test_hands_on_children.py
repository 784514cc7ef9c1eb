"""Children that others write to, on a real API server: who owns which field there, no imitation knows for sure.

Services are suspended, so that nothing has to start.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.release import Release
from support.services import SLOW_S, Service, eventually, manifest
from tandem_cluster.kubectl import Kubectl
from tandem_operator.plan import names

USED = {"type": "Utilization", "averageUtilization": 9}
ADDED_METRIC = {"type": "Resource", "resource": {"name": "memory", "target": USED}}
EVERYONE = {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:authenticated"}
HANDS: dict[str, list[dict[str, Any]]] = {
    "service/chat-gateway": [{"op": "replace", "path": "/spec/selector", "value": {"app": "theirs"}}],
    "networkpolicy/chat-engine": [{"op": "remove", "path": "/spec/ingress/2"}],
    "role/chat-gateway": [{"op": "add", "path": "/rules/0/verbs/-", "value": "delete"}],
    "rolebinding/chat-gateway": [{"op": "add", "path": "/subjects/-", "value": EVERYONE}],
    "serviceaccount/chat-engine": [{"op": "remove", "path": "/automountServiceAccountToken"}],
    "poddisruptionbudget/chat-decode": [{"op": "remove", "path": "/spec/maxUnavailable"}],
    "deployment/chat-gateway": [
        {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "theirs:1"},
        {"op": "remove", "path": "/metadata/labels"},
    ],
}  # fmt: skip


@pytest.fixture
def service(release: Release, kubectl: Kubectl) -> Service:
    """Suspended; all of its children are there."""
    made = Service(kubectl, "chat")
    body = manifest("chat", gateway={"service": {"annotations": {"e2e/asked": "yes"}}})
    kubectl.apply({**body, "spec": {**body["spec"], "suspend": True}})
    eventually(lambda: made.condition("Ready")["reason"] == "Suspended", made.tell, SLOW_S)
    return made


def test_field_that_was_created_leaves_with_the_spec_and_others_stay(service: Service) -> None:
    """What was made by a create is no apply's to take out, until it is claimed."""
    kubectl, gateway = service.kubectl, names.gateway(service.name)
    assert managers(kubectl, gateway) == {(names.MANAGER, "Update")}
    kubectl("annotate", "service", gateway, "e2e/theirs=kept", "--field-manager=someone")
    service.patch(gateway={"service": {"annotations": {"e2e/asked": None}}})
    eventually(lambda: "e2e/asked" not in annotations(kubectl, gateway), service.tell, SLOW_S)
    assert annotations(kubectl, gateway)["e2e/theirs"] == "kept"
    assert managers(kubectl, gateway) == {(names.MANAGER, "Apply"), ("someone", "Update")}


def test_fields_that_another_manager_owns_by_force_are_taken_back(service: Service) -> None:
    kubectl, gateway = service.kubectl, names.gateway(service.name)
    wanted = kubectl.get("service", gateway)["spec"]["selector"]
    theirs = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": gateway, "annotations": {"e2e/theirs": "kept"}},
        "spec": {"selector": {"app": "theirs"}},
    }  # fmt: skip
    kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=gitops",
        "--filename=-",
        stdin=json.dumps(theirs),
    )
    eventually(lambda: kubectl.get("service", gateway)["spec"]["selector"] == wanted, service.tell, SLOW_S)
    owned = next(entry for entry in managed(kubectl, gateway) if entry["manager"] == "gitops")["fieldsV1"]
    assert owned.keys() == {"f:metadata"}, "of the selector it owns nothing any more"
    assert annotations(kubectl, gateway)["e2e/theirs"] == "kept"


def test_what_hands_change_take_out_and_add_is_put_right(service: Service) -> None:
    kubectl = service.kubectl
    before = {child: content(kubectl, child) for child in HANDS}
    for child, patch in HANDS.items():
        kubectl("patch", child, "--type=json", f"--patch={json.dumps(patch)}", "--field-manager=someone")

    def different() -> list[str]:
        return [child for child in HANDS if content(kubectl, child) != before[child]]

    eventually(lambda: not different(), lambda: json.dumps(different()), SLOW_S)


def test_metric_that_a_hand_added_to_an_autoscaler_goes(service: Service) -> None:
    kubectl = service.kubectl
    nowhere = {"template": {"nodeSelector": {"e2e/no-node": "fits"}}}
    scaling = {"maxReplicas": 3, "targets": [{"metric": "cpu", "average": "80"}]}
    service.patch(
        suspend=False, prefill=nowhere, gateway=nowhere, decode={**nowhere, "replicas": None, "scaling": scaling}
    )

    def measured() -> list[str]:
        return [m["resource"]["name"] for m in kubectl.get("hpa", "chat-decode")["spec"]["metrics"]]

    eventually(lambda: measured() == ["cpu"], service.tell, SLOW_S)
    added = [{"op": "add", "path": "/spec/metrics/-", "value": ADDED_METRIC}]
    kubectl("patch", "hpa", "chat-decode", "--type=json", f"--patch={json.dumps(added)}", "--field-manager=someone")
    eventually(lambda: measured() == ["cpu"], service.tell, SLOW_S)


def managed(kubectl: Kubectl, service: str) -> list[dict[str, Any]]:
    """Who owns fields of a Service, its status left out."""
    entries = kubectl.get("service", service, "--show-managed-fields")["metadata"]["managedFields"]
    return [entry for entry in entries if "subresource" not in entry]


def managers(kubectl: Kubectl, service: str) -> set[tuple[str, str]]:
    return {(entry["manager"], entry["operation"]) for entry in managed(kubectl, service)}


def annotations(kubectl: Kubectl, service: str) -> dict[str, str]:
    found: dict[str, str] = kubectl.get("service", service)["metadata"]["annotations"]
    return found


def content(kubectl: Kubectl, child: str) -> dict[str, Any]:
    """All but what changes with every write."""
    found = kubectl.get(child)
    changing = ("resourceVersion", "generation", "annotations")
    meta = {key: value for key, value in found["metadata"].items() if key not in changing}
    return {**found, "metadata": meta, "status": None}
