"""InferenceServices of the small model, and questions to the cluster about their pods."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support import pods, store
from tandem_cluster.errors import ClusterError
from tandem_cluster.kubectl import Kubectl
from tandem_contract import labels

SERVED_NAME = "tiny"
API_KEYS = "api-keys"
KEY = "sk-e2e-right"
SLOW_S = 300.0
"""Longest time for pods to come up; several of them start at once on two cores."""
HOSTNAME = "kubernetes.io/hostname"
SMALL = {"resources": {"requests": {"cpu": "20m", "memory": "64Mi"}}}
"""Template of pods that fit beside many others."""
ENGINE_FLAGS = (
    "--cpu-threads=1", "--kv-cache-memory=64MiB", "--max-num-seqs=16", "--local-prefill-max-tokens=32",
    # Else the second time a prompt is asked the decode pod holds it, and nothing is handed over.
    "--no-enable-prefix-caching",
)  # fmt: skip


def manifest(name: str, **spec: Any) -> dict[str, Any]:
    """The smallest one, with `spec` over it, section by section."""
    sections: dict[str, Any] = {
        "model": {
            "uri": f"s3://{store.BUCKET}/tiny-qwen3",
            "servedName": SERVED_NAME,
            "storage": {"secretRef": {"name": store.SECRET}, "endpoint": store.ENDPOINT},
        },
        "engine": {"accelerator": "none", "extraArgs": list(ENGINE_FLAGS)},
        "prefill": {"replicas": 1, "template": SMALL},
        "decode": {"replicas": 1, "template": SMALL},
        "gateway": {"replicas": 2, "auth": {"apiKeySecretRef": {"name": API_KEYS}}, "template": SMALL},
    }
    for section, values in spec.items():
        sections[section] = {**sections[section], **values}
    return {
        "apiVersion": "serving.tandem.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": sections,
    }


def namespace(kubectl: Kubectl) -> None:
    """Makes the namespace of `kubectl`, which takes only pods of Pod Security level restricted."""
    kubectl("create", "namespace", kubectl.namespace)
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")


def secrets(*keys: str) -> list[dict[str, Any]]:
    """What a service's namespace needs besides it; `keys` are API keys beside `KEY`."""
    text = "\n".join((KEY, *keys))
    allowed = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": API_KEYS}, "stringData": {API_KEYS: text}}
    return [store.secret(), allowed]


@dataclass(frozen=True)
class Service:
    kubectl: Kubectl
    name: str

    @property
    def url(self) -> str:
        return f"http://{self.name}-gateway.{self.kubectl.namespace}.svc:8000"

    def patch(self, **spec: Any) -> None:
        self.kubectl("patch", "infsvc", self.name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def status(self) -> dict[str, Any]:
        """Of the current spec; empty while the operator has not looked at it yet."""
        body = self.kubectl.get("infsvc", self.name)
        status: dict[str, Any] = body.get("status", {})
        return status if status.get("observedGeneration") == body["metadata"]["generation"] else {}

    def condition(self, kind: str) -> dict[str, str]:
        return next((c for c in self.status().get("conditions", []) if c["type"] == kind), {"status": "", "reason": ""})

    def becomes_ready(self, seconds: float = SLOW_S) -> None:
        """Its status says so, and so does every pod: what happened a moment ago may not be in the status yet."""
        eventually(
            lambda: self.condition("Ready")["status"] == "True" and all(map(pods.is_ready, self.pods())),
            self.tell,
            seconds,
        )

    def pods(self, role: str | None = None) -> list[dict[str, Any]]:
        selector = f"{labels.SERVICE}={self.name}" + (f",{labels.ROLE}={role}" if role else "")
        items: list[dict[str, Any]] = self.kubectl.get("pods", f"--selector={selector}")["items"]
        return items

    def identities(self, role: str | None = None) -> dict[str, tuple[str, int]]:
        """Uid and restarts by pod: equal, if nothing was restarted or replaced."""
        return {
            pod["metadata"]["name"]: (
                pod["metadata"]["uid"],
                sum(c["restartCount"] for c in pod["status"].get("containerStatuses", [])),
            )
            for pod in self.pods(role)
        }

    def nodes(self, role: str) -> set[str]:
        """On which its pods stand."""
        return {pod["spec"]["nodeName"] for pod in self.pods(role)}

    def revisions(self) -> set[str]:
        return {pod["metadata"]["labels"].get(labels.REVISION, "") for pod in self.pods()} - {""}

    def tell(self) -> str:
        """All one has to know when it did not become what it should."""
        wide = self.kubectl("get", "infsvc,pods", "--output=wide")
        return f"{wide}\n{json.dumps(self.status(), indent=1)}"


def eventually(condition: Callable[[], bool], tell: Callable[[], str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        # The API server may be away for a moment, and an object not there yet.
        try:
            if condition():
                return
        except ClusterError:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, f"not after {seconds:.0f} s:\n{tell()}"
        time.sleep(0.5)
