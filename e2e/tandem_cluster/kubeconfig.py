from __future__ import annotations

import base64
import json
from pathlib import Path

from tandem_cluster.plan import Plan


def kubeconfig(plan: Plan, pki: Path, user: str) -> str:
    """A self-contained kubeconfig (JSON is YAML) for the bearer of the certificate `user`."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": plan.name,
                    "cluster": {"server": plan.api_server, "certificate-authority-data": _base64(pki / "ca.crt")},
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": _base64(pki / f"{user}.crt"),
                        "client-key-data": _base64(pki / f"{user}.key"),
                    },
                }
            ],
            "contexts": [{"name": plan.name, "context": {"cluster": plan.name, "user": user}}],
            "current-context": plan.name,
        },
        indent=1,
    )


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
