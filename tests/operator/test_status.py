"""Status: what users read, case by case. Each case changes one thing about a service that is all right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from support.infsvc import observed, plan, pods_of, service
from tandem_contract.fetch_flags import EXIT_PERMANENT, EXIT_RETRYABLE
from tandem_operator.api.service import InferenceServiceStatus
from tandem_operator.plan.context import Manifest, Service
from tandem_operator.plan.observed import Observed
from tandem_operator.status.facts import Facts
from tandem_operator.status.report import halted_status, status

SINCE_NOW = "2027-01-15T08:00:00Z"
"""`support.infsvc.NOW`"""
THEN, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


class Cluster:
    """All children of a service at work; cases then break something."""

    def __init__(self, wanted: Service) -> None:
        self.service = wanted
        self.children = [copy.deepcopy(child) for child in plan(wanted).children]
        for child in self.children:
            child["metadata"] |= {"generation": 1, "uid": "u", "creationTimestamp": THEN}
            if child["kind"] == "Deployment":
                count = child["spec"]["replicas"]
                child["status"] = {"observedGeneration": 1} | dict.fromkeys(
                    ("replicas", "readyReplicas", "updatedReplicas"), count
                )
        self.pods = {
            role: [pod for made in engine_sets_of(self.children, role) for pod in pods_of(made, **FETCHED)]
            for role in ("prefill", "decode")
        }
        self.pods["gateway"] = pods_of(self.child("Deployment"))
        self.events: dict[str, str] = {}

    def child(self, kind: str) -> Manifest:
        return next(child for child in self.children if child["kind"] == kind)

    def observed(self) -> Observed:
        pods = [pod for found in self.pods.values() for pod in found]
        return observed(self.children, pods, events=self.events)

    def conditions(self) -> dict[str, Manifest]:
        seen = self.observed()
        facts = Facts.gather(self.service, plan(self.service, seen), seen)
        report = status(facts, {}, now=THEN, cluster_domain="cluster.local")
        return {condition["type"]: condition for condition in report["conditions"]}


def engine_sets_of(children: list[Manifest], role: str) -> list[Manifest]:
    return [c for c in children if c["kind"] == "StatefulSet" and role in c["metadata"]["name"]]


FETCHED: Manifest = {"initContainerStatuses": [{"name": "fetch", "state": {"terminated": {"exitCode": 0}}}]}


def init(cluster: Cluster, role: str, state: Manifest, last: Manifest | None = None) -> None:
    pod = cluster.pods[role][0]
    pod["status"]["initContainerStatuses"] = [{"name": "fetch", "state": state, "lastState": last or {}}]
    unready(pod)


def engine(cluster: Cluster, role: str, state: Manifest, last: Manifest | None = None, **more: Any) -> None:
    pod = cluster.pods[role][0]
    pod["status"]["containerStatuses"] = [{"name": "engine", "state": state, "lastState": last or {}, **more}]
    unready(pod)


def unready(pod: Manifest, *conditions: Manifest) -> None:
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}, *conditions]


def download_refused(cluster: Cluster) -> None:
    message = "AccessDenied: 403 on tos://b/p; check storage.secretRef"
    init(cluster, "prefill", {"waiting": {"reason": "CrashLoopBackOff"}},
         {"terminated": {"exitCode": 78, "reason": "Error", "message": message}})  # fmt: skip


def download_refused_again(cluster: Cluster) -> None:
    """Symptom: with each attempt of a download that cannot work, READY went back to "Downloading", and DEGRADED told
    of the back-off instead of the reason."""
    message = "download failed (access_denied, needs a change): 403 SignatureDoesNotMatch"
    init(cluster, "decode", {"running": {}}, {"terminated": {"exitCode": EXIT_PERMANENT, "message": message}})
    backed_off(cluster)


def downloading_again(cluster: Cluster) -> None:
    message = "download failed (unreachable, may succeed later): connection reset"
    init(cluster, "decode", {"running": {}}, {"terminated": {"exitCode": EXIT_RETRYABLE, "message": message}})
    cluster.pods["prefill"].clear()
    backed_off(cluster)


def backed_off(cluster: Cluster) -> None:
    pod = cluster.pods["decode"][0]
    pod["status"]["phase"] = "Pending"
    cluster.events[pod["metadata"]["name"]] = "Back-off restarting failed container fetch"


def downloading(cluster: Cluster) -> None:
    for role in ("prefill", "decode"):
        init(cluster, role, {"running": {}})


def image_missing(cluster: Cluster) -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    engine(cluster, "decode", {"waiting": waiting}, image="tandem-runtime:9")


def crash_loop(cluster: Cluster) -> None:
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": "CUDA out of memory"}}
    engine(cluster, "decode", {"waiting": {"reason": "CrashLoopBackOff"}}, ended)


def container_refused(cluster: Cluster) -> None:
    """Symptom: a pod that the container runtime refused was "Starting" for ever."""
    engine(cluster, "decode", {"waiting": {"reason": "CreateContainerError", "message": "no such device /dev/uverbs0"}})


def container_ends(cluster: Cluster) -> None:
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container"}
    engine(cluster, "decode", {"waiting": waiting}, {"terminated": {"exitCode": 0, "reason": "Completed"}})


def out_of_memory(cluster: Cluster) -> None:
    engine(cluster, "prefill", {"terminated": {"exitCode": 137, "reason": "OOMKilled"}})


def no_gpu(cluster: Cluster) -> None:
    pod = cluster.pods["decode"][0]
    pod["status"] = {"phase": "Pending"}
    unready(pod, {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available: 2 Insufficient "
                  "nvidia.com/gpu."})  # fmt: skip


def no_gpu_at_all(cluster: Cluster) -> None:
    """Symptom: READY said NoPodYet while every pod waited for a node."""
    for role in ("prefill", "decode"):
        pod = cluster.pods[role][0]
        pod["status"] = {"phase": "Pending"}
        unready(pod, {"type": "PodScheduled", "status": "False", "message": "2 Insufficient nvidia.com/gpu."})


def missing_secret(cluster: Cluster) -> None:
    pod = cluster.pods["decode"][0]
    pod["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    cluster.events[pod["metadata"]["name"]] = 'MountVolume.SetUp failed: secret "tos-cred" not found'


def starting(cluster: Cluster) -> None:
    engine(cluster, "decode", {"running": {}}, started=False)


def pod_gone(cluster: Cluster) -> None:
    cluster.pods["prefill"].clear()


def pods_refused(cluster: Cluster) -> None:
    """Symptom: with a quota against its pods a service said Scaling for ever, and that it was Healthy."""
    cluster.pods["prefill"].clear()
    (made,) = engine_sets_of(cluster.children, "prefill")
    cluster.events[made["metadata"]["name"]] = 'create Pod failed error: pods "p-0" is forbidden: exceeded quota: q'


def gateway_refused(cluster: Cluster) -> None:
    refusal = {"type": "ReplicaFailure", "status": "True", "message": 'violates PodSecurity "restricted:latest"'}
    cluster.pods["gateway"].clear()
    cluster.child("Deployment")["status"] = {"observedGeneration": 1, "conditions": [refusal]}


def node_lost(cluster: Cluster) -> None:
    """Symptom: of a pod on a lost node the status said "Starting", and nothing was Degraded."""
    pod = cluster.pods["decode"][0]
    pod["spec"] = {"nodeName": "gpu-7"}
    unready(pod, {"type": "ContainersReady", "status": "True"})


def gate_closed(cluster: Cluster) -> None:
    pod = cluster.pods["decode"][0]
    unready(pod, {"type": "ContainersReady", "status": "True"})
    pod["status"]["conditions"][0]["reason"] = "ReadinessGatesNotReady"


def pod_leaving(cluster: Cluster) -> None:
    cluster.pods["decode"][0]["metadata"]["deletionTimestamp"] = SINCE_NOW


def pod_stuck(cluster: Cluster) -> None:
    """Symptom: of a pod that Kubernetes waits for in vain the status said "Starting", for ever."""
    pod = cluster.pods["decode"][0]
    pod["metadata"]["deletionTimestamp"] = THEN
    pod["spec"] = {"nodeName": "gpu-7"}


def gateway_down(cluster: Cluster) -> None:
    cluster.child("Deployment")["status"]["readyReplicas"] = 0


def gateway_updating(cluster: Cluster) -> None:
    cluster.child("Deployment")["metadata"]["generation"] = 2


def gateway_rolling(cluster: Cluster) -> None:
    """Symptom: READY while the last new gateway was starting, because an old one was still counted as ready."""
    cluster.child("Deployment")["status"]["replicas"] = 3


def gateway_key_missing(cluster: Cluster) -> None:
    gateway_down(cluster)
    for pod in cluster.pods["gateway"]:
        pod["status"] = {"phase": "Pending", "containerStatuses": [
            {"name": "gateway", "state": {"waiting": {"reason": "CreateContainerConfigError", "message": "no key"}}}
        ]}  # fmt: skip


def nothing(cluster: Cluster) -> None:
    pass


CASES: list[tuple[Callable[[Cluster], None], dict[str, tuple[str, str]], str]] = [
    (nothing, {"Ready": ("True", "Serving"), "Progressing": ("False", "Complete"), "ModelReady": ("True", "Available"),
               "PrefillReady": ("True", "AllReady"), "GatewayReady": ("True", "Answering"),
               "ScalingReady": ("True", "FixedReplicas"), "Degraded": ("False", "Healthy")}, "answers"),
    (download_refused, {"Ready": ("False", "ModelDownloadFailed"), "ModelReady": ("False", "ModelDownloadFailed"),
                        "Degraded": ("True", "ModelDownloadFailed")}, "403 on tos://b/p; check storage.secretRef"),
    (downloading, {"Ready": ("False", "Downloading"), "ModelReady": ("False", "Downloading"),
                   "Degraded": ("False", "Healthy"), "Progressing": ("True", "Starting")}, "kubectl logs POD -c fetch"),
    (download_refused_again, {"Ready": ("False", "ModelDownloadFailed"), "Degraded": ("True", "ModelDownloadFailed")},
     "403 SignatureDoesNotMatch"),
    (downloading_again, {"Ready": ("False", "Downloading"), "Degraded": ("False", "Healthy")}, "kubectl logs POD"),
    (image_missing, {"Ready": ("False", "ImagePullFailed"), "DecodeReady": ("False", "ImagePullFailed"),
                     "PrefillReady": ("True", "AllReady"), "Degraded": ("True", "ImagePullFailed")},
     "tandem-runtime:9"),
    (crash_loop, {"Ready": ("False", "ContainerFailed"), "ModelReady": ("True", "Available")}, "CUDA out of memory"),
    (container_refused, {"Ready": ("False", "ContainerNotStarted"), "Degraded": ("True", "ContainerNotStarted")},
     "CreateContainerError: no such device /dev/uverbs0"),
    (container_ends, {"Ready": ("False", "ContainerNotStarted")}, "back-off 5m0s"),
    (out_of_memory, {"PrefillReady": ("False", "ContainerFailed")}, "raise template.resources.limits.memory"),
    (no_gpu, {"Ready": ("False", "Unschedulable"), "Degraded": ("True", "Unschedulable")},
     "2 Insufficient nvidia.com/gpu"),
    (no_gpu_at_all, {"Ready": ("False", "Unschedulable"), "ModelReady": ("Unknown", "NoPodYet")}, "prefill"),
    (missing_secret, {"Ready": ("False", "PodNotStarting")}, 'secret "tos-cred" not found'),
    (starting, {"Ready": ("False", "Starting"), "Degraded": ("False", "Healthy")}, "0 of 1 pods"),
    (pod_gone, {"Ready": ("False", "Scaling"), "Progressing": ("True", "Scaling")}, "0 of 1 pods"),
    (pods_refused, {"Ready": ("False", "PodsRefused"), "PrefillReady": ("False", "PodsRefused"),
                    "DecodeReady": ("True", "AllReady"), "Degraded": ("True", "PodsRefused")}, "exceeded quota: q"),
    (gateway_refused, {"GatewayReady": ("False", "PodsRefused"), "Degraded": ("True", "PodsRefused")}, "PodSecurity"),
    (node_lost, {"Ready": ("False", "NodeLost"), "Degraded": ("True", "NodeLost")},
     "node gpu-7 does not answer; if it is gone for good, kubectl delete node gpu-7"),
    (gate_closed, {"Ready": ("False", "Starting"), "Degraded": ("False", "Healthy")}, "0 of 1 pods"),
    (pod_leaving, {"Ready": ("False", "Starting"), "DecodeReady": ("False", "Starting")}, "0 of 1 pods"),
    (pod_stuck, {"Ready": ("False", "StuckTerminating"), "Degraded": ("True", "StuckTerminating")},
     "if it is gone for good, kubectl delete node gpu-7, else kubectl delete pod chat-decode-"),
    (gateway_down, {"Ready": ("False", "NoGatewayReady"), "GatewayReady": ("False", "NoGatewayReady")}, "0 of 2"),
    (gateway_updating, {"Ready": ("False", "Updating"), "GatewayReady": ("False", "Updating")}, "2 of 2"),
    (gateway_rolling, {"Ready": ("False", "Updating"), "GatewayReady": ("False", "Updating")}, "2 of 2"),
    (gateway_key_missing, {"GatewayReady": ("False", "ConfigMissing"), "Degraded": ("True", "ConfigMissing")},
     "no key"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "expected", "says"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_conditions(broken: Callable[[Cluster], None], expected: dict[str, tuple[str, str]], says: str) -> None:
    cluster = Cluster(service())
    broken(cluster)
    found = cluster.conditions()
    assert {name: (found[name]["status"], found[name]["reason"]) for name in expected} == expected
    assert any(says in condition["message"] for condition in found.values())


def test_old_revision_left_over_is_not_ready() -> None:
    cluster = Cluster(service())
    cluster.service = service(("restartedAt", "now"))
    found = cluster.conditions()
    assert (found["Ready"]["status"], found["Progressing"]["reason"]) == ("False", "RollingOut")
    assert "of another revision are left" in found["PrefillReady"]["message"]


def test_suspended_service_says_so() -> None:
    cluster = Cluster(service(("suspend", True)))
    found = cluster.conditions()
    assert found["Ready"]["reason"] == found["DecodeReady"]["reason"] == "Suspended"
    assert found["Progressing"]["status"] == found["Degraded"]["status"] == "False"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (None, ("Unknown", "NoReportYet")),
        ({"type": "ScalingActive", "status": "True"}, ("True", "Active")),
        (
            {"type": "ScalingActive", "status": "False", "reason": "FailedGetPodsMetric"},
            ("False", "FailedGetPodsMetric"),
        ),
    ],
)
def test_autoscalers_tell_whether_they_work(condition: Manifest | None, expected: tuple[str, str]) -> None:
    cluster = Cluster(service(("decode.scaling", {"maxReplicas": 3})))
    cluster.child("HorizontalPodAutoscaler")["status"] = {"conditions": [condition]} if condition else {}
    found = cluster.conditions()["ScalingReady"]
    assert (found["status"], found["reason"]) == expected


def test_transition_time_changes_only_with_the_status() -> None:
    cluster = Cluster(service())
    seen = cluster.observed()
    facts = Facts.gather(cluster.service, plan(cluster.service, seen), seen)
    first = status(facts, {}, now=THEN, cluster_domain="x")
    assert status(facts, first, now=LATER, cluster_domain="x") == first
    halted = halted_status("InvalidSpec", "spec.model: …", first, first, generation=2, now=LATER)
    times = {c["type"]: c["lastTransitionTime"] for c in halted["conditions"]}
    assert times["Ready"] == LATER
    assert times["GatewayReady"] == times["Progressing"] == THEN
    assert halted["observedGeneration"] == 2


@pytest.mark.parametrize(
    ("ingress", "url"),
    [([], None), ([{"ip": "10.0.0.1"}], "http://10.0.0.1:8000"), ([{"hostname": "lb.example"}], "http://lb.example:8000"),
     ([{"ip": "fd00::1"}], "http://[fd00::1]:8000")],
)  # fmt: skip
def test_url_of_a_load_balancer(ingress: list[Manifest], url: str | None) -> None:
    cluster = Cluster(service(("gateway.service.type", "LoadBalancer")))
    gateway = next(c for c in cluster.children if (c["kind"], c["metadata"]["name"]) == ("Service", "chat-gateway"))
    gateway["status"] = {"loadBalancer": {"ingress": ingress}}
    seen = cluster.observed()
    facts = Facts.gather(cluster.service, plan(cluster.service, seen), seen)
    assert status(facts, {}, now=THEN, cluster_domain="x").get("url") == url


def test_status_fits_its_schema() -> None:
    cluster = Cluster(service())
    seen = cluster.observed()
    facts = Facts.gather(cluster.service, plan(cluster.service, seen), seen)
    written = status(facts, {}, now=THEN, cluster_domain="x")
    read = InferenceServiceStatus.model_validate(written).model_dump(by_alias=True, exclude_none=True)
    assert read == written
