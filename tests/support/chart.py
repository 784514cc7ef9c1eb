"""What helm makes of the chart."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from support.kube_tools import helm

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tandem"
KUBERNETES = "1.34"

Manifest = dict[str, Any]


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *argv], capture_output=True, text=True, timeout=60)


def render(*argv: str, namespace: str = "tandem-system") -> list[Manifest]:
    """Manifests of `helm template` with these arguments, such as `--set=replicas=2`. Fails with helm's own words."""
    done = run("template", "tandem", str(CHART), f"--namespace={namespace}", f"--kube-version={KUBERNETES}", *argv)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def of_kind(manifests: Iterable[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]
