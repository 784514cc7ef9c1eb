"""What stands around the pods: disruption budgets, network policy, autoscalers, monitoring, headless Services."""

from __future__ import annotations

from tandem_contract import labels, ports

from tandem_operator.api.roles import RoleSpec, ScalingTarget
from tandem_operator.api.service import InvalidSpec
from tandem_operator.plan import names
from tandem_operator.plan.context import ENGINE_ROLES, EngineRole, Installation, Manifest, Service

MAX_RANKS = 8
"""Largest tensor parallelism; so many KV data ports."""


def guards(service: Service, installation: Installation, *, pod_monitors: bool) -> list[Manifest]:
    children = [
        names.child(
            service,
            "v1",
            "ServiceAccount",
            names.engine_account(service.name),
            "engine",
            automountServiceAccountToken=False,
        ),
        _network_policy(service),
    ]
    for role in ENGINE_ROLES:
        children += [_headless(service, role), _disruption_budget(service, role, names.role(service.name, role))]
    children.append(_disruption_budget(service, "gateway", names.gateway(service.name)))
    if pod_monitors and service.spec.monitoring.pod_monitor:
        children.append(_pod_monitor(service, installation))
    return children


def autoscaler(service: Service, role: EngineRole, engine_set: str) -> Manifest | None:
    spec: RoleSpec = getattr(service.spec, role)
    if spec.scaling is None:
        return None
    return names.child(
        service,
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        names.role(service.name, role),
        role,
        spec={
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": engine_set},
            "minReplicas": spec.scaling.min_replicas,
            "maxReplicas": spec.scaling.max_replicas,
            "metrics": [_metric(target) for target in spec.scaling.targets],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": spec.scaling.scale_down_stabilization_seconds}},
        },
    )


def _metric(target: ScalingTarget) -> Manifest:
    if target.metric == "cpu":
        if not str(target.average).isdigit():
            raise InvalidSpec(
                f"scaling.targets[].average: {target.average} must be whole percent of the request for cpu"
            )
        utilization = {"type": "Utilization", "averageUtilization": int(target.average)}
        return {"type": "Resource", "resource": {"name": "cpu", "target": utilization}}
    average = {"type": "AverageValue", "averageValue": str(target.average)}
    return {"type": "Pods", "pods": {"metric": {"name": target.metric}, "target": average}}


def _headless(service: Service, role: EngineRole) -> Manifest:
    return names.child(
        service,
        "v1",
        "Service",
        names.role(service.name, role),
        role,
        spec={
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(service, role),
            "ports": [
                {"name": "http", "port": ports.API, "targetPort": "http"},
                {"name": "metrics", "port": ports.METRICS, "targetPort": "metrics"},
            ],
        },
    )


def _disruption_budget(service: Service, role: str, name: str) -> Manifest:
    return names.child(
        service,
        "policy/v1",
        "PodDisruptionBudget",
        name,
        role,
        spec={
            "maxUnavailable": 1,
            "selector": {"matchLabels": names.selector(service, role)},
            # A pod that never becomes ready must not hold up the draining of its node.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    )


def _network_policy(service: Service) -> Manifest:
    """Engine pods: the API for the gateway, handoff and KV data among themselves, metrics for everyone."""
    engines = {
        "matchLabels": names.selector(service),
        "matchExpressions": [{"key": labels.ROLE, "operator": "In", "values": list(ENGINE_ROLES)}],
    }
    return names.child(
        service,
        "networking.k8s.io/v1",
        "NetworkPolicy",
        names.engine_account(service.name),
        "engine",
        spec={
            "podSelector": engines,
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": names.selector(service, "gateway")}}],
                    "ports": [{"port": ports.API, "protocol": "TCP"}],
                },
                {"ports": [{"port": ports.METRICS, "protocol": "TCP"}]},
                {
                    "from": [{"podSelector": engines}],
                    "ports": [
                        {"port": ports.HANDOFF, "protocol": "TCP"},
                        {"port": ports.KV_DATA, "endPort": ports.KV_DATA + MAX_RANKS - 1, "protocol": "TCP"},
                    ],
                },
            ],
        },
    )


def _pod_monitor(service: Service, installation: Installation) -> Manifest:
    manifest = names.child(
        service,
        "monitoring.coreos.com/v1",
        "PodMonitor",
        service.name,
        "monitoring",
        spec={
            "selector": {"matchLabels": names.selector(service)},
            "podMetricsEndpoints": [{"port": "metrics", "path": "/metrics"}],
            "podTargetLabels": [labels.SERVICE, labels.ROLE, labels.REVISION],
        },
    )
    given = installation.platform.monitor_labels | dict(service.spec.monitoring.labels)
    manifest["metadata"]["labels"] = given | manifest["metadata"]["labels"]
    return manifest
