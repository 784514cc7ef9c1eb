"""Names, labels and ownership of children."""

from __future__ import annotations

from tandem_contract import labels

from tandem_operator.api.service import API_VERSION, KIND
from tandem_operator.plan.context import Manifest, Service

MANAGER = "tandem-operator"


def gateway(name: str) -> str:
    return f"{name}-gateway"


def role(name: str, role: str) -> str:
    """Headless Service, PodDisruptionBudget and autoscaler of a role: the same for all revisions."""
    return f"{name}-{role}"


def engine_set(name: str, role: str, revision: str) -> str:
    return f"{name}-{role}-{revision}"


def ticket_key(name: str) -> str:
    return f"{name}-ticket-key"


def engine_account(name: str) -> str:
    return f"{name}-engine"


def selector(service: Service, *role: str) -> dict[str, str]:
    """Labels that pods of one role (or all, without one) carry and nobody else does, within the namespace."""
    return {labels.SERVICE: service.name, **({labels.ROLE: role[0]} if role else {})}


def child_labels(service: Service, component: str) -> dict[str, str]:
    """Of the child object itself; for people, and for the operator to find it again."""
    return {
        labels.SERVICE: service.name,
        labels.NAME: "tandem",
        labels.INSTANCE: service.name,
        labels.COMPONENT: component,
        labels.PART_OF: "tandem",
        labels.MANAGED_BY: MANAGER,
    }


def child(service: Service, api_version: str, kind: str, name: str, component: str, **body: object) -> Manifest:
    """A child that Kubernetes deletes together with its InferenceService."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": service.namespace,
            "labels": child_labels(service, component),
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": service.name,
                    "uid": service.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        **body,
    }
