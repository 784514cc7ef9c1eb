"""Reconciles over real HTTP against an API server in this process: converging, staying silent, and bad days."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator
from typing import Any

import kopf
import pytest
from support.bad_specs import service as body_of
from support.fake_cluster import FakeCluster, Object
from support.infsvc import INSTALLATION, NOW
from tandem_contract import labels
from tandem_operator.cluster.client import ApiError, Client
from tandem_operator.cluster.kinds import STATEFUL_SET
from tandem_operator.cluster.mirror import Mirror
from tandem_operator.reconcile import Reconciler


class Operator:
    """One operator process, restarted for every reconcile if asked: nothing may live in its memory."""

    def __init__(self, cluster: FakeCluster, client: Client) -> None:
        self.cluster = cluster
        self.client = client
        self.now = NOW

    async def reconcile(self) -> None:
        mirror = Mirror(self.client)
        await mirror.refresh()
        await Reconciler(self.client, mirror, INSTALLATION, clock=lambda: self.now).reconcile("default", "chat")

    async def settle(self, rounds: int = 40) -> int:
        """Reconciles and lets pods run until nothing changes; rounds it took."""
        for done in range(rounds):
            before = copy.deepcopy(self.cluster.objects)
            await self.reconcile()
            await self.cluster.run_pods()
            if self.cluster.objects == before:
                return done
        raise AssertionError("no end")

    def condition(self, name: str) -> Object:
        service = self.cluster.get("InferenceService", "chat")
        assert service is not None
        return next(c for c in service["status"]["conditions"] if c["type"] == name)

    def revisions(self) -> set[str]:
        return {s["metadata"]["labels"][labels.REVISION] for s in self.cluster.all("StatefulSet")}


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    async with FakeCluster() as cluster, Client(wrote=lambda kind, verb: None, login=cluster.login) as client:
        await cluster.put(body_of(("decode.replicas", 2)))
        yield Operator(cluster, client)


async def change(operator: Operator, *changes: tuple[str, Any]) -> None:
    service = operator.cluster.get("InferenceService", "chat")
    assert service is not None
    await operator.cluster.put({**service, "spec": body_of(*changes)["spec"]})


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


@pytest.mark.parametrize(
    ("method", "plural"),
    [("POST", "statefulsets"), ("POST", "services"), ("POST", "deployments"), ("PATCH", "inferenceservices")],
)
async def test_operator_that_dies_anywhere_is_resumed_by_the_next(operator: Operator, method: str, plural: str) -> None:
    operator.cluster.refuse[method, plural] = 500
    with pytest.raises(ApiError):
        await operator.reconcile()
    await operator.settle()
    assert operator.condition("Ready")["status"] == "True"


async def test_operator_killed_after_any_write_is_resumed_by_the_next(operator: Operator) -> None:
    """Every write of an installation and of a rollout is once the last one of its operator, which never hears of it."""
    await operator.settle()
    kills = 0
    for changes in [("prefill.scaling", {"maxReplicas": 3}), ("restartedAt", "now")], None:
        if changes is None:
            await operator.cluster.delete("InferenceService", "chat")
            await operator.cluster.put(body_of(("decode.replicas", 2)))
        else:
            await change(operator, *changes)
        for _ in range(200):
            operator.cluster.writes_left = 1
            with contextlib.suppress(ApiError):
                await operator.reconcile()
            if operator.cluster.writes_left == 1 and operator.condition("Ready")["status"] == "True":
                break
            kills += operator.cluster.writes_left == 0
            operator.cluster.writes_left = None
            await operator.cluster.run_pods()
        operator.cluster.writes_left = None
        assert operator.condition("Ready")["status"] == "True", changes
        assert len(operator.revisions()) == 1
    assert kills > 25


async def test_refused_token_is_read_anew_at_once() -> None:
    tokens = iter(["old", "new", "never asked for"])
    async with FakeCluster() as cluster:

        def login() -> kopf.ConnectionInfo:
            return kopf.ConnectionInfo(server=cluster.url, token=next(tokens))

        async with Client(wrote=lambda kind, verb: None, login=login) as client:
            await cluster.put(body_of())
            reconciler = Reconciler(client, Mirror(client), INSTALLATION, clock=lambda: NOW)
            cluster.refuse["GET", "inferenceservices"] = 401
            with pytest.raises(ApiError, match="401"):
                await reconciler.reconcile("default", "chat")
            for _ in range(2):
                await reconciler.reconcile("default", "chat")
    assert next(tokens) == "never asked for"


async def test_two_operators_at_once_end_where_one_does(operator: Operator) -> None:
    """As when a paused leader goes on: both write, from what they saw at about the same time."""

    async def both() -> None:
        for outcome in await asyncio.gather(operator.reconcile(), operator.reconcile(), return_exceptions=True):
            assert outcome is None or (isinstance(outcome, ApiError) and outcome.status == 409), outcome

    three = ("decode.replicas", 3)
    for changes in [three], [three, ("restartedAt", "now")], []:
        await change(operator, *changes)
        for _ in range(12):
            await both()
            await operator.cluster.run_pods()
            decode = [s for s in operator.cluster.all("StatefulSet") if "decode" in s["metadata"]["name"]]
            assert sum(s["spec"]["replicas"] for s in decode) <= 4, "more than maxSurge allows"
        assert operator.condition("Ready")["status"] == "True", operator.condition("Ready")
        operator.cluster.writes.clear()
        await both()
        assert not operator.cluster.writes


async def test_hand_edited_and_deleted_children_come_back(operator: Operator) -> None:
    await operator.settle()
    before = copy.deepcopy(operator.cluster.objects)
    service = copy.deepcopy(operator.cluster.get("Service", "chat-gateway"))
    assert service is not None
    service["spec"]["selector"] = {"app": "other"}
    service["metadata"]["annotations"] = {}
    await operator.cluster.put(service)
    await operator.cluster.delete("NetworkPolicy", "chat-engine")
    decode = copy.deepcopy(next(s for s in operator.cluster.all("StatefulSet") if "decode" in s["metadata"]["name"]))
    decode["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"
    decode["spec"]["replicas"] = 7
    await operator.cluster.put(decode)
    await operator.settle()
    specs = [{key: thing.get("spec") for key, thing in objects.items() if key[0] != "events"} for objects in
             (before, operator.cluster.objects)]  # fmt: skip
    assert specs[0] == specs[1]


@pytest.mark.parametrize("role", ["prefill", "gateway"])
async def test_misspelt_affinity_is_told_and_not_dropped(operator: Operator, role: str) -> None:
    """Symptom: made by POST, a set went without the affinity; applied, its service was tried again without a word."""
    await change(operator, (f"{role}.template.affinity", {"nodeAfinity": {}}))
    await operator.reconcile()
    assert operator.condition("Ready")["reason"] == "ChildRefused"
    assert "affinity.nodeAfinity" in operator.condition("Ready")["message"]
    await change(operator)
    await operator.settle()
    assert operator.condition("Ready")["status"] == "True"


async def test_set_that_lost_its_labels_is_found_again(operator: Operator) -> None:
    """Symptom: not found by label, the set was made again, and the service ended in NameTaken for good."""
    await operator.settle()
    before = copy.deepcopy(operator.cluster.all("StatefulSet"))
    bare = copy.deepcopy(before[0])
    bare["metadata"]["labels"] = {}
    await operator.cluster.put(bare)
    await operator.settle()
    assert [{**s["metadata"], "resourceVersion": ""} for s in operator.cluster.all("StatefulSet")] == [
        {**s["metadata"], "resourceVersion": ""} for s in before
    ]
    assert operator.condition("Ready")["status"] == "True"


async def test_former_leader_deletes_nothing_that_changed_since_it_looked(operator: Operator) -> None:
    """A paused operator wanted to remove an old, empty set, which a revert had brought back to work meanwhile."""
    await operator.settle()
    seen = copy.deepcopy(operator.cluster.all("StatefulSet")[0])
    revived = copy.deepcopy(seen)
    revived["spec"]["replicas"] += 1
    await operator.cluster.put(revived)
    with pytest.raises(ApiError) as refused:
        await operator.client.delete(STATEFUL_SET, seen)
    assert refused.value.status == 409
    assert operator.cluster.get("StatefulSet", seen["metadata"]["name"]) is not None


async def test_field_taken_out_of_the_spec_is_taken_out_of_the_child(operator: Operator) -> None:
    settings = {"type": "LoadBalancer", "annotations": {"cloud/bandwidth": "100"}}
    await change(operator, ("gateway.service", settings))
    await operator.settle()
    await change(operator, ("gateway.service", {"type": "LoadBalancer"}))
    await operator.settle()
    service = operator.cluster.get("Service", "chat-gateway")
    assert service is not None
    assert "cloud/bandwidth" not in service["metadata"]["annotations"]


async def test_autoscaler_keeps_what_it_chose(operator: Operator) -> None:
    await change(operator, ("decode.scaling", {"minReplicas": 1, "maxReplicas": 9}))
    await operator.settle()
    decode = copy.deepcopy(next(s for s in operator.cluster.all("StatefulSet") if "decode" in s["metadata"]["name"]))
    decode["spec"]["replicas"] = 6
    await operator.cluster.put(decode)
    await operator.settle()
    found = operator.cluster.get("StatefulSet", decode["metadata"]["name"])
    assert found is not None
    assert found["spec"]["replicas"] == 6


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


async def test_name_of_someone_elses_object_is_not_taken(operator: Operator) -> None:
    theirs = {"kind": "Service", "metadata": {"name": "chat-gateway"}, "spec": {"selector": {"app": "theirs"}}}
    await operator.cluster.put(theirs)
    await operator.reconcile()
    assert operator.condition("Ready")["reason"] == "NameTaken"
    assert "Service chat-gateway exists" in operator.condition("Ready")["message"]
    kept = operator.cluster.get("Service", "chat-gateway")
    assert kept is not None
    assert kept["spec"] == {"selector": {"app": "theirs"}}


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
