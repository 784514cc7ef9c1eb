"""Which kinds of children there are, and where the API server keeps them."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_operator.api import service


@dataclass(frozen=True, slots=True)
class Kind:
    api_version: str
    kind: str
    plural: str

    def collection(self, namespace: str | None) -> str:
        """`namespace` None: of all namespaces."""
        prefix = "/apis/" if "/" in self.api_version else "/api/"
        within = "" if namespace is None else f"namespaces/{namespace}/"
        return f"{prefix}{self.api_version}/{within}{self.plural}"

    def path(self, namespace: str, name: str) -> str:
        return f"{self.collection(namespace)}/{name}"


INFERENCE_SERVICE = Kind(service.API_VERSION, service.KIND, service.PLURAL)
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
SECRET = Kind("v1", "Secret", "secrets")
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
POD_MONITOR = Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors")

DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
HPA = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")

CHILDREN = (
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    Kind("v1", "Service", "services"),
    Kind("rbac.authorization.k8s.io/v1", "Role", "roles"),
    Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    HPA,
    DEPLOYMENT,
    STATEFUL_SET,
)
"""Watched by label, like pods and, where the cluster has them, PodMonitors. The Secret is read by name, so that the
operator needs no right to list Secrets."""
BY_NAME = {kind.kind: kind for kind in (*CHILDREN, SECRET, POD_MONITOR)}
