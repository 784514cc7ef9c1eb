"""What pods say about themselves: why one is not running, in its own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tandem_contract.fetch_flags import EXIT_PERMANENT

from tandem_operator.plan.context import Manifest
from tandem_operator.plan.observed import EngineSet, Observed, is_overdue, unix_seconds

PATIENCE_S = 10.0
"""A pod's volumes, network and first container usually take less."""
HARMLESS = frozenset({"ContainerCreating", "PodInitializing"})
IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})


@dataclass(frozen=True, slots=True)
class Trouble:
    reason: str
    """CamelCase, a condition's reason."""
    message: str
    pod: str | None
    """None: of pods that are not even made."""
    fetching: bool
    """In the init container: the model, not the engine."""


def first_trouble(pods: Iterable[Manifest], observed: Observed) -> Trouble | None:
    """Of the pod with the lowest ordinal in trouble, so that the answer does not jump between pods."""
    for pod in sorted(pods, key=lambda pod: (len(pod["metadata"]["name"]), pod["metadata"]["name"])):
        found = trouble(pod, observed.events, observed.at)
        if found is not None:
            return found
    return None


def set_trouble(engine_set: EngineSet, observed: Observed) -> Trouble | None:
    """Of its pods, or of those that it cannot make: a quota, a limit range or Pod Security is against them."""
    found = first_trouble(engine_set.pods, observed)
    if found is None and lacks_pods(engine_set, observed.at) and engine_set.name in observed.events:
        return Trouble("PodsRefused", observed.events[engine_set.name], None, False)
    return found


def lacks_pods(engine_set: EngineSet, now: float) -> bool:
    """Has been without some of its pods for longer than it takes to make them."""
    missing = engine_set.view.existing < engine_set.view.replicas
    return missing and now - unix_seconds(engine_set.moved) >= PATIENCE_S


def deployment_trouble(deployment: Manifest) -> Trouble | None:
    """The same of a Deployment, which tells it itself."""
    for condition in deployment.get("status", {}).get("conditions", []):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return Trouble("PodsRefused", condition.get("message", ""), None, False)
    return None


def trouble(pod: Manifest, events: Mapping[str, str], now: float) -> Trouble | None:
    """`events`: latest warning by pod; `now` in Unix seconds."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if is_overdue(pod, now):
        return _overdue(pod)
    for container in status.get("initContainerStatuses", []):
        found = _of_container(name, container, fetching=True)
        if found is not None:
            return found
    for container in status.get("containerStatuses", []):
        found = _of_container(name, container, fetching=False)
        if found is not None:
            return found
    conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
    if conditions.get("PodScheduled", {}).get("status") == "False":
        return Trouble("Unschedulable", conditions["PodScheduled"].get("message", "no node fits"), name, False)
    if _unheard_of(conditions):
        node = pod.get("spec", {}).get("nodeName")
        return Trouble("NodeLost", f"node {node} does not answer; {_if_gone(node)}", name, False)
    # Before a container exists (a missing Secret, a volume that cannot be mounted) only events tell; later ones only
    # repeat that it was started again.
    if status.get("phase") == "Pending" and not fetching(pod) and name in events:
        return Trouble("PodNotStarting", events[name], name, False)
    return None


def unexplained(pod: Manifest, now: float) -> bool:
    """Its node has had it for a while, no container has begun, and its status does not say why: only events can."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending" or fetching(pod) or trouble(pod, {}, now) is not None:
        return False
    return any(
        c["type"] == "PodScheduled"
        and c["status"] == "True"
        and now - unix_seconds(c.get("lastTransitionTime", "")) >= PATIENCE_S
        for c in status.get("conditions", [])
    )


def fetching(pod: Manifest) -> bool:
    """The init container is at work."""
    return any("running" in c.get("state", {}) for c in pod.get("status", {}).get("initContainerStatuses", []))


def _overdue(pod: Manifest) -> Trouble:
    meta, node = pod["metadata"], pod.get("spec", {}).get("nodeName")
    message = (
        f"node {node} has not said that it ended (due {meta['deletionTimestamp']}), and until then it is not replaced; "
        f"{_if_gone(node)}, else kubectl delete pod {meta['name']} --force"
    )
    return Trouble("StuckTerminating", message, meta["name"], False)


def _if_gone(node: str) -> str:
    return f"if it is gone for good, kubectl delete node {node}"


def _unheard_of(conditions: Mapping[str, Manifest]) -> bool:
    """The control plane has declared the pod unready in the place of its kubelet, which would say so of its containers
    too, or name the gate that is closed."""
    ready, containers = conditions.get("Ready", {}), conditions.get("ContainersReady", {})
    said_otherwise = ready.get("status") == "False" and containers.get("status") == "True"
    return said_otherwise and ready.get("reason") != "ReadinessGatesNotReady"


def _of_container(pod: str, container: Manifest, *, fetching: bool) -> Trouble | None:
    state, last = container.get("state", {}), container.get("lastState", {}).get("terminated", {})
    waiting, ended = state.get("waiting"), state.get("terminated")
    if ended and ended.get("exitCode", 0) != 0:
        last = ended
    elif fetching and "running" in state and last.get("exitCode") == EXIT_PERMANENT:
        # It is refused once more: the answer must not come and go with each attempt.
        pass
    elif waiting and waiting.get("reason") in IMAGE:
        return Trouble("ImagePullFailed", f"{container.get('image', '')}: {waiting.get('message', '')}", pod, False)
    elif waiting and waiting.get("reason") == "CreateContainerConfigError":
        return Trouble("ConfigMissing", waiting.get("message", ""), pod, False)
    elif not waiting or waiting.get("reason") in HARMLESS:
        return None
    if not last or last.get("exitCode", 0) == 0:
        # Never begun (CreateContainerError), or ended without an error over and over.
        return Trouble("ContainerNotStarted", f"{waiting['reason']}: {waiting.get('message', '')}", pod, False)
    said = last.get("message", "").strip() or last.get("reason", "")
    message = f"exit code {last['exitCode']}: {said[-1000:]}"
    if last.get("reason") == "OOMKilled":
        message = "out of memory: raise template.resources.limits.memory"
    return Trouble("ModelDownloadFailed" if fetching else "ContainerFailed", message, pod, fetching)
