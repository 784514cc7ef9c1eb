"""What a reconcile saw of a service's children, reduced to what decisions need. Read from plain manifests, no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Observed:
    children: Mapping[ChildKey, Manifest]
    pods: Sequence[Manifest]
    """Engine and gateway pods of the service."""
    pod_monitors: bool
    """Whether the cluster has the PodMonitor CRD."""
    events: Mapping[str, str]
    """Latest warning by name of the object it is about, such as a pod's FailedScheduling."""

    def get(self, kind: str, name: str) -> Manifest | None:
        return self.children.get((kind, name))

    def engine_sets(self) -> list[EngineSet]:
        found = [EngineSet.read(m, self.pods) for (kind, _), m in self.children.items() if kind == "StatefulSet"]
        return [s for s in found if s is not None]


@dataclass(frozen=True, slots=True)
class EngineSet:
    manifest: Manifest
    view: SetView
    wanted: int | None
    pods: tuple[Manifest, ...]

    @property
    def created(self) -> str:
        """RFC 3339 in UTC, so that text sorts as time."""
        return str(self.manifest["metadata"].get("creationTimestamp", ""))

    @classmethod
    def read(cls, manifest: Manifest, pods: Sequence[Manifest]) -> EngineSet | None:
        """None for a StatefulSet without our labels."""
        meta = manifest["metadata"]
        tags = meta.get("labels", {})
        role, revision = tags.get(labels.ROLE), tags.get(labels.REVISION)
        if role not in ENGINE_ROLES or not revision:
            return None
        mine = tuple(pod for pod in pods if _owner(pod) == meta["name"])
        wanted = meta.get("annotations", {}).get(WANTED, "")
        view = SetView(
            role=cast("EngineRole", role),
            revision=revision,
            replicas=manifest["spec"].get("replicas", 1),
            existing=max(len(mine), manifest.get("status", {}).get("replicas", 0)),
            ready=sum(map(is_ready, mine)),
            came_up=any(map(has_started, mine)),
        )
        return cls(manifest, view, int(wanted) if wanted.isdigit() else None, mine)


def is_ready(pod: Manifest) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        c["type"] == "Ready" and c["status"] == "True" for c in conditions
    )


def has_started(pod: Manifest) -> bool:
    """Its startup probe has passed since the container last started."""
    return is_ready(pod) or any(c.get("started") for c in pod.get("status", {}).get("containerStatuses", []))


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
