from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem_cluster.errors import ClusterError


@dataclass(frozen=True)
class Kubectl:
    """kubectl with one kubeconfig, never a user's own, in one namespace."""

    kubeconfig: Path
    namespace: str = "default"
    program: str = "kubectl"

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """What kubectl printed. Raises `ClusterError` with what it complained about."""
        command = [self.program, f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self("get", "--output=json", *arguments))

    def apply(self, *objects: dict[str, Any]) -> None:
        self("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
