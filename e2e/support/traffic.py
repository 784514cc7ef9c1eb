"""Traffic without pause through all that a test does to a service, and what became of every request."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.services import API_KEYS, HOSTNAME, SLOW_S, Service, eventually
from tandem_cluster.kubectl import Kubectl

IMAGE = "localhost/tandem-e2e/operator:1"
NAME = "traffic"
_DRIVER = Path(__file__).with_name("driver.py")
_FOLDER = "/etc/driver"
_WORKERS = {0, 1}
"""Of the driver; each has one request under way."""


@dataclass(frozen=True)
class Request:
    worker: int
    began: float
    """Unix seconds, as `ended`."""
    ended: float
    problem: str | None
    reconnects: int


@dataclass(frozen=True)
class Traffic:
    kubectl: Kubectl

    def start(self, service: Service, cases: Sequence[dict[str, Any]], node: str) -> None:
        files = {"driver.py": _DRIVER.read_text(), "cases.json": json.dumps(cases)}
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": files}
        self.kubectl.apply(config, _pod(service.url, node))
        eventually(lambda: bool(self.requests()), lambda: self.kubectl("describe", "pod", NAME), SLOW_S)

    def requests(self, since: float = 0.0) -> list[Request]:
        """Those that ended after `since`."""
        lines = self.kubectl("logs", NAME).splitlines()
        found = [Request(**json.loads(line)) for line in lines if line.startswith("{")]
        return [request for request in found if request.ended > since]

    def failures(self, since: float = 0.0) -> list[Request]:
        """After a wait for every request that is under way: each worker has to get through a later one."""
        now = time.time()

        def all_came_through() -> bool:
            return {request.worker for request in self.requests() if request.began > now} == _WORKERS

        eventually(all_came_through, lambda: self.kubectl("logs", NAME, "--tail=20"), SLOW_S)
        return [request for request in self.requests(since) if request.problem is not None]

    def run(self, *command: str) -> str:
        """Output of a command beside the driver, inside the cluster."""
        return self.kubectl("exec", NAME, "--", *command)


def _pod(url: str, node: str) -> dict[str, Any]:
    container = {
        "name": NAME,
        "image": IMAGE,
        "command": ["python", f"{_FOLDER}/driver.py", url, f"{_FOLDER}/cases.json"],
        "env": [{"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": API_KEYS, "key": API_KEYS}}}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "volumeMounts": [{"name": "driver", "mountPath": _FOLDER}],
        # The namespace is one of Pod Security level restricted.
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "terminationGracePeriodSeconds": 0,
        "nodeSelector": {HOSTNAME: node},
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "driver", "configMap": {"name": NAME}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME}, "spec": spec}
