"""What every cluster holds before a test begins: rights of the programs that run on its machines, not in its pods."""

from __future__ import annotations

from typing import Any


def _may_read(user: str, **resources: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """`resources` by API group; `core` is the one without a name."""
    rbac = "rbac.authorization.k8s.io"
    common: dict[str, Any] = {"apiVersion": f"{rbac}/v1", "metadata": {"name": user}}
    rules = [
        {"apiGroups": ["" if group == "core" else f"{group}.k8s.io"], "resources": names, "verbs": ["list", "watch"]}
        for group, names in resources.items()
    ]
    return (
        {**common, "kind": "ClusterRole", "rules": rules},
        {
            **common,
            "kind": "ClusterRoleBinding",
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": user}],
        },
    )


# CoreDNS runs beside the control plane, not in pods: names resolve whichever node is lost.
DNS_RIGHTS = _may_read("system:coredns", core=("services", "namespaces", "pods"), discovery=("endpointslices",))
POLICIES_RIGHTS = _may_read("system:policies", core=("namespaces", "pods"), networking=("networkpolicies",))
