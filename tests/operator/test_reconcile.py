"""Reconciles over real HTTP against an API server in this process: converging, and then staying silent."""

from __future__ import annotations

import copy
from collections import Counter

from support.infsvc import INSTALLATION, NOW
from support.reconciling import Operator, change
from tandem_operator.cluster.mirror import Mirror
from tandem_operator.reconcile import Reconciler


async def test_service_becomes_ready_and_then_nothing_is_written(operator: Operator) -> None:
    await operator.settle()
    assert operator.condition("Ready")["status"] == "True"
    service = operator.cluster.get("InferenceService", "chat")
    assert service is not None
    assert service["status"]["decode"]["summary"] == "2/2"
    assert service["status"]["url"] == "http://chat-gateway.default.svc.cluster.local:8000"
    operator.cluster.writes.clear()
    for _ in range(3):
        await operator.reconcile()
    assert not operator.cluster.writes


async def test_new_generation_is_not_ready_before_its_pods_are(operator: Operator) -> None:
    """Symptom elsewhere: `kubectl wait` right after `kubectl apply` returns on the old pods' readiness."""
    await operator.settle()
    for changes in [("gateway.strategy", "RoundRobin")], [("decode.replicas", 4)], [("restartedAt", "now")]:
        await change(operator, *changes)
        await operator.reconcile()
        assert operator.condition("Ready")["status"] == "False", changes
        assert operator.condition("Ready")["observedGeneration"] == operator.cluster.all("InferenceService")[0][
            "metadata"]["generation"]  # fmt: skip
        await operator.settle()
        assert operator.condition("Ready")["status"] == "True", changes


async def test_unusable_spec_is_told_and_leaves_the_pods_alone(operator: Operator) -> None:
    await operator.settle()
    before = operator.revisions()
    await change(operator, ("model.preset", "Qwen9"))
    await operator.settle()
    assert operator.condition("Ready")["reason"] == "InvalidSpec"
    assert "spec.model.preset: Qwen9 is unknown" in operator.condition("Ready")["message"]
    assert operator.revisions() == before


async def test_deletion_leaves_nothing(operator: Operator) -> None:
    await operator.settle()
    await operator.cluster.delete("InferenceService", "chat")
    await operator.reconcile()
    assert {key[0] for key in operator.cluster.objects} <= {"events"}


async def test_reconcile_of_what_is_well_costs_two_requests(operator: Operator) -> None:
    await operator.settle()
    mirror = Mirror(operator.client)
    await mirror.refresh()
    operator.cluster.requests.clear()
    await Reconciler(operator.client, mirror, INSTALLATION, clock=lambda: NOW).reconcile("default", "chat")
    assert operator.cluster.requests == {("get", "inferenceservices"): 1, ("get", "secrets"): 1}


async def test_first_reconcile_writes_each_child_once_and_reads_nothing_it_makes(operator: Operator) -> None:
    await operator.reconcile()
    requests = Counter(verb for verb, plural in operator.cluster.requests.elements() if plural != "events")
    assert requests == {"get": 2, "list": 10, "create": 15, "patch": 1}


async def test_second_reconcile_knows_what_the_first_one_wrote(operator: Operator) -> None:
    """No watch has told of it yet: what is looked for in vain would be made again."""
    mirror = Mirror(operator.client)
    await mirror.refresh()
    reconciler = Reconciler(operator.client, mirror, INSTALLATION, clock=lambda: NOW)
    for changes in [], [("prefill.scaling", {"maxReplicas": 3})], [("decode.replicas", 4)]:
        await change(operator, *changes)
        await reconciler.reconcile("default", "chat")
        operator.cluster.writes.clear()
        await reconciler.reconcile("default", "chat")
        assert not operator.cluster.writes, changes


async def test_nothing_is_decided_where_children_could_not_be_read(operator: Operator) -> None:
    """Unseen, the pods of an old revision would count for nothing, and be added to in full."""
    outcome = await Reconciler(operator.client, Mirror(operator.client), INSTALLATION).reconcile("default", "chat")
    assert outcome.ready == "Unknown"
    assert outcome.again is not None
    assert operator.cluster.writes.total() == 0


async def test_rotation_of_ticket_keys_reaches_the_secret(operator: Operator) -> None:
    await operator.settle()
    first = copy.deepcopy(operator.cluster.get("Secret", "chat-ticket-key"))
    operator.now += 40 * 24 * 3600
    for _ in range(3):
        await operator.settle()
        operator.now += 3600
    last = operator.cluster.get("Secret", "chat-ticket-key")
    assert first is not None
    assert last is not None
    assert first["data"] != last["data"]
    assert "steady" in str(last["metadata"]["annotations"])
