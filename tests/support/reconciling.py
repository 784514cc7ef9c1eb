"""An operator that reconciles the service `chat` of an API server in this process, over real HTTP."""

from __future__ import annotations

import copy
from typing import Any

from support.bad_specs import service as body_of
from support.fake_cluster import FakeCluster
from support.infsvc import INSTALLATION, NOW
from support.kube_controllers import run_pods
from support.kube_objects import Object
from tandem_contract import labels
from tandem_operator.cluster.client import Client
from tandem_operator.cluster.mirror import Mirror
from tandem_operator.reconcile import Outcome, Reconciler


class Operator:
    """One operator process, restarted for every reconcile if asked: nothing may live in its memory."""

    def __init__(self, cluster: FakeCluster, client: Client) -> None:
        self.cluster = cluster
        self.client = client
        self.installation = INSTALLATION
        self.now = NOW

    async def reconcile(self) -> Outcome:
        mirror = Mirror(self.client)
        await mirror.refresh()
        reconciler = Reconciler(self.client, mirror, self.installation, clock=lambda: self.now)
        return await reconciler.reconcile("default", "chat")

    async def settle(self, rounds: int = 40) -> int:
        """Reconciles and lets pods run until nothing changes; rounds it took."""
        for done in range(rounds):
            before = copy.deepcopy(self.cluster.objects)
            await self.reconcile()
            await run_pods(self.cluster)
            if self.cluster.objects == before:
                return done
        raise AssertionError("no end")

    def condition(self, name: str) -> Object:
        service = self.cluster.get("InferenceService", "chat")
        assert service is not None
        return next(c for c in service["status"]["conditions"] if c["type"] == name)

    def revisions(self) -> set[str]:
        return {s["metadata"]["labels"][labels.REVISION] for s in self.cluster.all("StatefulSet")}


async def change(operator: Operator, *changes: tuple[str, Any]) -> None:
    service = operator.cluster.get("InferenceService", "chat")
    assert service is not None
    await operator.cluster.put({**service, "spec": body_of(*changes)["spec"]})
