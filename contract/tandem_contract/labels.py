"""Kubernetes labels: the operator writes them on everything it creates, the gateway selects pods by them."""

SERVICE = "serving.tandem.dev/service"
"""Name of the InferenceService that the object belongs to."""
ROLE = "serving.tandem.dev/role"
"""`prefill`, `decode` or `both` on engine pods (see `status.Role`); `gateway` on gateway pods."""
REVISION = "serving.tandem.dev/revision"
"""Revision hash of the engine pods; only pods of one revision are meant to pair."""

NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
PART_OF = "app.kubernetes.io/part-of"
MANAGED_BY = "app.kubernetes.io/managed-by"
VERSION = "app.kubernetes.io/version"
"""Recommended labels (kubernetes.io/docs, "Recommended Labels"): for people and tools, nothing selects by them."""


def service_selector(service: str) -> str:
    """Label selector of an InferenceService's engine pods."""
    return f"{SERVICE}={service},{ROLE} in (prefill,decode,both)"
