"""The questions, in the order in which `kubectl describe` shows their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from tandem_operator.plan import names
from tandem_operator.plan.context import ENGINE_ROLES, EngineRole, Manifest
from tandem_operator.plan.observed import EngineSet
from tandem_operator.status.facts import Facts
from tandem_operator.status.trouble import Trouble, deployment_trouble, fetching, first_trouble, set_trouble

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Answer:
    status: Truth
    reason: str
    message: str = ""


Question = Callable[[Facts], Answer]


def model_ready(facts: Facts) -> Answer:
    """The weights are where the wanted pods can read them: some pod of the wanted revision got past its download."""
    uri = facts.plan.model.uri
    pods = [pod for role in ENGINE_ROLES for pod in facts.new_pods[role]]
    if facts.service.spec.suspend:
        return Answer("Unknown", "Suspended", "No pod is wanted.")
    found = first_trouble(pods, facts.observed)
    if found is not None and found.fetching:
        return Answer("False", found.reason, f"{uri}: {found.message} (pod {found.pod})")
    passed = [pod for pod in pods if any("terminated" in c.get("state", {}) for c in _inits(pod))]
    if passed:
        return Answer("True", "Available", uri)
    if any(fetching(pod) for pod in pods):
        return Answer("False", "Downloading", f"{uri}: follow it with kubectl logs POD -c fetch")
    return Answer("Unknown", "NoPodYet", "No pod has begun to fetch the model.")


def prefill_ready(facts: Facts) -> Answer:
    return _role_ready(facts, "prefill")


def decode_ready(facts: Facts) -> Answer:
    return _role_ready(facts, "decode")


def gateway_ready(facts: Facts) -> Answer:
    """All wanted gateways answer, and none of a former shape is left."""
    count = facts.gateway
    if facts.service.spec.suspend:
        return Answer("False", "Suspended", "spec.suspend is true.")
    summary = f"{count['ready']} of {count['desired']} gateways are ready."
    if count["ready"] == 0:
        found = _gateway_trouble(facts)
        return Answer("False", found.reason, _said(found)) if found else Answer("False", "NoGatewayReady", summary)
    if not count["pods"] == count["updated"] == count["ready"] == count["desired"]:
        return Answer("False", "Updating", summary)
    return Answer("True", "Answering", summary)


def scaling_ready(facts: Facts) -> Answer:
    """The autoscalers can work; True where none is wanted."""
    roles = [role for role in ENGINE_ROLES if getattr(facts.service.spec, role).scaling is not None]
    if not roles:
        return Answer("True", "FixedReplicas", "No role has scaling set.")
    if facts.service.spec.suspend:
        return Answer("False", "Suspended", "Autoscaling goes on when spec.suspend is false.")
    if facts.plan.rolling:
        return Answer("False", "RolloutInProgress", "Autoscaling goes on when the rollout has ended.")
    for role in roles:
        scaler = facts.observed.get("HorizontalPodAutoscaler", names.role(facts.service.name, role)) or {}
        conditions = scaler.get("status", {}).get("conditions", [])
        if not conditions:
            return Answer("Unknown", "NoReportYet", f"{role}: the autoscaler has not reported yet.")
        for condition in conditions:
            if condition["type"] in ("AbleToScale", "ScalingActive") and condition["status"] == "False":
                return Answer("False", condition.get("reason", "Inactive"), f"{role}: {condition.get('message', '')}")
    return Answer("True", "Active", f"Autoscaled: {', '.join(roles)}.")


def progressing(facts: Facts) -> Answer:
    """Something is still to change: pods of another revision, or pods that are not there yet."""
    if facts.plan.rolling:
        counts = ", ".join(
            f"{role} {facts.roles[role].updated_ready}/{facts.roles[role].desired}" for role in ENGINE_ROLES
        )
        return Answer("True", "RollingOut", f"Revision {facts.plan.revision}: {counts} ready.")
    if any(facts.roles[role].updated != facts.roles[role].desired for role in ENGINE_ROLES):
        return Answer("True", "Scaling", "Pods are being made or removed.")
    if not all(facts.roles[role].complete for role in ENGINE_ROLES):
        return Answer("True", "Starting", "Pods are not ready yet.")
    return Answer("False", "Complete", f"Revision {facts.plan.revision} is in place.")


def degraded(facts: Facts) -> Answer:
    """Something is wrong that does not go away by waiting; the service may still answer."""
    for role in ENGINE_ROLES:
        found = _role_trouble(facts, facts.observed.engine_sets(), role)
        if found is not None:
            return Answer("True", found.reason, f"{role}: {_said(found)}")
    found = _gateway_trouble(facts)
    if found is not None:
        return Answer("True", found.reason, f"gateway: {_said(found)}")
    return Answer("False", "Healthy")


PARTS: tuple[tuple[str, Question], ...] = (
    ("ModelReady", model_ready),
    ("PrefillReady", prefill_ready),
    ("DecodeReady", decode_ready),
    ("GatewayReady", gateway_ready),
)
"""All must be True for Ready, in the order in which they come to be."""


def ready(facts: Facts) -> Answer:
    """Every desired pod is updated and ready, none is of an old revision, the gateway answers. Repeats its first No,
    which says more than a part of which nothing is known yet."""
    if facts.service.spec.suspend:
        return Answer("False", "Suspended", "spec.suspend is true.")
    answers = [(name, question(facts)) for name, question in PARTS]
    for status in ("False", "Unknown"):
        for name, answer in answers:
            if answer.status == status:
                return Answer("False", answer.reason, answer.message or f"{name} is {answer.status}")
    return Answer("True", "Serving", f"Revision {facts.plan.revision} answers.")


QUESTIONS: tuple[tuple[str, Question], ...] = (
    ("Ready", ready),
    ("Progressing", progressing),
    *PARTS,
    ("ScalingReady", scaling_ready),
    ("Degraded", degraded),
)


def _role_ready(facts: Facts, role: EngineRole) -> Answer:
    count = facts.roles[role]
    if facts.service.spec.suspend:
        return Answer("False", "Suspended", "spec.suspend is true.")
    if count.desired == 0 and count.pods == 0:
        return Answer("True", "NoneWanted", f"No {role} pod is wanted.")
    summary = f"{count.updated_ready} of {count.desired} pods of revision {facts.plan.revision} are ready"
    if count.complete:
        return Answer("True", "AllReady", f"{summary}.")
    wanted = [s for s in facts.observed.engine_sets() if s.view.revision == facts.plan.revision]
    found = _role_trouble(facts, wanted, role)
    if found is not None:
        return Answer("False", found.reason, f"{summary}; {_said(found)}")
    if count.pods != count.updated:
        return Answer("False", "RollingOut", f"{summary}, {count.pods - count.updated} of another revision are left.")
    return Answer("False", "Scaling" if count.updated != count.desired else "Starting", f"{summary}.")


def _said(found: Trouble) -> str:
    return f"pod {found.pod}: {found.message}" if found.pod else found.message


def _role_trouble(facts: Facts, sets: Iterable[EngineSet], role: EngineRole) -> Trouble | None:
    mine = sorted((s for s in sets if s.view.role == role), key=lambda s: s.name)
    return next((found for s in mine if (found := set_trouble(s, facts.observed))), None)


def _gateway_trouble(facts: Facts) -> Trouble | None:
    selector = names.selector(facts.service, "gateway").items()
    pods = [pod for pod in facts.observed.pods if selector <= pod["metadata"].get("labels", {}).items()]
    deployment = facts.observed.get("Deployment", names.gateway(facts.service.name))
    return first_trouble(pods, facts.observed) or deployment_trouble(deployment or {})


def _inits(pod: Manifest) -> list[Manifest]:
    return [
        c
        for c in pod.get("status", {}).get("initContainerStatuses", [])
        if c.get("state", {}).get("terminated", {}).get("exitCode", 0) == 0
    ]
