"""kopf watches InferenceServices; every event becomes a key in the queue. Only event handlers, so kopf stores nothing
in the cluster: no finalizers, no annotations, no progress. Children are not its to watch: it filters labels on its own
side, and would have to be told about every pod of the cluster (ADR 0010).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import kopf

from tandem_operator.api.service import GROUP, PLURAL, VERSION
from tandem_operator.cluster.client import login
from tandem_operator.cluster.mirror import Changed
from tandem_operator.plan.names import MANAGER


def registry(changed: Changed) -> kopf.OperatorRegistry:
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)  # type: ignore[untyped-decorator]
    def credentials(**_: Any) -> kopf.ConnectionInfo:
        return login()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)  # type: ignore[untyped-decorator]
    def on_service(namespace: str, name: str, **_: Any) -> None:
        changed(namespace, name)

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
