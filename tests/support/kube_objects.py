"""What an API server makes of objects: kinds, selectors, merges by field manager. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]
KINDS = {
    "inferenceservices": ("serving.tandem.dev/v1alpha1", "InferenceService"),
    "pods": ("v1", "Pod"), "events": ("v1", "Event"), "secrets": ("v1", "Secret"), "services": ("v1", "Service"),
    "serviceaccounts": ("v1", "ServiceAccount"), "leases": ("coordination.k8s.io/v1", "Lease"),
    "statefulsets": ("apps/v1", "StatefulSet"), "deployments": ("apps/v1", "Deployment"),
    "roles": ("rbac.authorization.k8s.io/v1", "Role"), "rolebindings": ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    "poddisruptionbudgets": ("policy/v1", "PodDisruptionBudget"),
    "networkpolicies": ("networking.k8s.io/v1", "NetworkPolicy"),
    "horizontalpodautoscalers": ("autoscaling/v2", "HorizontalPodAutoscaler"),
    "podmonitors": ("monitoring.coreos.com/v1", "PodMonitor"),
    # kopf waits until it has discovered these two.
    "namespaces": ("v1", "Namespace"),
    "customresourcedefinitions": ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
}  # fmt: skip
ATOMIC = frozenset({"selector", "podSelector", "nodeSelector"})
"""Maps that server-side apply replaces as a whole."""
PLURALS = {kind: plural for plural, (_, kind) in KINDS.items()}


def told(version: int, before: Object | None, after: Object | None, query: Mapping[str, str]) -> list[Object]:
    """What a watch hears of a change: an object that no longer matches its selector is deleted, for that watch."""
    was, is_ = before is not None and selected(before, query), after is not None and selected(after, query)
    if is_:
        return [{"type": "MODIFIED" if was else "ADDED", "object": after}]
    if was and before is not None:
        meta = before["metadata"] | {"resourceVersion": str(version)}
        return [{"type": "DELETED", "object": {**before, "metadata": meta}}]
    return []


def selected(thing: Object, query: Mapping[str, str]) -> bool:
    tags = thing["metadata"].get("labels") or {}
    for part in filter(None, query.get("labelSelector", "").split(",")):
        name, equals, value = part.partition("=")
        if name not in tags or (equals and tags[name] != value):
            return False
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        path, unequal, value = part.replace("!=", "=").partition("=")[0], "!=" in part, part.rpartition("=")[2]
        field: Any = thing
        for name in path.split("."):
            field = field.get(name, "")
        if (field == value) == unequal:
            return False
    return True


def unknown_field(thing: Object) -> str | None:
    affinity = thing.get("spec", {}).get("template", {}).get("spec", {}).get("affinity", {})
    unknown = affinity.keys() - {"nodeAffinity", "podAffinity", "podAntiAffinity"}
    return f".spec.template.spec.affinity.{min(unknown)}" if unknown else None


def merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return copy.deepcopy(new)
    both = {**old, **{k: v if k in ATOMIC else merged(old.get(k), v) for k, v in new.items()}}
    return {key: value for key, value in both.items() if value is not None}


def take_out(current: Object, before: Object, after: Object) -> None:
    """Fields a manager applied before and no longer does."""
    for key, value in before.items():
        if key not in after:
            current.pop(key, None)
        elif isinstance(value, dict) and isinstance(after[key], dict) and isinstance(current.get(key), dict):
            take_out(current[key], value, after[key])


def without_version(thing: Object) -> Object:
    return {**thing, "metadata": {k: v for k, v in thing["metadata"].items() if k != "resourceVersion"}}
