"""What the questions may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tandem_operator.plan import names
from tandem_operator.plan.children import Plan
from tandem_operator.plan.context import ENGINE_ROLES, EngineRole, Manifest, Service
from tandem_operator.plan.observed import EngineSet, Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFacts:
    desired: int
    pods: int
    """Of any revision, terminating ones included."""
    ready: int
    updated: int
    """Of the wanted revision."""
    updated_ready: int

    @property
    def complete(self) -> bool:
        """Every desired pod of the wanted revision and ready, none of another."""
        return self.pods == self.updated == self.updated_ready == self.desired


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    service: Service
    plan: Plan
    observed: Observed
    roles: Mapping[EngineRole, RoleFacts]
    new_pods: Mapping[EngineRole, tuple[Manifest, ...]]
    """Pods of the wanted revision."""

    @classmethod
    def gather(cls, service: Service, plan: Plan, observed: Observed) -> Facts:
        sets = observed.engine_sets()
        target = {s.view.role: s for s in sets if s.view.revision == plan.revision}
        return cls(
            service=service,
            plan=plan,
            observed=observed,
            roles={role: _role(role, plan, sets, target.get(role)) for role in ENGINE_ROLES},
            new_pods={role: target[role].pods if role in target else () for role in ENGINE_ROLES},
        )

    @property
    def gateway(self) -> Mapping[Literal["desired", "pods", "ready", "updated"], int]:
        deployment = self.observed.get("Deployment", names.gateway(self.service.name)) or {}
        status = deployment.get("status", {})
        # Counts of an older generation describe other pods.
        current = status.get("observedGeneration", 0) >= deployment.get("metadata", {}).get("generation", 0)
        return {
            "desired": 0 if self.service.spec.suspend else self.service.spec.gateway.replicas,
            "pods": status.get("replicas", 0),
            "ready": status.get("readyReplicas", 0),
            "updated": status.get("updatedReplicas", 0) if current else 0,
        }


def _role(role: EngineRole, plan: Plan, sets: list[EngineSet], target: EngineSet | None) -> RoleFacts:
    mine = [s for s in sets if s.view.role == role]
    return RoleFacts(
        desired=plan.desired[role],
        pods=sum(s.view.existing for s in mine),
        ready=sum(s.view.ready for s in mine),
        updated=target.view.existing if target else 0,
        updated_ready=target.view.ready if target else 0,
    )
