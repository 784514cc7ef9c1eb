"""From one revision to the next, while pods fail or do not leave."""

from __future__ import annotations

import dataclasses

from support.infsvc import INSTALLATION
from support.reconciling import Operator, change
from tandem_contract import labels
from tandem_operator.plan.observed import CAME_UP


async def test_bad_revision_says_why_and_a_revert_gets_through(operator: Operator) -> None:
    await operator.settle()
    (good,) = operator.revisions()
    await change(operator, ("decode.replicas", 2), ("prefill.template.image", "broken:1"))
    await operator.settle()
    assert operator.condition("Degraded")["reason"] == "ImagePullFailed"
    assert "broken" in operator.condition("Ready")["message"]
    decode = [s for s in operator.cluster.all("StatefulSet") if s["metadata"]["labels"][labels.ROLE] == "decode"]
    assert {s["metadata"]["labels"][labels.REVISION]: s["spec"]["replicas"] for s in decode}[good] == 2
    await change(operator, ("decode.replicas", 2))
    await operator.settle()
    assert operator.revisions() == {good}
    assert operator.condition("Ready")["status"] == "True"


async def test_that_a_revision_came_up_is_noted_once_and_outlives_its_pods_restarts(operator: Operator) -> None:
    await operator.settle()
    noted = [CAME_UP in s["metadata"]["annotations"] for s in operator.cluster.all("StatefulSet")]
    assert noted == [True, True]
    await change(operator, ("decode.replicas", 2), ("decode.template.image", "broken:1"))
    await operator.reconcile()
    for pod in operator.cluster.all("Pod"):
        await operator.cluster.put({**pod, "status": {"phase": "Running", "conditions": []}})
    await operator.reconcile()
    old = [s for s in operator.cluster.all("StatefulSet") if CAME_UP in s["metadata"]["annotations"]]
    assert sorted(s["spec"]["replicas"] for s in old) == [1, 2], "dropped as revisions that never ran"
    # A hand takes the note away: the pods tell it again once they are up.
    for s in old:
        await operator.cluster.put({**s, "metadata": {**s["metadata"], "annotations": {}}})
    await change(operator, ("decode.replicas", 2))
    await operator.settle()
    assert all(CAME_UP in s["metadata"]["annotations"] for s in operator.cluster.all("StatefulSet"))


async def test_revision_that_fails_for_good_does_not_block_its_own_fix(operator: Operator) -> None:
    """It once came up, but not since: its pods hold the GPUs that the next one needs."""
    await operator.settle()
    for pod in operator.cluster.all("Pod"):
        state = {"waiting": {"reason": "CrashLoopBackOff"}}
        status = {"phase": "Running", "conditions": [], "containerStatuses": [{"name": "engine", "state": state}]}
        await operator.cluster.put({**pod, "status": status})
    await change(operator, ("decode.replicas", 2), ("restartedAt", "now"))
    await operator.reconcile()
    old = [s for s in operator.cluster.all("StatefulSet") if CAME_UP in s["metadata"]["annotations"]]
    assert [s["spec"]["replicas"] for s in old] == [0, 0]


async def test_pod_stuck_on_a_lost_node_holds_up_no_rollout(operator: Operator) -> None:
    """Symptom: with maxSurge 1 the new revision never got its second pod, since the lost one counted for ever."""
    await operator.settle()
    (lost,) = [pod for pod in operator.cluster.all("Pod") if "decode" in pod["metadata"]["name"]
               and pod["metadata"]["name"].endswith("-1")]  # fmt: skip
    due = {"deletionTimestamp": "2027-01-15T07:50:00Z"}
    status = {**lost["status"], "conditions": [{"type": "Ready", "status": "False"},
                                               {"type": "ContainersReady", "status": "True"}]}  # fmt: skip
    lost = {**lost, "metadata": {**lost["metadata"], **due}, "spec": {"nodeName": "gpu-7"}, "status": status}
    operator.cluster.stuck.add(lost["metadata"]["name"])
    await operator.cluster.put(lost)
    await operator.reconcile()
    assert operator.condition("DecodeReady")["reason"] == "StuckTerminating"
    assert "kubectl delete node gpu-7" in operator.condition("Ready")["message"]
    before = operator.revisions()
    await change(operator, ("decode.replicas", 2), ("restartedAt", "now"))
    await operator.settle()
    assert operator.revisions().isdisjoint(before)
    assert operator.condition("Ready")["status"] == "True"


async def test_operator_upgraded_while_a_service_is_suspended_starts_none_of_it(operator: Operator) -> None:
    await operator.settle()
    before = operator.revisions()
    (image,) = engine_images(operator)
    await change(operator, ("decode.replicas", 2), ("suspend", True))
    await operator.settle()
    operator.installation = dataclasses.replace(INSTALLATION, engine_image="newer:2", small_image="newer-small:2")
    await operator.settle()
    assert not operator.cluster.all("Pod")
    assert operator.condition("Ready")["reason"] == "Suspended"
    await change(operator, ("decode.replicas", 2))
    await operator.settle()
    assert operator.condition("Ready")["status"] == "True"
    assert (operator.revisions(), engine_images(operator)) == (before, {image}), "the pods are those that it had"


def engine_images(operator: Operator) -> set[str]:
    return {s["spec"]["template"]["spec"]["containers"][0]["image"] for s in operator.cluster.all("StatefulSet")}
