"""The object store of the tests: SeaweedFS's S3 gateway in the cluster, which rejects other keys than this one."""

from __future__ import annotations

from typing import Any

from tandem_cluster.kubectl import Kubectl

NAMESPACE, NAME, PORT = "tandem-e2e-store", "store", 8333
BUCKET = "models"
ENDPOINT = f"http://{NAME}.{NAMESPACE}.svc:{PORT}"
IMAGE = "localhost/tandem-e2e/store:1"
SECRET = "model-store"
_KEYS = {"AWS_ACCESS_KEY_ID": "tandem-e2e", "AWS_SECRET_ACCESS_KEY": "tandem-e2e-secret"}


def secret(name: str = SECRET, **changes: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": _KEYS | changes}


def start(kubectl: Kubectl) -> None:
    """Waits until it holds the models."""
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    inside = Kubectl(kubectl.kubeconfig, NAMESPACE)
    inside.apply(secret(), _deployment(), _service())
    inside("rollout", "status", f"deployment/{NAME}", "--timeout=300s")


def _deployment() -> dict[str, Any]:
    """Its pod comes back elsewhere when its node is lost."""
    container = {
        "name": NAME,
        "image": IMAGE,
        "envFrom": [{"secretRef": {"name": SECRET}}],
        "readinessProbe": {"exec": {"command": ["test", "-f", "/tmp/filled"]}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "metadata": {"labels": {"app": NAME}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {"selector": {"matchLabels": {"app": NAME}}, "template": pod},
    }


def _service() -> dict[str, Any]:
    spec = {"selector": {"app": NAME}, "ports": [{"port": PORT}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": spec}
