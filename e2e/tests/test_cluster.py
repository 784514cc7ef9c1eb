"""The cluster itself: what every other test here takes for granted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support import pods
from tandem_cluster.errors import ClusterError
from tandem_cluster.images import BOX
from tandem_cluster.kubectl import Kubectl
from tandem_cluster.waiting import succeeds, wait_for

SLOW_S = 180
"""A machine that does other things as well."""
POD_NAME = "statefulset.kubernetes.io/pod-name"
_LABELS = {"app": "web"}
_DATA = {"name": "data", "mountPath": "/data"}


def _stateful_set() -> dict[str, Any]:
    """Two pods on two nodes; each serves the file that its init container wrote."""
    image = {"image": BOX, "imagePullPolicy": "Never", "volumeMounts": [_DATA]}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": _LABELS},
    }
    ready = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    pod = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 1,
        "topologySpreadConstraints": [spread],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "initContainers": [{"name": "write", "args": ["write", "/data/text", "hello"], **image}],
        "containers": [{"name": "serve", "args": ["serve", ":8000", "/data/text"], "readinessProbe": ready, **image}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "web"},
        "spec": {
            "serviceName": "pods",
            "replicas": 2,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": _LABELS},
            "template": {"metadata": {"labels": _LABELS}, "spec": pod},
        },
    }


def _service(name: str, **spec: Any) -> dict[str, Any]:
    ports = [{"port": 80, "targetPort": 8000}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": _LABELS, "ports": ports, **spec},
    }


def _start(kubectl: Kubectl) -> None:
    kubectl.apply(_service("web"), _service("pods", clusterIP="None"), _stateful_set())
    kubectl("rollout", "status", "statefulset/web", f"--timeout={SLOW_S}s")
    wait_for("kube-proxy to know the Service", lambda: succeeds(lambda: _get(kubectl, "http://web/")), SLOW_S)


def _get(kubectl: Kubectl, url: str, pod: str = "web-0") -> str:
    return kubectl("exec", pod, "--container=serve", "--", "/box", "get", url).strip()


def _is_shut(kubectl: Kubectl, pod: str, asks: str) -> bool:
    """To the pod that `asks`: no answer of any kind comes."""
    try:
        _get(kubectl, f"http://{pod}.pods:8000/", asks)
    except ClusterError as error:
        return "Client.Timeout exceeded" in str(error)
    return False


def _answers(kubectl: Kubectl) -> set[str]:
    """Of both pods but once in a million, if both are asked; empty where one did not answer."""
    try:
        return {_get(kubectl, "http://web/") for _ in range(20)}
    except ClusterError:
        return set()


def test_pods_on_two_nodes_answer_through_a_service_and_by_name(kubectl: Kubectl) -> None:
    _start(kubectl)
    assert {pod["spec"]["nodeName"] for pod in kubectl.get("pods")["items"]} == {"node-1", "node-2"}
    assert kubectl("logs", "web-1", "--container=serve") == "serving on :8000\n"

    assert _answers(kubectl) == {"web-0 hello", "web-1 hello"}
    # From one node to the other, and back to where it was asked.
    for pod in ("web-0", "web-1"):
        name = f"{pod}.pods.{kubectl.namespace}.svc.cluster.local"
        assert _get(kubectl, f"http://{name}:8000/") == f"{pod} hello"


@pytest.mark.usefixtures("throwaway")
def test_network_policies_close_pods_to_those_on_their_node_and_on_others(kubectl: Kubectl) -> None:
    _start(kubectl)
    node = kubectl("get", "pod", "web-1", "--output=jsonpath={.spec.nodeName}")
    waits = {"name": "serve", "image": BOX, "imagePullPolicy": "Never", "args": ["pause"]}
    near = {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [waits]}
    policy = {"podSelector": {"matchLabels": {POD_NAME: "web-1"}}, "policyTypes": ["Ingress"]}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "near"}, "spec": near},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "shut"}, "spec": policy},
    )
    kubectl("wait", "pod/near", "--for=condition=Ready", f"--timeout={SLOW_S}s")
    for asks in ("web-0", "near"):
        wait_for(f"web-1 to be shut to {asks}", lambda asks=asks: _is_shut(kubectl, "web-1", asks), SLOW_S)
        assert _get(kubectl, "http://web-0.pods:8000/", asks) == "web-0 hello"
    kubectl("delete", "networkpolicy", "shut")
    for asks in ("web-0", "near"):
        wait_for(f"web-1 to be open to {asks}", lambda asks=asks: not _is_shut(kubectl, "web-1", asks), SLOW_S)
    # Its probes came from its node all the while.
    assert pods.is_ready(kubectl.get("pod", "web-1"))
    assert pods.restarts(kubectl, "web-1") == 0


def test_a_lost_node_is_noticed_and_comes_back(kubectl: Kubectl, throwaway: Callable[..., None]) -> None:
    _start(kubectl)
    victim = kubectl("get", "pod", "web-1", "--output=jsonpath={.spec.nodeName}")
    throwaway("node-down", victim)
    kubectl("wait", f"node/{victim}", "--for=condition=Ready=Unknown", f"--timeout={SLOW_S}s")
    dropped = f'jsonpath={{.endpoints[?(@.nodeName=="{victim}")].conditions.ready}}=false'
    kubectl(
        "wait", "endpointslice", "--selector=kubernetes.io/service-name=web", f"--for={dropped}", f"--timeout={SLOW_S}s"
    )
    wait_for("kube-proxy to send there no more", lambda: _answers(kubectl) == {"web-0 hello"}, SLOW_S)

    throwaway("node-up", victim)
    kubectl("wait", f"node/{victim}", "--for=condition=Ready", f"--timeout={SLOW_S}s")
    kubectl("rollout", "status", "statefulset/web", f"--timeout={SLOW_S}s")
