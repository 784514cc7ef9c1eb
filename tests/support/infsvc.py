"""InferenceServices and the children they would have in a cluster, for tests of the operator's decisions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from support.bad_specs import service as body_of
from tandem_operator.api.service import parse_spec
from tandem_operator.plan.children import Plan, plan_children
from tandem_operator.plan.context import Installation, Manifest, Service
from tandem_operator.plan.observed import Observed
from tandem_operator.platform import Platform, RdmaDevices
from tandem_operator.presets import load

RDMA = RdmaDevices(
    resource_name="example.com/rdma", network_annotation="example.com/networks", network={"name": "fast"}, gid_index=3
)
INSTALLATION = Installation(
    engine_image="tandem-runtime:1", small_image="tandem:1", presets=load(), platform=Platform(rdma=RDMA)
)
KEY = "k" * 32
NOW = 1_800_000_000.0


def service(*changes: tuple[str, Any], body: Manifest | None = None) -> Service:
    body = body_of(*changes) if body is None else body
    return Service(name="chat", namespace="default", uid="uid-1", generation=1, spec=parse_spec(body))


def observed(children: Iterable[Manifest] = (), pods: Sequence[Manifest] = (), **more: Any) -> Observed:
    by_key = {(child["kind"], child["metadata"]["name"]): copy.deepcopy(child) for child in children}
    return Observed(**{"children": by_key, "pods": pods, "pod_monitors": False, "events": {}, "at": NOW, **more})


def plan(wanted: Service, seen: Observed | None = None, installation: Installation = INSTALLATION) -> Plan:
    return plan_children(wanted, seen or observed(), installation, fresh_key=KEY, now=NOW)


def child(children: Iterable[Manifest], kind: str, name: str) -> Manifest:
    return next(c for c in children if (c["kind"], c["metadata"]["name"]) == (kind, name))


def engine_sets(plan_: Plan, role: str = "") -> list[Manifest]:
    return [c for c in plan_.children if c["kind"] == "StatefulSet" and role in c["metadata"]["name"]]


def pods_of(manifest: Manifest, *, ready: bool = True, **status: Any) -> list[Manifest]:
    """All pods of a StatefulSet or Deployment manifest, in one state."""
    name = manifest["metadata"]["name"]
    return [
        {
            "metadata": {
                "name": f"{name}-{ordinal}",
                "labels": manifest["spec"]["template"]["metadata"]["labels"],
                "ownerReferences": [{"name": name, "kind": manifest["kind"], "controller": True}],
            },
            "status": {
                "phase": "Running" if ready else "Pending",
                "conditions": [{"type": "Ready", "status": str(ready)}],
                "containerStatuses": [{"name": "engine", "started": ready}],
                **status,
            },
        }
        for ordinal in range(manifest["spec"]["replicas"])
    ]
