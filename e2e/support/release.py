"""Tandem in the cluster, installed by helm from this checkout's chart."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tandem_cluster.kubectl import Kubectl

CHART = Path(__file__).resolve().parents[2] / "charts/tandem"
NAME = "tandem-e2e"
OPERATOR_IMAGE, ENGINE_IMAGE = "localhost/tandem-e2e/operator", "localhost/tandem-e2e/runtime"
LATER_COLUMN = "URL"
RESYNC_S = 5
"""Short, so that several resyncs pass within a test."""


def earlier_chart(folder: Path) -> Path:
    """This checkout's chart as an earlier version might have been: its CRD lacks a column."""
    chart = shutil.copytree(CHART, folder / "tandem")
    description, crd = chart / "Chart.yaml", chart / "files/crd.yaml"
    description.write_text(json.dumps(yaml.safe_load(description.read_text()) | {"version": "0.0.9"}))
    definition = yaml.safe_load(crd.read_text())
    columns = definition["spec"]["versions"][0]["additionalPrinterColumns"]
    columns.remove(next(column for column in columns if column["name"] == LATER_COLUMN))
    crd.write_text(yaml.safe_dump(definition))
    return chart


@dataclass(frozen=True)
class Release:
    kubectl: Kubectl
    """In the operator's namespace, which helm makes."""

    def install(self, chart: Path = CHART, **values: Any) -> None:
        """Also upgrades. `values` go over the tests' own, section by section; lists as they are."""
        ours: dict[str, Any] = {
            "image": {"repository": OPERATOR_IMAGE, "tag": "1"},
            "engineImage": {"repository": ENGINE_IMAGE, "tag": "1"},
            "operator": {"resyncSeconds": RESYNC_S},
        }
        for section, chosen in values.items():
            ours[section] = {**ours.get(section, {}), **chosen} if isinstance(chosen, dict) else chosen
        self._helm(
            "upgrade", "--install", NAME, str(chart), "--create-namespace", "--wait", "--timeout=300s", "--values=-",
            stdin=json.dumps(ours),
        )  # fmt: skip

    def uninstall(self) -> None:
        self._helm("uninstall", NAME, "--wait", "--timeout=180s", "--ignore-not-found")

    def operator_pods(self) -> list[str]:
        pods = self.kubectl.get("pods", f"--selector=app.kubernetes.io/instance={NAME}")["items"]
        return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def _helm(self, *arguments: str, stdin: str = "") -> None:
        command = [
            "helm",
            f"--kubeconfig={self.kubectl.kubeconfig}",
            f"--namespace={self.kubectl.namespace}",
            *arguments,
        ]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
