"""The status to write: all answers, counts and the address."""

from __future__ import annotations

from typing import Any

from tandem_contract import ports

from tandem_operator.plan import names
from tandem_operator.plan.context import ENGINE_ROLES, Manifest, Service
from tandem_operator.plan.observed import Observed
from tandem_operator.status.facts import Facts, RoleFacts
from tandem_operator.status.questions import QUESTIONS, Answer


def status(facts: Facts, previous: Manifest, *, now: str, cluster_domain: str) -> Manifest:
    """`previous` status gives unchanged conditions their transition time; `now` is RFC 3339."""
    answers = {name: question(facts) for name, question in QUESTIONS}
    counts = facts.gateway
    address = url(facts.service, facts.observed, cluster_domain)
    return {
        "observedGeneration": facts.service.generation,
        **({"url": address} if address else {}),
        "revision": facts.plan.revision,
        "model": {"servedName": facts.plan.model.served_name, "uri": facts.plan.model.uri},
        **{role: _role(facts.roles[role]) for role in ENGINE_ROLES},
        "gateway": {"replicas": counts["desired"], "ready": counts["ready"]},
        "conditions": _conditions(answers, previous, facts.service.generation, now),
    }


def halted_status(
    reason: str, message: str, otherwise: Manifest, previous: Manifest, *, generation: int, now: str
) -> Manifest:
    """Children are left as they are, so a spec that cannot be served does not take down the one before it.

    `otherwise`: the status if it were not for this; `previous`: the one that was last written.
    """
    answers = {
        "Ready": Answer("False", reason, message),
        "Progressing": Answer("False", reason, "Nothing goes on until this is repaired."),
        "Degraded": Answer("True", reason, message),
    }
    return _with(answers, otherwise, previous, generation, now)


def delayed_status(reason: str, message: str, otherwise: Manifest, previous: Manifest, *, now: str) -> Manifest:
    """What holds it up passes by itself. `otherwise` and `previous`: as of `halted_status`."""
    answers = {"Ready": Answer("False", reason, message), "Progressing": Answer("True", reason, message)}
    return _with(answers, otherwise, previous, otherwise["observedGeneration"], now)


def url(service: Service, observed: Observed, cluster_domain: str) -> str | None:
    """None while a load balancer has no address yet."""
    name = names.gateway(service.name)
    if service.spec.gateway.service.type == "ClusterIP":
        return f"http://{name}.{service.namespace}.svc.{cluster_domain}:{ports.API}"
    there: dict[str, Any] = observed.get("Service", name) or {}
    for ingress in there.get("status", {}).get("loadBalancer", {}).get("ingress", []):
        host = ingress.get("hostname") or ingress.get("ip")
        if host:
            return f"http://[{host}]:{ports.API}" if ":" in host else f"http://{host}:{ports.API}"
    return None


def _role(count: RoleFacts) -> Manifest:
    return {
        "summary": f"{count.updated_ready}/{count.desired}",
        "desired": count.desired,
        "replicas": count.pods,
        "updated": count.updated,
        "ready": count.ready,
    }


def _with(answers: dict[str, Answer], otherwise: Manifest, previous: Manifest, generation: int, now: str) -> Manifest:
    kept = [c for c in otherwise.get("conditions", []) if c["type"] not in answers]
    conditions = _conditions(answers, previous, generation, now)
    return {**otherwise, "observedGeneration": generation, "conditions": [*conditions, *kept]}


def _conditions(answers: dict[str, Answer], previous: Manifest, generation: int, now: str) -> list[Manifest]:
    before = {condition["type"]: condition for condition in previous.get("conditions", [])}
    conditions = []
    for name, answer in answers.items():
        old = before.get(name, {})
        same = old.get("status") == answer.status
        conditions.append(
            {
                "type": name,
                "status": answer.status,
                "reason": answer.reason,
                "message": answer.message,
                "observedGeneration": generation,
                "lastTransitionTime": old.get("lastTransitionTime", now) if same else now,
            }
        )
    return conditions
