"""What a reconcile saw of a service's children, reduced to what decisions need. Read from plain manifests, no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from tandem_contract import labels

from tandem_operator.plan.context import ENGINE_ROLES, EngineRole, Manifest
from tandem_operator.plan.rollout import SetView

ChildKey = tuple[str, str]
"""Kind and name, within one service's namespace."""

RECORDED_TEMPLATE = "serving.tandem.dev/template"
"""Annotation: the pod template as first rendered, so that a newer operator leaves running pods alone."""
SHAPE = "serving.tandem.dev/shape"
"""Annotation of the gateway Deployment: hash of the fields its recorded template was made from."""
WANTED = "serving.tandem.dev/wanted-replicas"
"""Annotation of an autoscaled set: pods the role had when the rollout to this set began."""
CAME_UP = "serving.tandem.dev/came-up"
"""Annotation of a set of which a pod has finished starting: so that this is known while all its pods start again. Where
it is lost, the pods say so once more when one is up."""
OVERDUE_S = 60.0
"""A pod that is still there so long after the end of its grace period is not leaving: its node is lost or stuck."""
FAILING = frozenset({"CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "CreateContainerConfigError"})
"""Reasons for which a container waits that do not pass by themselves."""


@dataclass(frozen=True, slots=True)
class Observed:
    children: Mapping[ChildKey, Manifest]
    pods: Sequence[Manifest]
    """Engine and gateway pods of the service."""
    pod_monitors: bool
    """Whether the cluster has the PodMonitor CRD."""
    events: Mapping[str, str]
    """Latest warning by name of the pod or set it is about, such as a volume that cannot be mounted."""
    at: float
    """Unix seconds."""

    def get(self, kind: str, name: str) -> Manifest | None:
        return self.children.get((kind, name))

    def engine_sets(self) -> list[EngineSet]:
        sets = [child for (kind, _), child in self.children.items() if kind == "StatefulSet"]
        found = [EngineSet.read(manifest, self.pods, self.at) for manifest in sets]
        return [s for s in found if s is not None]


@dataclass(frozen=True, slots=True)
class EngineSet:
    manifest: Manifest
    view: SetView
    wanted: int | None
    pods: tuple[Manifest, ...]
    came_up: bool
    """Whether any pod of it has ever finished starting, as far as is known."""

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def moved(self) -> str:
        """When it last made a pod, or was made itself; RFC 3339 in UTC."""
        return max((str(pod["metadata"].get("creationTimestamp", "")) for pod in self.pods), default=self.created)

    @property
    def created(self) -> str:
        """RFC 3339 in UTC, so that text sorts as time."""
        return str(self.manifest["metadata"].get("creationTimestamp", ""))

    @classmethod
    def read(cls, manifest: Manifest, pods: Sequence[Manifest], now: float) -> EngineSet | None:
        """None for a StatefulSet without our labels."""
        meta = manifest["metadata"]
        tags = meta.get("labels", {})
        role, revision = tags.get(labels.ROLE), tags.get(labels.REVISION)
        if role not in ENGINE_ROLES or not revision:
            return None
        mine = tuple(pod for pod in pods if _owner(pod) == meta["name"])
        notes = meta.get("annotations") or {}
        wanted = notes.get(WANTED, "")
        overdue = sum(is_overdue(pod, now) for pod in mine)
        came_up = CAME_UP in notes or any(map(has_started, mine))
        view = SetView(
            role=cast("EngineRole", role),
            revision=revision,
            replicas=manifest["spec"].get("replicas", 1),
            existing=max(len(mine), manifest.get("status", {}).get("replicas", 0)) - overdue,
            ready=sum(map(is_ready, mine)),
            # What once came up and now fails in all its pods must not hold up what repairs it.
            came_up=any(map(has_started, mine)) or (came_up and not (mine and all(map(is_failing, mine)))),
        )
        return cls(manifest, view, int(wanted) if wanted.isdigit() else None, mine, came_up)


def is_ready(pod: Manifest) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        c["type"] == "Ready" and c["status"] == "True" for c in conditions
    )


def has_started(pod: Manifest) -> bool:
    """Its startup probe has passed since the container last started."""
    return is_ready(pod) or any(c.get("started") for c in pod.get("status", {}).get("containerStatuses", []))


def is_failing(pod: Manifest) -> bool:
    """A container of it was tried and is not tried again at once."""
    status = pod.get("status", {})
    containers = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return any(c.get("state", {}).get("waiting", {}).get("reason") in FAILING for c in containers)


def is_overdue(pod: Manifest, now: float) -> bool:
    """Should be gone, and cannot be waited for. On a lost node it holds no GPU that anyone could use; on a node that
    answers, the scheduler knows that its GPUs are still taken."""
    # Kubernetes puts the end of the grace period there.
    due = pod["metadata"].get("deletionTimestamp")
    return due is not None and now - unix_seconds(due) >= OVERDUE_S


def unix_seconds(time: str) -> float:
    """Of RFC 3339; 0 where there is none."""
    return datetime.fromisoformat(time).timestamp() if time else 0.0


def recorded_template(manifest: Manifest | None) -> Manifest | None:
    """None where there is no record, or someone made it unreadable."""
    annotations: Mapping[str, str] = (manifest or {}).get("metadata", {}).get("annotations") or {}
    try:
        recorded: Any = json.loads(annotations.get(RECORDED_TEMPLATE, "null"))
    except ValueError:
        return None
    return recorded if isinstance(recorded, dict) else None


def _owner(pod: Manifest) -> str | None:
    for owner in pod["metadata"].get("ownerReferences", []):
        if owner.get("controller"):
            return str(owner["name"])
    return None
