"""Reconciles over real HTTP against an API server in this process: converging, staying silent, and bad days."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections import Counter
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
from tandem_operator.plan.observed import CAME_UP
from tandem_operator.reconcile import Outcome, Reconciler


class Operator:
    """One operator process, restarted for every reconcile if asked: nothing may live in its memory."""

    def __init__(self, cluster: FakeCluster, client: Client) -> None:
        self.cluster = cluster
        self.client = client
        self.now = NOW

    async def reconcile(self) -> Outcome:
        mirror = Mirror(self.client)
        await mirror.refresh()
        return await Reconciler(self.client, mirror, INSTALLATION, clock=lambda: self.now).reconcile("default", "chat")

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
            assert isinstance(outcome, Outcome) or (isinstance(outcome, ApiError) and outcome.status == 409), outcome

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


async def test_why_pods_are_not_made_is_told_while_it_holds(operator: Operator) -> None:
    """Only events say that a quota refuses a StatefulSet's pods. Another object of that name is not meant."""
    await operator.reconcile()
    (decode,) = (s for s in operator.cluster.all("StatefulSet") if "decode" in s["metadata"]["name"])
    for kind, message in (("StatefulSet", "exceeded quota: q"), ("Service", "no address is left")):
        await operator.cluster.put(
            {
                "kind": "Event",
                "metadata": {"name": kind.lower(), "namespace": "default"},
                "involvedObject": {"kind": kind, "name": decode["metadata"]["name"]},
                "type": "Warning",
                "lastTimestamp": decode["metadata"]["creationTimestamp"],
                "message": message,
            }
        )
    operator.now += 60
    await operator.reconcile()
    assert operator.condition("DecodeReady")["reason"] == "PodsRefused"
    assert operator.condition("DecodeReady")["message"].endswith("exceeded quota: q")
    await operator.settle()
    assert operator.condition("Degraded")["status"] == "False"


@pytest.mark.parametrize(
    ("status", "message", "lasts"),
    [
        (403, "exceeded quota", True),
        (500, 'failed calling webhook "v.example.com": service "gone" not found', True),
        (500, "etcdserver: request timed out", False),
        (409, "the object has been modified", False),
    ],
)
def test_refusals_that_waiting_does_not_change_are_known(status: int, message: str, lasts: bool) -> None:
    assert ApiError(status, "", message).lasts is lasts


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


async def test_deletion_amid_a_reconcile_leaves_nothing_behind(operator: Operator) -> None:
    """Children made after their owner is gone name an owner of no living uid, which the garbage collector removes. A
    service made anew under the name waits for that, adopts none of them, and does not get the old one's status."""
    await change(operator, ("suspend", True))

    async def made_anew() -> None:
        await operator.cluster.delete("InferenceService", "chat")
        await operator.cluster.put(body_of(("decode.scaling", {"maxReplicas": 3})))

    operator.cluster.amid["POST", "services"] = made_anew
    await operator.reconcile()
    new = operator.cluster.get("InferenceService", "chat")
    assert new is not None
    assert "status" not in new, "told of the service that is gone: 0/0, Suspended"
    await operator.reconcile()
    assert operator.condition("Ready")["reason"] == "NameTaken"
    assert await operator.cluster.collect_garbage() > 3
    await operator.settle()
    assert operator.condition("Ready")["status"] == "True"
    owners = {o["uid"] for kind in ("Service", "Secret", "StatefulSet") for child in operator.cluster.all(kind)
              for o in child["metadata"]["ownerReferences"]}  # fmt: skip
    assert owners == {new["metadata"]["uid"]}


async def test_status_of_an_older_spec_is_not_written_over_a_newer(operator: Operator) -> None:
    """Symptom: a paused operator that woke up told of 0/0 pods, long after the service had been resumed."""
    await change(operator, ("suspend", True))

    async def resumed_by_another_operator() -> None:
        await change(operator, ("decode.replicas", 2))
        await operator.reconcile()

    operator.cluster.amid["PATCH", "inferenceservices"] = resumed_by_another_operator
    outcome = await operator.reconcile()
    assert outcome.again == 0
    service = operator.cluster.get("InferenceService", "chat")
    assert service is not None
    assert service["status"]["decode"]["desired"] == 2
    assert service["status"]["observedGeneration"] == service["metadata"]["generation"]


async def test_refused_child_leaves_the_counts_true(operator: Operator) -> None:
    """Symptom: resumed, but with an autoscaler that a quota refused, a service said DECODE 0/0 while its pods ran."""
    await change(operator, ("suspend", True))
    await operator.settle()
    await change(operator, ("decode.scaling", {"maxReplicas": 3}))
    for _ in range(3):
        operator.cluster.refuse["POST", "horizontalpodautoscalers"] = 403
        await operator.reconcile()
        await operator.cluster.run_pods()
    service = operator.cluster.get("InferenceService", "chat")
    assert service is not None
    assert operator.condition("Ready")["reason"] == "ChildRefused"
    assert service["status"]["decode"]["summary"] == "1/1"


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


async def test_decisions_on_a_mirror_that_lags_keep_the_limits(operator: Operator) -> None:
    """What others did since is not known yet: never more pods than maxSurge allows, and the end is the same."""
    mirror = Mirror(operator.client)
    await mirror.refresh()
    reconciler = Reconciler(operator.client, mirror, INSTALLATION, clock=lambda: NOW)
    for changes in [("decode.replicas", 3)], [("decode.replicas", 3), ("restartedAt", "now")]:
        await change(operator, *changes)
        for turn in range(60):
            with contextlib.suppress(ApiError):
                await reconciler.reconcile("default", "chat")
            await operator.cluster.run_pods()
            decode = [s for s in operator.cluster.all("StatefulSet") if "decode" in s["metadata"]["name"]]
            assert sum(s["spec"]["replicas"] for s in decode) <= 4, "more than maxSurge allows"
            if turn % 3 == 2:
                await mirror.refresh()
        assert operator.condition("Ready")["status"] == "True", operator.condition("Ready")


async def test_set_that_is_gone_meanwhile_is_not_made_anew_by_a_change_of_it(operator: Operator) -> None:
    """Symptom: an old set that another operator had deleted came back for a moment, with the one pod of the default."""
    await operator.settle()
    mirror = Mirror(operator.client)
    await mirror.refresh()
    decode = next(s for s in operator.cluster.all("StatefulSet") if "decode" in s["metadata"]["name"])
    edited = copy.deepcopy(decode)
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"
    mirror.wrote(STATEFUL_SET, copy.deepcopy(await operator.cluster.put(edited)))
    await operator.cluster.delete("StatefulSet", decode["metadata"]["name"])
    with pytest.raises(ApiError, match="409"):
        await Reconciler(operator.client, mirror, INSTALLATION, clock=lambda: operator.now).reconcile("default", "chat")
    assert operator.cluster.get("StatefulSet", decode["metadata"]["name"]) is None
    await operator.settle()
    assert operator.condition("Ready")["status"] == "True"


async def test_nothing_is_decided_where_children_could_not_be_read(operator: Operator) -> None:
    """Unseen, the pods of an old revision would count for nothing, and be added to in full."""
    outcome = await Reconciler(operator.client, Mirror(operator.client), INSTALLATION).reconcile("default", "chat")
    assert outcome.ready == "Unknown"
    assert outcome.again is not None
    assert operator.cluster.writes.total() == 0
