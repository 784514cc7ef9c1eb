"""What pods say about themselves: why one is not running, in its own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tandem_contract.fetch_flags import EXIT_PERMANENT

from tandem_operator.plan.context import Manifest

HARMLESS = frozenset({"ContainerCreating", "PodInitializing"})
IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})


@dataclass(frozen=True, slots=True)
class Trouble:
    reason: str
    """CamelCase, a condition's reason."""
    message: str
    pod: str
    fetching: bool
    """In the init container: the model, not the engine."""


def first_trouble(pods: Iterable[Manifest], events: Mapping[str, str]) -> Trouble | None:
    """Of the pod with the lowest ordinal in trouble, so that the answer does not jump between pods."""
    for pod in sorted(pods, key=lambda pod: (len(pod["metadata"]["name"]), pod["metadata"]["name"])):
        found = trouble(pod, events)
        if found is not None:
            return found
    return None


def trouble(pod: Manifest, events: Mapping[str, str]) -> Trouble | None:
    name, status = pod["metadata"]["name"], pod.get("status", {})
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
        message = f"node {node} does not answer; if it is gone for good, kubectl delete node {node}"
        return Trouble("NodeLost", message, name, False)
    # Before a container exists (a missing Secret, a volume that cannot be mounted) only events tell; later ones only
    # repeat that it was started again.
    if status.get("phase") == "Pending" and not fetching(pod) and name in events:
        return Trouble("PodNotStarting", events[name], name, False)
    return None


def fetching(pod: Manifest) -> bool:
    """The init container is at work."""
    return any("running" in c.get("state", {}) for c in pod.get("status", {}).get("initContainerStatuses", []))


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
