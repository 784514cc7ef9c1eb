"""How many pods each revision of each role should have next. Pure: the same picture always gives the same answer.

Prefill and decode of a revision belong together, so a new revision arrives in step:

- prefill first: while old decode pods serve, new decode pods come only as new prefill pods are ready for them, so a
  revision whose prefill cannot start never answers a client;
- old prefill pods stay in proportion to the old decode pods that need them.

Each role keeps to its own limits: never more than desired + max_surge pods, those still terminating included (they hold
their GPUs), and never fewer than desired - max_unavailable available ones, except for pods that failed by themselves.
A revision of which no pod has come up counts for nothing: it is removed first, and so cannot block its own fix.

A StatefulSet removes its highest ordinals, ready or not. Therefore all pods of an old set that has come up count as
available: a pod of it that failed by itself is not held against the rollout, which could otherwise never end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tandem_operator.plan.context import EngineRole

Key = tuple[EngineRole, str]
"""Role and revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleGoal:
    desired: int
    max_surge: int = 1
    max_unavailable: int = 0
    recreate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetView:
    role: EngineRole
    revision: str
    replicas: int
    """As last written."""
    existing: int
    """Pods, terminating ones included."""
    ready: int
    came_up: bool
    """Whether any pod has finished starting, ready at this moment or not."""

    @property
    def occupied(self) -> int:
        return max(self.replicas, self.existing)


def plan_rollout(target: str, goals: Mapping[EngineRole, RoleGoal], sets: Sequence[SetView]) -> dict[Key, int]:
    """Replicas by role and revision. An old set that is left out has no pods any more and can be deleted."""
    prefill = _Role.of("prefill", target, goals["prefill"], sets)
    decode = _Role.of("decode", target, goals["decode"], sets)
    needed = decode.old_needed * prefill.goal.desired // decode.goal.desired if decode.goal.desired else 0
    admitted = decode.goal.desired
    if decode.old_needed and prefill.goal.desired:
        admitted = min(admitted, -(-prefill.new.ready * decode.goal.desired // prefill.goal.desired))
    return {
        **prefill.step(admitted=prefill.goal.desired, keep_old=needed - prefill.goal.max_unavailable),
        **decode.step(admitted=admitted, keep_old=decode.goal.desired - admitted),
    }


@dataclass(frozen=True, slots=True)
class _Role:
    goal: RoleGoal
    new: SetView
    old: tuple[SetView, ...]
    """Those that never came up first, then the smallest."""

    @classmethod
    def of(cls, role: EngineRole, target: str, goal: RoleGoal, sets: Sequence[SetView]) -> _Role:
        mine = [s for s in sets if s.role == role]
        absent = SetView(role=role, revision=target, replicas=0, existing=0, ready=0, came_up=False)
        new = next((s for s in mine if s.revision == target), absent)
        old = sorted((s for s in mine if s.revision != target), key=lambda s: (s.came_up, s.replicas, s.revision))
        return cls(goal, new, tuple(old))

    @property
    def old_needed(self) -> int:
        """Old pods that serve, or would if they had not failed by themselves."""
        return sum(s.replicas for s in self.old if s.came_up)

    def step(self, *, admitted: int, keep_old: int) -> dict[Key, int]:
        old = self._old(keep_old)
        replicas = {(s.role, s.revision): count for s, count in zip(self.old, old, strict=True) if count or s.occupied}
        return {(self.new.role, self.new.revision): self._new(admitted), **replicas}

    def _new(self, admitted: int) -> int:
        held = sum(s.occupied for s in self.old)
        if self.goal.recreate:
            room = 0 if held else self.goal.desired
        else:
            room = self.goal.desired + self.goal.max_surge - held
        return min(self.goal.desired, max(self.new.replicas, min(admitted, room)))

    def _old(self, keep: int) -> list[int]:
        if self.goal.recreate or self.goal.desired == 0:
            return [0] * len(self.old)
        available = min(self.new.ready, self.goal.desired) + self.old_needed
        spare = available - (self.goal.desired - self.goal.max_unavailable)
        droppable = max(0, min(spare, self.old_needed - keep))
        counts = []
        for s in self.old:
            drop = min(droppable, s.replicas) if s.came_up else s.replicas
            droppable -= drop if s.came_up else 0
            counts.append(s.replicas - drop)
        return counts
