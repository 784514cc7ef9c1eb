"""Gathers what a reconcile decides on: children and pods from the mirror, the Secret and events from the API server."""

from __future__ import annotations

from dataclasses import replace

from tandem_operator.cluster.kinds import POD, SECRET
from tandem_operator.cluster.mirror import Mirror
from tandem_operator.cluster.pod_warnings import PodWarnings
from tandem_operator.plan.context import Manifest
from tandem_operator.plan.observed import Observed
from tandem_operator.status.trouble import lacks_pods, unexplained


async def observe(
    mirror: Mirror, warnings: PodWarnings, namespace: str, name: str, uid: str, secret: Manifest | None, *, now: float
) -> Observed:
    """`secret`: the one that has the name of the service's ticket keys, whoever owns it."""
    children, pods = {}, []
    for kind, thing in mirror.of_service(namespace, name):
        if kind == POD.kind:
            pods.append(thing)
        elif owned(thing, uid):
            children[kind, thing["metadata"]["name"]] = thing
    if secret is not None and owned(secret, uid):
        children[SECRET.kind, secret["metadata"]["name"]] = {
            **secret, "apiVersion": SECRET.api_version, "kind": SECRET.kind,
        }  # fmt: skip
    seen = Observed(children, pods, mirror.pod_monitors, {}, now)
    puzzling = {pod["metadata"]["name"]: "" for pod in pods if unexplained(pod, now)}
    # A set's warning from before it could make its newest pod is over.
    puzzling |= {s.name: s.moved for s in seen.engine_sets() if lacks_pods(s, now)}
    return replace(seen, events=await warnings.of(namespace, puzzling)) if puzzling else seen


def owned(child: Manifest, uid: str) -> bool:
    owners = child["metadata"].get("ownerReferences", [])
    return any(owner["uid"] == uid and owner.get("controller") for owner in owners)
