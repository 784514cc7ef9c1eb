"""Reconciles that are cut off, run beside one another, or rest on what is no longer so."""

from __future__ import annotations

import asyncio
import contextlib
import copy

import pytest
from support.bad_specs import service as body_of
from support.infsvc import INSTALLATION, NOW
from support.kube_controllers import collect_garbage, run_pods
from support.reconciling import Operator, change
from tandem_operator.cluster.client import ApiError
from tandem_operator.cluster.kinds import STATEFUL_SET
from tandem_operator.cluster.mirror import Mirror
from tandem_operator.reconcile import Outcome, Reconciler


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
            await run_pods(operator.cluster)
        operator.cluster.writes_left = None
        assert operator.condition("Ready")["status"] == "True", changes
        assert len(operator.revisions()) == 1
    assert kills > 25


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
            await run_pods(operator.cluster)
            decode = [s for s in operator.cluster.all("StatefulSet") if "decode" in s["metadata"]["name"]]
            assert sum(s["spec"]["replicas"] for s in decode) <= 4, "more than maxSurge allows"
        assert operator.condition("Ready")["status"] == "True", operator.condition("Ready")
        operator.cluster.writes.clear()
        await both()
        assert not operator.cluster.writes


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
    outcome = await operator.reconcile()
    assert outcome.again is not None
    assert outcome.again < 10, "the Secret has no watch that tells when it is gone"
    assert operator.condition("Ready")["reason"] == "FormerChildren"
    assert "still belongs to a former InferenceService chat" in operator.condition("Ready")["message"]
    assert operator.condition("Progressing")["status"] == "True"
    assert operator.condition("Degraded")["status"] == "False"
    told = [event["type"] for event in operator.cluster.all("Event") if "FormerChildren" in event["reason"]]
    assert told == ["Normal", "Normal"], "nothing to repair, so nothing to warn of"
    assert await collect_garbage(operator.cluster) > 3
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
            await run_pods(operator.cluster)
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


async def test_two_operators_at_the_first_creation_keep_the_keys_that_were_there_first(operator: Operator) -> None:
    """Symptom: the second one wrote its own keys over those that pods had begun to know."""
    held: list[str] = []

    async def first_operator() -> None:
        await operator.reconcile()
        held.append(keys(operator))

    operator.cluster.amid["POST", "secrets"] = first_operator
    await operator.reconcile()
    await operator.settle()
    assert held == [keys(operator)]


async def test_rotation_that_rests_on_keys_of_long_ago_is_refused(operator: Operator) -> None:
    """A paused operator that woke up amid a rotation put a key of its own in the place of the one pods had learned."""
    await operator.settle()
    held: list[str] = []

    async def other_operator() -> None:
        await operator.reconcile()
        held.append(keys(operator))

    # The second time the Secret counts as applied already.
    for _ in range(2):
        operator.now += 40 * 24 * 3600
        operator.cluster.amid["PATCH", "secrets"] = other_operator
        with pytest.raises(ApiError, match="409"):
            await operator.reconcile()
        assert held[-1] == keys(operator)
        for _ in ("sign", "steady"):
            operator.now += 3600
            await operator.settle()


def keys(operator: Operator) -> str:
    secret = operator.cluster.get("Secret", "chat-ticket-key")
    assert secret is not None
    return str(secret["data"])
