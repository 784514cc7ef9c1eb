"""Children that others change: taken back, left alone, found again."""

from __future__ import annotations

import copy

from support.reconciling import Operator, change


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
