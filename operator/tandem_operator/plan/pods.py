"""What all our pods have in common: hygiene, and the fields users set through `template`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tandem_contract import env, labels, ports

from tandem_operator.api.pods import PodTemplate
from tandem_operator.plan.context import Manifest, Service
from tandem_operator.plan.names import selector

TICKET_KEYS = "/etc/tandem/ticket-key"
"""Folder of the mounted Secret; its file is `ticket_keys.FILE`."""
API_KEYS = "/etc/tandem/api-keys"
PRE_STOP_S = 5
"""Pause before SIGTERM, in which gateways and kube-proxy learn that the pod is leaving."""
DRAIN_MARGIN_S = 15
"""Between the end of the drain and SIGKILL."""
LOCKED_DOWN: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def pod_template(
    service: Service,
    role: str,
    template: PodTemplate,
    *,
    container: Manifest,
    volumes: Iterable[Manifest],
    init_containers: Iterable[Manifest] = (),
    labels_: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    service_account: str,
    token: bool,
) -> Manifest:
    user = template.security_context
    queue_labels, queue_annotations = _queue(template)
    spec: Manifest = {
        "serviceAccountName": template.service_account_name or service_account,
        "automountServiceAccountToken": token,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": template.termination_grace_period_seconds,
        "securityContext": {
            "runAsNonRoot": user.run_as_user != 0,
            "runAsUser": user.run_as_user,
            "runAsGroup": user.run_as_group,
            "fsGroup": user.fs_group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(service, role)},
            }
        ],
        "initContainers": list(init_containers),
        "containers": [container],
        "volumes": [*volumes, {"name": "tmp", "emptyDir": {}}, *(_dump(volume) for volume in template.volumes)],
        "imagePullSecrets": [{"name": name} for name in template.image_pull_secrets],
        "nodeSelector": template.node_selector,
        "tolerations": [_dump(toleration) for toleration in template.tolerations],
        "affinity": template.affinity,
        "schedulerName": template.scheduler_name,
        "priorityClassName": template.priority_class_name,
        "runtimeClassName": template.runtime_class_name,
    }
    tags = selector(service, role) | {labels.NAME: "tandem", labels.COMPONENT: role, labels.INSTANCE: service.name}
    metadata = {
        "labels": template.labels | queue_labels | tags | (labels_ or {}),
        "annotations": (annotations or {}) | queue_annotations | template.annotations,
    }
    return {"metadata": _filled(metadata), "spec": _filled(spec)}


def container(
    name: str,
    template: PodTemplate,
    *,
    image: str,
    args: list[str],
    env_: Iterable[tuple[str, str]] = (),
    mounts: Iterable[Manifest] = (),
    **more: Any,
) -> Manifest:
    """A container that runs `tandem` with `args`; the user's env wins over `env_`, never over the pod's identity."""
    given = {entry.name: _dump(entry) for entry in template.env}
    ours = {key: {"name": key, "value": value} for key, value in env_}
    identity = {
        env.POD_NAME: {"name": env.POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        env.POD_IP: {"name": env.POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    }
    return _filled(
        {
            "name": name,
            "image": image,
            "imagePullPolicy": template.image_pull_policy,
            "command": ["tandem"],
            "args": args,
            "env": list((ours | given | identity).values()),
            "volumeMounts": [
                *mounts,
                {"name": "tmp", "mountPath": "/tmp"},
                *(_dump(mount) for mount in template.volume_mounts),
            ],
            "securityContext": LOCKED_DOWN,
            "terminationMessagePolicy": "FallbackToLogsOnError",
            **more,
        }
    )


def serving(startup_timeout_s: int) -> Manifest:
    """Ports, probes and preStop of a container that serves; alive is asked only after it was ready once."""

    def probe(path: str, period: int, failures: int) -> Manifest:
        return {
            "httpGet": {"path": path, "port": "metrics"},
            "periodSeconds": period,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        }

    return {
        "ports": [
            {"name": "http", "containerPort": ports.API},
            {"name": "metrics", "containerPort": ports.METRICS},
        ],
        "startupProbe": probe("/readyz", 5, -(-startup_timeout_s // 5)),
        "readinessProbe": probe("/readyz", 5, 2),
        "livenessProbe": probe("/livez", 10, 6),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}},
    }


def drain_seconds(template: PodTemplate) -> float:
    return float(template.termination_grace_period_seconds - PRE_STOP_S - DRAIN_MARGIN_S)


def resources(template: PodTemplate, *, requests: dict[str, str], limits: dict[str, str]) -> Manifest:
    """The user's wishes over our defaults; `limits` of devices are no defaults and always hold."""
    given = template.resources
    limits_ = {key: str(value) for key, value in given.limits.items()} | limits
    wanted = requests | {key: str(value) for key, value in given.requests.items()}
    return _filled({"requests": wanted, "limits": limits_})


def without_devices(all_: Manifest) -> Manifest:
    """`resources` of a container, with CPU and memory alone."""
    return _filled(
        {kind: {name: given[name] for name in ("cpu", "memory") if name in given} for kind, given in all_.items()}
    )


def _queue(template: PodTemplate) -> tuple[dict[str, str], dict[str, str]]:
    if template.queue_name is None:
        return {}, {}
    if template.scheduler_name == "volcano":
        return {}, {"scheduling.volcano.sh/queue-name": template.queue_name}
    return {"kueue.x-k8s.io/queue-name": template.queue_name}, {}


def _dump(model: Any) -> Manifest:
    dumped: Manifest = model.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return dumped


def _filled(manifest: Manifest) -> Manifest:
    """Without what was left empty: server-side apply would own the empty value."""
    return {key: value for key, value in manifest.items() if value not in (None, [], {}, "")}
