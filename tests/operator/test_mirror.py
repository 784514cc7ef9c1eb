"""The mirror over real HTTP: watches that end, expire, break and miss something; own writes that it knows before."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.fake_cluster import FakeCluster
from support.kube_objects import Object
from tandem_contract import labels
from tandem_operator.cluster.client import ApiError, Client
from tandem_operator.cluster.kinds import BY_NAME, POD_MONITOR
from tandem_operator.cluster.mirror import Mirror

SERVICE = BY_NAME["Service"]
DEADLINE_S = 10.0


class Rig:
    def __init__(self, cluster: FakeCluster, client: Client) -> None:
        self.cluster = cluster
        self.told: list[tuple[str, str]] = []
        self._news = asyncio.Event()
        self.mirror = Mirror(client, changed=self._changed)

    def _changed(self, namespace: str, name: str) -> None:
        self.told.append((namespace, name))
        self._news.set()

    def seen(self, service: str = "chat") -> dict[tuple[str, str], Object]:
        return {(kind, thing["metadata"]["name"]): thing for kind, thing in self.mirror.of_service("default", service)}

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not check():
                self._news.clear()
                await self._news.wait()

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        await self.mirror.refresh()
        task = asyncio.create_task(self.mirror.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with FakeCluster() as cluster, Client(wrote=lambda kind, verb: None, login=cluster.login) as client:
        yield Rig(cluster, client)


def child(name: str = "one", service: str | None = "chat", kind: str = "Service", **more: Any) -> Object:
    tags = {labels.SERVICE: service} if service else {}
    owner = {"kind": "InferenceService", "name": "chat", "uid": "u", "controller": True}
    meta = {"name": name, "namespace": "default", "labels": tags, "ownerReferences": [owner]}
    return {"kind": kind, "metadata": meta, "spec": {}, **more}


async def test_what_others_do_arrives_and_is_told(rig: Rig) -> None:
    await rig.cluster.put(child("old"))
    async with rig.following():
        assert set(rig.seen()) == {("Service", "old")}
        await rig.cluster.put(child("new", kind="Deployment"))
        await rig.until(lambda: ("Deployment", "new") in rig.seen())
        await rig.cluster.put(child("new", kind="Deployment", status={"readyReplicas": 1}))
        await rig.until(lambda: rig.seen()["Deployment", "new"].get("status") == {"readyReplicas": 1})
        await rig.cluster.delete("Service", "old")
        await rig.until(lambda: ("Service", "old") not in rig.seen())
        assert set(rig.told) == {("default", "chat")}


async def test_object_that_changes_hands_leaves_one_service_and_tells_both(rig: Rig) -> None:
    await rig.cluster.put(child())
    async with rig.following():
        rig.told.clear()
        await rig.cluster.put(child(service="other"))
        await rig.until(lambda: not rig.seen())
        assert set(rig.told) == {("default", "chat"), ("default", "other")}
        rig.told.clear()
        await rig.cluster.put(child(service="third"))
        await rig.until(lambda: not rig.seen("other"))
        assert ("default", "other") in rig.told
        await rig.cluster.put(child(service=None))
        await rig.until(lambda: not rig.seen("third"))


async def test_expired_watch_is_begun_anew_with_what_happened_meanwhile(rig: Rig) -> None:
    """A watch whose version the server has compacted: all that was not told has to come from a list."""
    await rig.cluster.put(child("gone"))
    async with rig.following():
        await rig.until(lambda: ("watch", "services") in rig.cluster.requests or bool(rig.told))
        rig.cluster.deaf.add("services")
        await rig.cluster.put(child("missed"))
        await rig.cluster.delete("Service", "gone")
        rig.cluster.deaf.discard("services")
        rig.cluster.forgotten.add("services")
        await rig.cluster.put(child("wakes", kind="Deployment"))
        await rig.until(lambda: set(rig.seen()) == {("Service", "missed"), ("Deployment", "wakes")})


async def test_expired_watch_is_no_failure() -> None:
    """Watches that had nothing to tell for long end so every day: counted, they would set off TandemWatchFails."""
    unread: list[tuple[str, str]] = []
    async with (
        FakeCluster() as cluster,
        Client(
            wrote=lambda kind, verb: None, unread=lambda *failure: unread.append(failure), login=cluster.login
        ) as client,
    ):
        cluster.forgotten.add("services")
        with pytest.raises(ApiError, match="410"):
            await anext(client.watch(SERVICE, "default", "1"))
    assert not unread


async def test_watches_that_are_refused_go_on_where_they_were(rig: Rig) -> None:
    """An API server that restarts answers 5xx for a while, and ends every stream."""
    async with rig.following():
        rig.cluster.refuse["GET", "services"] = 503
        rig.cluster.forgotten.add("services")
        await rig.cluster.put(child())
        await rig.until(lambda: ("Service", "one") in rig.seen())


async def test_own_write_is_known_before_it_is_told_and_wakes_nobody(rig: Rig) -> None:
    """Without it, what a reconcile has just made is missing for the next one, and each write is a look more."""
    async with rig.following():
        rig.cluster.deaf.add("services")
        rig.mirror.wrote(SERVICE, copy.deepcopy(await rig.cluster.put(child())))
        assert ("Service", "one") in rig.seen()
        rig.cluster.deaf.clear()
        rig.cluster.forgotten.add("services")
        await rig.cluster.put(child("other"))
        await rig.until(lambda: ("Service", "other") in rig.seen())
        assert len(rig.told) == 1, "only of the other one"


async def test_news_of_an_older_state_changes_nothing(rig: Rig) -> None:
    older = copy.deepcopy(await rig.cluster.put(child()))
    newer = copy.deepcopy(await rig.cluster.put(child(spec={"type": "LoadBalancer"})))
    for thing in (newer, older):
        rig.mirror.wrote(SERVICE, thing)
    assert rig.seen()["Service", "one"]["spec"] == {"type": "LoadBalancer"}
    # A former object of that name: its deletion, told late, is not that of this one.
    rig.mirror.removed(SERVICE, {**older, "metadata": {**older["metadata"], "uid": "former"}})
    assert ("Service", "one") in rig.seen()
    # Nor is the moment when a hand had taken its label away.
    rig.mirror.removed(SERVICE, older)
    assert ("Service", "one") in rig.seen()
    rig.mirror.removed(SERVICE, newer)
    assert not rig.seen()


async def test_status_of_disruption_budgets_wakes_nobody(rig: Rig) -> None:
    """Symptom: every pod that came or went had its service looked at twice."""
    await rig.cluster.put(child(kind="PodDisruptionBudget"))
    async with rig.following():
        rig.told.clear()
        await rig.cluster.put(child(kind="PodDisruptionBudget", status={"disruptionsAllowed": 1}))
        await rig.cluster.put(child("last"))
        await rig.until(lambda: ("Service", "last") in rig.seen())
        assert len(rig.told) == 1


async def test_metrics_of_an_autoscaler_wake_nobody_and_its_conditions_do(rig: Rig) -> None:
    """Symptom: every autoscaled service was looked at every 15 s for nothing."""

    def autoscaler(metrics: int, active: str) -> Object:
        conditions = [{"type": "ScalingActive", "status": active}]
        return child(kind="HorizontalPodAutoscaler", status={"currentMetrics": metrics, "conditions": conditions})

    await rig.cluster.put(autoscaler(1, "True"))
    async with rig.following():
        rig.told.clear()
        await rig.cluster.put(autoscaler(2, "True"))
        await rig.cluster.put(child("last", kind="HorizontalPodAutoscaler"))
        await rig.until(lambda: ("HorizontalPodAutoscaler", "last") in rig.seen())
        assert len(rig.told) == 1
        await rig.cluster.put(autoscaler(3, "False"))
        await rig.until(lambda: len(rig.told) == 2)


async def test_kind_that_the_cluster_lacks_is_no_error(rig: Rig) -> None:
    async with rig.following():
        assert not rig.mirror.pod_monitors
    rig.cluster.absent.clear()
    await rig.cluster.put(child(kind=POD_MONITOR.kind))
    await rig.mirror.refresh()
    assert rig.mirror.pod_monitors
    assert (POD_MONITOR.kind, "one") in rig.seen()


async def test_pods_are_kept_without_their_spec(rig: Rig) -> None:
    """Memory: the spec is most of a pod."""
    await rig.cluster.put(child(kind="Pod", spec={"nodeName": "gpu-1", "containers": [{"name": "engine"}]}))
    await rig.mirror.refresh()
    assert rig.seen()["Pod", "one"]["spec"] == {"nodeName": "gpu-1"}


async def test_namespace_that_may_not_be_read_holds_up_no_other() -> None:
    """Symptom: one of the watchNamespaces was deleted, and an operator that restarted did nothing in the others."""
    async with FakeCluster() as cluster, Client(wrote=lambda kind, verb: None, login=cluster.login) as client:
        known = asyncio.Event()
        mirror = Mirror(client, namespaces=("default", "gone"), changed=lambda *_: known.set())
        cluster.forbidden |= {"default", "gone"}
        with pytest.raises(ApiError, match="403"):
            await mirror.refresh()
        cluster.forbidden.discard("default")
        await cluster.put(child())
        late = child()
        await cluster.put({**late, "metadata": {**late["metadata"], "namespace": "gone"}})
        await mirror.refresh()
        assert [mirror.knows(namespace) for namespace in ("default", "gone")] == [True, False]
        assert [len(list(mirror.of_service(namespace, "chat"))) for namespace in ("default", "gone")] == [1, 0]
        cluster.forbidden.clear()
        known.clear()
        task = asyncio.create_task(mirror.run())
        async with asyncio.timeout(DEADLINE_S):
            await known.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert list(mirror.of_service("gone", "chat"))


@pytest.mark.parametrize("reason", ["Forbidden", "Unauthorized"])
async def test_what_may_no_longer_be_read_is_no_longer_known(reason: str) -> None:
    """Symptom: its rights taken away, the operator went on deciding on what it had seen before, and nobody was told."""
    unread: Counter[tuple[str, str]] = Counter()
    refused = asyncio.Event()

    def failed(kind: str, reason: str) -> None:
        unread[kind, reason] += 1
        refused.set()

    async with (
        FakeCluster() as cluster,
        Client(wrote=lambda kind, verb: None, unread=failed, login=cluster.login) as client,
    ):
        known = asyncio.Event()
        mirror = Mirror(client, namespaces=("default",), changed=lambda *_: known.set())
        await mirror.refresh()
        assert mirror.knows("default")
        task = asyncio.create_task(mirror.run())
        try:
            async with asyncio.timeout(DEADLINE_S):
                if reason == "Forbidden":
                    cluster.forbidden.add("default")
                cluster.locked_out = reason == "Unauthorized"
                cluster.hang_up()
                while ("Pod", reason) not in unread:
                    refused.clear()
                    await refused.wait()
                assert not mirror.knows("default")
                cluster.forbidden.clear()
                cluster.locked_out = False
                await cluster.put(child())
                await known.wait()
                while not mirror.knows("default"):  # noqa: ASYNC110 (the last of its watches tells nothing)
                    await asyncio.sleep(0.05)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
