"""Everything a service should consist of next: observed children in, desired children out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem_operator.api.roles import RoleSpec
from tandem_operator.plan import names
from tandem_operator.plan.context import ENGINE_ROLES, EngineRole, Installation, Manifest, Service
from tandem_operator.plan.engine import engine_set
from tandem_operator.plan.gateway import gateway_children
from tandem_operator.plan.guards import autoscaler, guards
from tandem_operator.plan.model import ModelPlan, plan_model
from tandem_operator.plan.observed import CAME_UP, EngineSet, Observed, recorded_template
from tandem_operator.plan.revision import revision
from tandem_operator.plan.rollout import RoleGoal, plan_rollout
from tandem_operator.plan.ticket_keys import next_ring, read_ring, secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    revision: str
    model: ModelPlan
    desired: dict[EngineRole, int]
    """Pods each role should have when nothing is left to do."""
    rolling: bool
    """Whether sets of another revision are still there."""
    children: tuple[Manifest, ...]
    """All that should exist, in the order in which it should be made; what is missing here should go."""


def plan_children(
    service: Service, observed: Observed, installation: Installation, *, fresh_key: str, now: float
) -> Plan:
    """`fresh_key` becomes a ticket key where one is due; `now` in Unix seconds. Raises `InvalidSpec`."""
    target = revision(service.spec)
    models = {role: plan_model(service.spec.model, getattr(service.spec, role), installation) for role in ENGINE_ROLES}
    sets = observed.engine_sets()
    rolling = any(s.view.revision != target for s in sets)
    desired = {role: desired_replicas(service, role, sets) for role in ENGINE_ROLES}
    goals = {role: _goal(getattr(service.spec, role), desired[role]) for role in ENGINE_ROLES}
    counts = plan_rollout(target, goals, [s.view for s in sets])

    ring = next_ring(read_ring(observed.get("Secret", names.ticket_key(service.name)), now), fresh=fresh_key, now=now)
    deployed, exposed = (observed.get(kind, names.gateway(service.name)) for kind in ("Deployment", "Service"))
    children = [secret(service, ring), *guards(service, installation, pod_monitors=observed.pod_monitors)]
    known = {(s.view.role, s.view.revision): s for s in sets}
    for (role, set_revision), count in counts.items():
        there = known.get((role, set_revision))
        spec: RoleSpec = getattr(service.spec, role)
        # One writer of replicas at a time: the planner during a rollout and around a suspension, else the autoscaler.
        autoscaled = spec.scaling is not None and not rolling and there is not None and count == there.view.replicas
        children.append(
            _existing(there, count)
            if there is not None and set_revision != target
            else engine_set(
                service,
                role,
                set_revision,
                models[role],
                installation,
                replicas=None if autoscaled else count,
                recorded=recorded_template(there.manifest) if there else None,
                wanted=_wanted(spec, there, desired[role]),
                came_up=there is not None and there.came_up,
            )
        )
    if not rolling and not service.spec.suspend:
        scalers = (autoscaler(service, role, names.engine_set(service.name, role, target)) for role in ENGINE_ROLES)
        children += [scaler for scaler in scalers if scaler is not None]
    children += gateway_children(service, installation, deployed, exposed)
    return Plan(
        revision=target,
        model=models["decode"],
        desired=desired,
        rolling=rolling,
        children=tuple(children),
    )


def desired_replicas(service: Service, role: EngineRole, sets: Sequence[EngineSet]) -> int:
    """Of an autoscaled role: what the autoscaler last chose, or what it had chosen when the rollout began."""
    spec: RoleSpec = getattr(service.spec, role)
    if service.spec.suspend:
        return 0
    if spec.scaling is None:
        return spec.fixed_replicas
    mine = sorted((s for s in sets if s.view.role == role), key=lambda s: s.created)
    # Amid a rollout the sets' sizes say little; the newest set carries what the autoscaler had chosen before it.
    recorded = mine[-1].wanted if len(mine) > 1 else None
    chosen = sum(s.view.replicas for s in mine) if recorded is None else recorded
    return min(spec.scaling.max_replicas, max(spec.scaling.min_replicas, chosen))


def _goal(spec: RoleSpec, desired: int) -> RoleGoal:
    return RoleGoal(
        desired=desired,
        max_surge=spec.rollout.max_surge,
        max_unavailable=spec.rollout.max_unavailable,
        recreate=spec.rollout.strategy == "Recreate",
    )


def _wanted(spec: RoleSpec, there: EngineSet | None, desired: int) -> int | None:
    if spec.scaling is None:
        return None
    return desired if there is None or there.wanted is None else there.wanted


def _existing(there: EngineSet, replicas: int) -> Manifest:
    """An old set as it is, only with another number of pods."""
    meta, spec = there.manifest["metadata"], there.manifest["spec"]
    kept = {key: meta[key] for key in ("name", "namespace", "labels", "annotations", "ownerReferences") if key in meta}
    if there.came_up:
        kept["annotations"] = {**(meta.get("annotations") or {}), CAME_UP: "true"}
    template = recorded_template(there.manifest) or spec["template"]
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": kept,
        "spec": {**spec, "replicas": replicas, "template": template},
    }
