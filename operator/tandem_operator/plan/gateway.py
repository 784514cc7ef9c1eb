"""The gateway's Deployment, Service and right to see its pods."""

from __future__ import annotations

import hashlib
import json

from tandem_contract import ports
from tandem_contract.flags import GatewayFlags, to_argv

from tandem_operator.plan import names
from tandem_operator.plan.context import Installation, Manifest, Service
from tandem_operator.plan.observed import RECORDED_TEMPLATE, SHAPE, recorded_template
from tandem_operator.plan.pods import API_KEYS, TICKET_KEYS, container, drain_seconds, pod_template, resources, serving
from tandem_operator.plan.ticket_keys import FILE

ROLE = "gateway"
STARTUP_S = 3600
"""A gateway is ready once a decode pod is; until then it waits for the model like everyone else."""

_NOT_SHAPING = {"replicas", "service"}
"""Fields of `spec.gateway` that pods do not see."""


def gateway_children(
    service: Service, installation: Installation, deployed: Manifest | None, exposed: Manifest | None
) -> list[Manifest]:
    """`deployed` and `exposed`: the gateway's Deployment and Service as they are now."""
    name = names.gateway(service.name)
    return [
        names.child(service, "v1", "ServiceAccount", name, ROLE, automountServiceAccountToken=False),
        names.child(
            service,
            "rbac.authorization.k8s.io/v1",
            "Role",
            name,
            ROLE,
            rules=[{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}],
        ),
        names.child(
            service,
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            name,
            ROLE,
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            subjects=[{"kind": "ServiceAccount", "name": name, "namespace": service.namespace}],
        ),
        _service(service, installation, exposed),
        _deployment(service, installation, deployed),
    ]


def _service(service: Service, installation: Installation, exposed: Manifest | None) -> Manifest:
    wanted = service.spec.gateway.service
    annotations, balancer_class = dict(wanted.annotations), wanted.load_balancer_class
    if wanted.type == "LoadBalancer" and balancer_class is None:
        usual = installation.platform.load_balancer
        annotations = usual.annotations | annotations
        current = (exposed or {}).get("spec", {})
        # A load balancer keeps the class it was made with: the API server refuses another.
        made = current.get("type") == "LoadBalancer"
        balancer_class = current.get("loadBalancerClass") if made else usual.load_balancer_class
    open_ports = [{"name": "http", "port": ports.API, "targetPort": "http"}]
    if wanted.expose_metrics:
        open_ports.append({"name": "metrics", "port": ports.METRICS, "targetPort": "metrics"})
    optional = {
        "loadBalancerClass": balancer_class,
        "loadBalancerSourceRanges": wanted.load_balancer_source_ranges or None,
        "externalTrafficPolicy": wanted.external_traffic_policy,
    }
    manifest = names.child(
        service,
        "v1",
        "Service",
        names.gateway(service.name),
        ROLE,
        spec={
            "type": wanted.type,
            "selector": names.selector(service, ROLE),
            "ports": open_ports,
            **{key: value for key, value in optional.items() if value is not None},
        },
    )
    if annotations:
        manifest["metadata"]["annotations"] = annotations
    return manifest


def _deployment(service: Service, installation: Installation, deployed: Manifest | None) -> Manifest:
    spec = service.spec.gateway
    shape = _shape(service)
    same = ((deployed or {}).get("metadata", {}).get("annotations") or {}).get(SHAPE) == shape
    template = (recorded_template(deployed) if same else None) or gateway_template(service, installation)
    manifest = names.child(
        service,
        "apps/v1",
        "Deployment",
        names.gateway(service.name),
        ROLE,
        spec={
            "replicas": 0 if service.spec.suspend else spec.replicas,
            "selector": {"matchLabels": names.selector(service, ROLE)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 2,
            "template": template,
        },
    )
    record = json.dumps(template, sort_keys=True, separators=(",", ":"))
    manifest["metadata"]["annotations"] = {SHAPE: shape, RECORDED_TEMPLATE: record}
    return manifest


def gateway_template(service: Service, installation: Installation) -> Manifest:
    spec = service.spec.gateway
    keys = spec.auth.api_key_secret_ref
    flags = GatewayFlags(
        kubernetes_service=service.full_name,
        strategy=spec.strategy,
        api_key_file=f"{API_KEYS}/{keys.key}" if keys else None,
        ticket_key_file=f"{TICKET_KEYS}/{FILE}",
        drain_timeout=drain_seconds(spec.template),
        ui=spec.ui,
        log_format="json",
    )
    mounts = [{"name": "ticket-key", "mountPath": TICKET_KEYS, "readOnly": True}]
    volumes: list[Manifest] = [{"name": "ticket-key", "secret": {"secretName": names.ticket_key(service.name)}}]
    if keys:
        mounts.append({"name": "api-keys", "mountPath": API_KEYS, "readOnly": True})
        volumes.append({"name": "api-keys", "secret": {"secretName": keys.name}})
    gateway = container(
        "gateway",
        spec.template,
        image=spec.template.image or installation.small_image,
        args=["gateway", *to_argv(flags)],
        env_=[("HOME", "/tmp")],
        mounts=mounts,
        resources=resources(spec.template, requests={"cpu": "500m", "memory": "512Mi"}, limits={}),
        **serving(STARTUP_S),
    )
    return pod_template(
        service,
        ROLE,
        spec.template,
        container=gateway,
        volumes=volumes,
        service_account=names.gateway(service.name),
        token=True,
    )


def _shape(service: Service) -> str:
    dump = service.spec.gateway.model_dump(mode="json", exclude_defaults=True)
    shaping = {key: value for key, value in dump.items() if key not in _NOT_SHAPING}
    shaping["restarted_at"] = service.spec.restarted_at
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:8]
