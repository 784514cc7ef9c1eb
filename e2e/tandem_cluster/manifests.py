"""What every cluster holds before a test begins."""

from __future__ import annotations

from typing import Any

# CoreDNS runs beside the control plane, not in pods: names resolve whichever node is lost.
_DNS: dict[str, Any] = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "system:coredns"}}

DNS_RIGHTS: tuple[dict[str, Any], ...] = (
    {
        **_DNS,
        "kind": "ClusterRole",
        "rules": [
            {"apiGroups": [""], "resources": ["services", "namespaces", "pods"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    },
    {
        **_DNS,
        "kind": "ClusterRoleBinding",
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
    },
)
