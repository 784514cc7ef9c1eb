"""The CustomResourceDefinition around the schema."""

from __future__ import annotations

from typing import Any

from tandem_operator.api import service
from tandem_operator.crdgen.structural import structural

COLUMNS = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Prefill", "string", ".status.prefill.summary", 0),
    ("Decode", "string", ".status.decode.summary", 0),
    ("Model", "string", ".status.model.servedName", 0),
    ("URL", "string", ".status.url", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)
"""Name, type, JSONPath, priority (1: with -o wide)."""


def openapi_schema() -> dict[str, Any]:
    schema = structural(service.InferenceService)
    properties = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        **schema.pop("properties"),
    }
    return schema | {"properties": properties}


def crd() -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{service.PLURAL}.{service.GROUP}"},
        "spec": {
            "group": service.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": service.KIND,
                "plural": service.PLURAL,
                "singular": service.KIND.lower(),
                "shortNames": ["infsvc"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": service.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in COLUMNS],
                    "schema": {"openAPIV3Schema": openapi_schema()},
                }
            ],
        },
    }


def _column(name: str, kind: str, path: str, priority: int) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
