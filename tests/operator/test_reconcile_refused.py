"""What an API server may refuse a reconcile, and what then becomes of the service."""

from __future__ import annotations

import kopf
import pytest
from support.bad_specs import service as body_of
from support.fake_cluster import FakeCluster
from support.infsvc import INSTALLATION, NOW
from support.kube_controllers import run_pods
from support.kube_objects import Object
from support.reconciling import Operator, change
from tandem_operator.cluster.client import ApiError, Client
from tandem_operator.cluster.mirror import Mirror
from tandem_operator.reconcile import Reconciler


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


async def test_refused_child_leaves_the_counts_true(operator: Operator) -> None:
    """Symptom: resumed, but with an autoscaler that a quota refused, a service said DECODE 0/0 while its pods ran."""
    await change(operator, ("suspend", True))
    await operator.settle()
    await change(operator, ("decode.scaling", {"maxReplicas": 3}))
    for _ in range(3):
        operator.cluster.refuse["POST", "horizontalpodautoscalers"] = 403
        await operator.reconcile()
        await run_pods(operator.cluster)
    service = operator.cluster.get("InferenceService", "chat")
    assert service is not None
    assert operator.condition("Ready")["reason"] == "ChildRefused"
    assert service["status"]["decode"]["summary"] == "1/1"


@pytest.mark.parametrize(
    "owner",
    [
        {},
        # KServe's, which has services of the same name.
        {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "name": "chat", "controller": True},
    ],
)
async def test_name_of_someone_elses_object_is_not_taken(operator: Operator, owner: Object) -> None:
    meta = {"name": "chat-gateway", "ownerReferences": [{**owner, "uid": "theirs"}]}
    theirs = {"kind": "Service", "metadata": meta, "spec": {"selector": {"app": "theirs"}}}
    await operator.cluster.put(theirs)
    await operator.reconcile()
    assert operator.condition("Ready")["reason"] == "NameTaken"
    assert "Service chat-gateway exists" in operator.condition("Ready")["message"]
    kept = operator.cluster.get("Service", "chat-gateway")
    assert kept is not None
    assert kept["spec"] == {"selector": {"app": "theirs"}}


async def test_events_that_may_not_be_listed_hold_up_nothing(operator: Operator) -> None:
    """Symptom: a service of which one pod waited was planned no more, since only events could say why it does."""
    await operator.settle()
    pod = operator.cluster.all("Pod")[0]
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    await operator.cluster.put({**pod, "status": {"phase": "Pending", "conditions": [scheduled]}})
    await change(operator, ("decode.replicas", 5))
    operator.cluster.refuse["GET", "events"] = 403
    await operator.reconcile()
    assert not operator.cluster.refuse, "nobody asked"
    decode = [s for s in operator.cluster.all("StatefulSet") if "decode" in s["metadata"]["name"]]
    assert [s["spec"]["replicas"] for s in decode] == [5]
