"""kopf watches; every event becomes a key in the queue. Only event handlers, so kopf stores nothing in the cluster:
no finalizers, no annotations, no progress (ADR 0010).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import kopf
from tandem_contract import labels

from tandem_operator.api.service import GROUP, KIND, PLURAL, VERSION
from tandem_operator.cluster.client import login
from tandem_operator.plan.names import MANAGER

Changed = Callable[[str, str], None]
"""Called with namespace and name of the InferenceService that something happened to."""

CHILDREN = (("apps", "v1", "statefulsets"), ("apps", "v1", "deployments"), ("", "v1", "services"))
"""Children whose changes cannot wait for the next resync. Pods are not watched: kopf filters
labels on its own side, and would have to be told about every pod of the cluster."""


def registry(changed: Changed) -> kopf.OperatorRegistry:
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)  # type: ignore[untyped-decorator]
    def credentials(**_: Any) -> kopf.ConnectionInfo:
        return login()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)  # type: ignore[untyped-decorator]
    def on_service(namespace: str, name: str, **_: Any) -> None:
        changed(namespace, name)

    for group, version, plural in CHILDREN:

        @kopf.on.event(group, version, plural, labels={labels.MANAGED_BY: MANAGER}, registry=handlers)  # type: ignore[untyped-decorator]
        def on_child(namespace: str, meta: kopf.Meta, **_: Any) -> None:
            # Its owner is asked, not the label that names the service: a hand may just have taken that away.
            for owner in meta.get("ownerReferences", []):
                if owner["kind"] == KIND and owner.get("controller"):
                    changed(namespace, owner["name"])

    return handlers


def settings() -> kopf.OperatorSettings:
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    # No rights to watch namespaces and CRDs are needed; the CRD is installed before the operator.
    chosen.scanning.disabled = True
    # A watch stream whose other end vanished is noticed by its own timeout.
    chosen.watching.server_timeout = 240
    chosen.watching.connect_timeout = 10
    return chosen


async def watch(changed: Changed, namespaces: Collection[str]) -> None:
    """Runs until cancelled; the first events name everything that exists."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    await kopf.operator(
        registry=registry(changed),
        # kopf would ask for the user's name, and a pod's user id has none.
        identity=MANAGER,
        settings=settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
    )
