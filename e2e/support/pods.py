"""Pods from the outside: their metrics, and their sudden death."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from tandem_cluster.kubectl import Kubectl
from tandem_contract import metrics


def sample(text: str, name: str, **wanted: str) -> float:
    """Sum over the samples of `name` with these labels, in the text of /metrics."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and wanted.items() <= s.labels.items())


def kill(pod: dict[str, Any]) -> None:
    """SIGKILL to every process of the pod's containers, which run on this machine."""
    uid = pod["metadata"]["uid"]
    killed = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = uid in re.sub("_", "-", (folder / "cgroup").read_text())
            if ours and b"tandem" in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
                killed += 1
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert killed, f"no process of pod {pod['metadata']['name']} runs on this machine"


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = {condition["type"]: condition["status"] for condition in pod["status"].get("conditions", [])}
    return "deletionTimestamp" not in pod["metadata"] and conditions.get("Ready") == "True"


def restarts(kubectl: Kubectl, name: str) -> int:
    return sum(c["restartCount"] for c in kubectl.get("pod", name)["status"].get("containerStatuses", []))


def reconciles(kubectl: Kubectl, operator: str) -> float:
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{operator}:8080/proxy/metrics"
    return sample(kubectl("get", "--raw", path), f"{metrics.RECONCILE_SECONDS.name}_count")
