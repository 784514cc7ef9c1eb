"""Why pods do not start: found among many events, and read seldom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.fake_cluster import FakeCluster
from support.kube_objects import Object
from tandem_operator.cluster.client import Client
from tandem_operator.cluster.pod_warnings import FORGET_S, KEEP_S, PAGE, PodWarnings
from tandem_operator.status.trouble import PATIENCE_S, unexplained

NOW = 1_800_000_000.0
SINCE_NOW = "2027-01-15T08:00:00Z"
EVER = ""


class Rig:
    def __init__(self, cluster: FakeCluster, client: Client) -> None:
        self.cluster = cluster
        self.now = 0.0
        self.warnings = PodWarnings(client, clock=lambda: self.now)

    async def event(self, pod: str, message: str, reason: str = "FailedMount", at: str = "1", **more: str) -> None:
        name = f"{pod}.{len(self.cluster.objects):08}"
        about = {"kind": "Pod", "name": pod, **more}
        await self.cluster.put(
            {"kind": "Event", "metadata": {"name": name}, "type": "Warning", "reason": reason, "message": message,
             "involvedObject": about, "lastTimestamp": f"2026-01-01T00:00:0{at}Z"}
        )  # fmt: skip

    @property
    def lists(self) -> int:
        return self.cluster.requests["list", "events"]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with FakeCluster() as cluster, Client(wrote=lambda kind, verb: None, login=cluster.login) as client:
        yield Rig(cluster, client)


async def test_latest_warning_of_a_pod_is_found_among_many_others(rig: Rig) -> None:
    """Symptom: only the namespace's first 500 events, by name, were read."""
    for index in range(PAGE + 20):
        await rig.event(f"a-{index}", "other pods' affairs")
    await rig.event("z-0", "secret not found", at="2")
    await rig.event("z-0", "volume not attached", at="1")
    assert await rig.warnings.of("default", {"z-0": EVER, "z-1": EVER}) == {"z-0": "secret not found"}
    assert rig.lists == 2


async def test_warning_from_before_a_set_was_made_is_not_about_it(rig: Rig) -> None:
    await rig.event("decode", "exceeded quota", at="3", kind="StatefulSet")
    for since, told in (("2026-01-01T00:00:03Z", {"decode": "exceeded quota"}), ("2026-01-01T00:00:04Z", {})):
        assert await rig.warnings.of("default", {"decode": since}) == told


async def test_what_pods_say_themselves_is_not_asked_for(rig: Rig) -> None:
    for reason in ("FailedScheduling", "BackOff", "Unhealthy"):
        await rig.event("p-0", "most of a namespace's warnings", reason)
    await rig.event("p-0", "not about a pod", kind="Node")
    assert await rig.warnings.of("default", {"p-0": EVER}) == {}


async def test_namespace_is_read_once_for_all_of_its_services(rig: Rig) -> None:
    """Symptom: 200 services that waited for nodes read 500 events each, every five seconds."""
    await rig.event("p-0", "secret not found")
    found = await asyncio.gather(*(rig.warnings.of("default", {"p-0": EVER}) for _ in range(20)))
    assert found == [{"p-0": "secret not found"}] * 20
    assert rig.lists == 1
    rig.now += KEEP_S
    await rig.warnings.of("default", {"p-0": EVER})
    assert rig.lists == 2


async def test_refused_list_leaves_what_was_known_and_is_asked_for_again(rig: Rig) -> None:
    """Symptom: where events may not be listed, a service of which one pod waited was planned no more."""
    rig.cluster.refuse["GET", "events"] = 403
    for _ in range(2):
        assert await rig.warnings.of("default", {"p-0": EVER}) == {}
    assert rig.lists == 1, "asked again at once, by every service of the namespace"
    await rig.event("p-0", "secret not found")
    for refused in (None, 500):
        rig.now += KEEP_S
        if refused:
            rig.cluster.refuse["GET", "events"] = refused
        assert await rig.warnings.of("default", {"p-0": EVER}) == {"p-0": "secret not found"}
    assert rig.lists == 3


async def test_namespace_that_nobody_asks_about_is_forgotten(rig: Rig) -> None:
    """Symptom: the warnings of every namespace that ever had a waiting pod stayed in memory."""
    await rig.event("p-0", "secret not found")
    assert await rig.warnings.of("default", {"p-0": EVER})
    rig.now += FORGET_S
    rig.cluster.refuse["GET", "events"] = 500
    assert await rig.warnings.of("default", {"p-0": EVER}) == {}


def pending(*more: Object, since: str = SINCE_NOW, **status: object) -> Object:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": since}
    return {"metadata": {"name": "p"}, "status": {"phase": "Pending", "conditions": [scheduled, *more], **status}}


@pytest.mark.parametrize(
    ("pod", "after", "asked"),
    [
        (pending(), PATIENCE_S, True),
        (pending(), PATIENCE_S - 1, False),
        ({"metadata": {"name": "p"}, "status": {"phase": "Pending"}}, 3600, False),
        (pending(initContainerStatuses=[{"state": {"running": {}}}]), 3600, False),
        (pending(containerStatuses=[{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]), 3600, False),
        (pending(containerStatuses=[{"state": {"waiting": {"reason": "PodInitializing"}}}]), 3600, True),
        ({"metadata": {"name": "p"}, "status": {"phase": "Running"}}, 3600, False),
    ],
)
def test_only_pods_that_nothing_else_explains_are_asked_about(pod: Object, after: float, asked: bool) -> None:
    assert unexplained(pod, NOW + after) is asked
