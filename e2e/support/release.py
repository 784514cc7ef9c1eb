"""Tandem in the cluster, installed by helm from this checkout's chart."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem_cluster.kubectl import Kubectl

CHART = Path(__file__).resolve().parents[2] / "charts/tandem"
NAME = NAMESPACE = "tandem-e2e"
OPERATOR_IMAGE, ENGINE_IMAGE = "localhost/tandem-e2e/operator", "localhost/tandem-e2e/runtime"
RESYNC_S = 5
"""Short, so that several resyncs pass within a test."""


@dataclass(frozen=True)
class Release:
    kubectl: Kubectl
    """In the operator's namespace."""

    def install(self, **values: Any) -> None:
        """Also upgrades. `values` go over the tests' own, section by section."""
        ours: dict[str, Any] = {
            "image": {"repository": OPERATOR_IMAGE, "tag": "1"},
            "engineImage": {"repository": ENGINE_IMAGE, "tag": "1"},
            "operator": {"resyncSeconds": RESYNC_S},
        }
        merged = ours | {section: ours.get(section, {}) | chosen for section, chosen in values.items()}
        self._helm(
            "upgrade", "--install", NAME, str(CHART), "--create-namespace", "--wait", "--timeout=180s", "--values=-",
            stdin=json.dumps(merged),
        )  # fmt: skip

    def uninstall(self) -> None:
        self._helm("uninstall", NAME, "--wait", "--timeout=60s", "--ignore-not-found")

    def operator_pods(self) -> list[str]:
        pods = self.kubectl.get("pods", f"--selector=app.kubernetes.io/instance={NAME}")["items"]
        return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def _helm(self, *arguments: str, stdin: str = "") -> None:
        command = ["helm", f"--kubeconfig={self.kubectl.kubeconfig}", f"--namespace={NAMESPACE}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
