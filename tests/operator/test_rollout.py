"""The rollout planner against simulated StatefulSets whose pods start slowly, never, or fail when they like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st
from tandem_operator.plan.context import ENGINE_ROLES, EngineRole
from tandem_operator.plan.rollout import RoleGoal, SetView, plan_rollout

Goals = Mapping[EngineRole, RoleGoal]
TERMINATING_TICKS = 2


@dataclass
class Pod:
    state: Literal["starting", "ready", "unready", "terminating", "stuck"] = "starting"
    """Stuck: terminating on a lost node, and overdue."""
    ticks: int = 0


@dataclass
class Sim:
    """StatefulSets as Kubernetes runs them: highest ordinals go first, an ordinal returns only after it is gone."""

    broken: set[tuple[EngineRole, str]] = field(default_factory=set)
    replicas: dict[tuple[EngineRole, str], int] = field(default_factory=dict)
    pods: dict[tuple[EngineRole, str], dict[int, Pod]] = field(default_factory=dict)
    noted: set[tuple[EngineRole, str]] = field(default_factory=set)
    """Sets of which a pod was once up, as the operator notes on them."""

    def views(self) -> list[SetView]:
        return [self.view(key) for key in self.replicas]

    def view(self, key: tuple[EngineRole, str]) -> SetView:
        states = [pod.state for pod in self.pods.get(key, {}).values() if pod.state != "stuck"]
        return SetView(
            role=key[0],
            revision=key[1],
            replicas=self.replicas.get(key, 0),
            existing=len(states),
            ready=states.count("ready"),
            came_up=key in self.noted,
        )

    def apply(self, counts: Mapping[tuple[EngineRole, str], int]) -> None:
        for key in [key for key in self.replicas if key not in counts]:
            left = [pod for pod in self.pods[key].values() if pod.state != "stuck"]
            assert not left, f"{key} is deleted while it has pods"
            del self.replicas[key], self.pods[key]
            self.noted.discard(key)
        for key, count in counts.items():
            self.replicas[key] = count
            self.pods.setdefault(key, {})

    def tick(self) -> None:
        for key, pods in self.pods.items():
            for ordinal, pod in list(pods.items()):
                pod.ticks += 1
                if pod.state == "stuck":
                    continue
                if pod.state == "terminating":
                    if pod.ticks >= TERMINATING_TICKS:
                        del pods[ordinal]
                elif ordinal >= self.replicas[key]:
                    pods[ordinal] = Pod("terminating")
                elif pod.state == "starting" and pod.ticks >= 2 and key not in self.broken:
                    pod.state = "ready"
                    self.noted.add(key)
            for ordinal in range(self.replicas[key]):
                pods.setdefault(ordinal, Pod())

    def fail(self, choice: int) -> None:
        """A ready pod stays up and unready from now on."""
        ready = [pod for pods in self.pods.values() for pod in pods.values() if pod.state == "ready"]
        if ready:
            ready[choice % len(ready)].state = "unready"

    def restart(self, choice: int) -> None:
        """All containers of a set start again at once, as after a power cut: no pod tells that it ran before."""
        if self.pods:
            pods = self.pods[sorted(self.pods)[choice % len(self.pods)]]
            for ordinal in [ordinal for ordinal, pod in pods.items() if pod.state in ("ready", "unready")]:
                pods[ordinal] = Pod()

    def lose(self, choice: int) -> None:
        """A pod is evicted from a node that is gone: it stays for good, and so its ordinal is never made again."""
        every = [(pods, ordinal) for pods in self.pods.values() for ordinal in pods]
        if every:
            pods, ordinal = every[choice % len(every)]
            pods[ordinal] = Pod("stuck")


def check_step(sim: Sim, target: str, goals: Goals, counts: Mapping[tuple[EngineRole, str], int]) -> None:
    """What must hold for every single decision."""
    views = {(v.role, v.revision): v for v in sim.views()}
    for role, goal in goals.items():
        mine = {key: view for key, view in views.items() if key[0] == role}
        before = sum(v.occupied for v in mine.values())
        after = sum(max(n, sim_existing(views, key)) for key, n in counts.items() if key[0] == role)
        surge = 0 if goal.recreate else goal.max_surge
        assert after <= max(before, goal.desired + surge), f"{role}: {after} pods, surge exceeded"

        if not goal.recreate:
            ready_before = sum(v.ready for v in mine.values())
            kept = [(view, ready_below(sim, key, counts.get(key, 0)), counts.get(key, 0)) for key, view in mine.items()]
            ready_after = sum(ready for _, ready, _ in kept)
            # What failed by itself and stays: old pods that are not ready, and new ones when the new set shrinks.
            failed = sum(n - ready for view, ready, n in kept if view.revision != target and view.came_up)
            shrunk = mine.get((role, target))
            if shrunk is not None and counts[(role, target)] < shrunk.replicas:
                failed += counts[(role, target)]
            floor = goal.desired - goal.max_unavailable - failed
            assert ready_after >= min(ready_before, floor), f"{role}: {ready_after} ready, {floor} promised"

    decode_before = views[("decode", target)].replicas if ("decode", target) in views else 0
    old_serve = any(v.came_up and v.replicas and v.role == "decode" and v.revision != target for v in views.values())
    prefill, decode = goals["prefill"].desired, goals["decode"].desired
    if old_serve and prefill and counts[("decode", target)] > decode_before:
        ready = views[("prefill", target)].ready if ("prefill", target) in views else 0
        assert counts[("decode", target)] <= -(-ready * decode // prefill), "decode pods came before their prefill pods"


def sim_existing(views: Mapping[tuple[EngineRole, str], SetView], key: tuple[EngineRole, str]) -> int:
    return views[key].existing if key in views else 0


def ready_below(sim: Sim, key: tuple[EngineRole, str], count: int) -> int:
    return sum(pod.state == "ready" for ordinal, pod in sim.pods[key].items() if ordinal < count)


def step(sim: Sim, target: str, goals: Goals) -> dict[tuple[EngineRole, str], int]:
    counts = plan_rollout(target, goals, sim.views())
    check_step(sim, target, goals, counts)
    sim.apply(counts)
    return counts


def settle(sim: Sim, target: str, goals: Goals, ticks: int = 600) -> int:
    """Ticks until every role has all its pods, of the target revision, ready, and nothing else."""
    for tick in range(ticks):
        step(sim, target, goals)
        if done(sim, target, goals):
            return tick
        sim.tick()
    raise AssertionError(f"no end after {ticks} ticks: {sim.views()}")


def done(sim: Sim, target: str, goals: Goals) -> bool:
    wanted = {(role, target): goals[role].desired for role in ENGINE_ROLES}
    return sim.replicas == wanted and all(
        len(sim.pods[key]) == n and sim.view(key).ready == n for key, n in wanted.items()
    )


def goal(desired: int = 2, surge: int = 1, unavailable: int = 0, *, recreate: bool = False) -> RoleGoal:
    return RoleGoal(desired=desired, max_surge=surge, max_unavailable=unavailable, recreate=recreate)


def serving(target: str, goals: Goals, *broken: tuple[EngineRole, str]) -> Sim:
    sim = Sim(broken=set(broken))
    settle(sim, target, goals)
    return sim


limits = st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any)
role_goals = st.builds(
    lambda desired, surge_unavailable, recreate: goal(desired, *surge_unavailable, recreate=recreate),
    st.integers(1, 6),
    limits,
    st.sampled_from([False, False, False, True]),
)
all_goals = st.fixed_dictionaries({"prefill": role_goals, "decode": role_goals})
events = st.lists(
    st.one_of(
        st.tuples(st.just("spec"), st.sampled_from("abcdef")),
        st.tuples(st.just("scale"), all_goals),
        st.tuples(st.just("ticks"), st.integers(1, 8)),
        st.tuples(st.just("fail"), st.integers(0, 20)),
        st.tuples(st.just("restart"), st.integers(0, 20)),
        st.tuples(st.just("lose"), st.integers(0, 20)),
        st.tuples(st.just("suspend"), st.none()),
    ),
    max_size=12,
)
broken_sets = st.sets(st.tuples(st.sampled_from(ENGINE_ROLES), st.sampled_from("bcd")), max_size=3)


@settings(max_examples=200, deadline=None)
@given(goals=all_goals, events=events, broken=broken_sets)
def test_every_history_keeps_the_promises_and_ends_well(goals: Goals, events: list, broken: set) -> None:  # type: ignore[type-arg]
    """Whatever happened (bad revisions, reverts, edits, failures), a good last spec gets through."""
    sim, target = serving("a", goals, *broken), "a"
    for kind, value in events:
        match kind:
            case "spec":
                target = value
            case "scale":
                goals = value
            case "suspend":
                goals = {role: goal(0) for role in ENGINE_ROLES}
            case "fail":
                sim.fail(value)
            case "restart":
                sim.restart(value)
            case "lose":
                sim.lose(value)
            case "ticks":
                for _ in range(value):
                    step(sim, target, goals)
                    sim.tick()
    sim.broken = {key for key in sim.broken if key[1] != "e"}
    # Lost pods of other revisions stay lost, and must hold nothing up; somebody deletes the node of this one's.
    for role in ENGINE_ROLES:
        pods = sim.pods.get((role, "e"), {})
        for ordinal in [ordinal for ordinal, pod in pods.items() if pod.state == "stuck"]:
            del pods[ordinal]
    step(sim, "e", goals)
    for _ in range(600):
        if done(sim, "e", goals):
            break
        step(sim, "e", goals)
        sim.tick()
        # Pods of the wanted revision recover, as kubelets restart them; old ones may stay as they failed.
        for role in ENGINE_ROLES:
            for pod in sim.pods.get((role, "e"), {}).values():
                pod.state = "ready" if pod.state == "unready" else pod.state
    assert done(sim, "e", goals), sim.views()
    assert plan_rollout("e", goals, sim.views()) == sim.replicas, "no steady state"


@settings(max_examples=100, deadline=None)
@given(any_goals=all_goals, bad=st.sampled_from(ENGINE_ROLES), ticks=st.integers(1, 40), fixed=st.sampled_from("ac"))
def test_bad_revision_gets_no_traffic_and_the_old_one_goes_on(
    any_goals: Goals, bad: EngineRole, ticks: int, fixed: str
) -> None:
    goals = {
        role: goal(g.desired, g.max_surge, g.max_unavailable or (not g.max_surge)) for role, g in any_goals.items()
    }
    sim = serving("a", goals, (bad, "b"))
    for _ in range(ticks):
        step(sim, "b", goals)
        sim.tick()
        if bad == "prefill":
            assert ("decode", "b") not in sim.replicas or sim.replicas[("decode", "b")] == 0
        assert sim.view(("decode", "a")).ready >= goals["decode"].desired - goals["decode"].max_unavailable
    settle(sim, fixed, goals)


def test_first_install_starts_everything_at_once() -> None:
    goals: dict[EngineRole, RoleGoal] = {"prefill": goal(3), "decode": goal(5)}
    assert plan_rollout("a", goals, []) == {("prefill", "a"): 3, ("decode", "a"): 5}


def test_editing_replicas_touches_no_other_pod() -> None:
    goals: dict[EngineRole, RoleGoal] = {"prefill": goal(2), "decode": goal(2)}
    sim = serving("a", goals)
    kept = {key: list(pods.values()) for key, pods in sim.pods.items()}
    settle(sim, "a", {"prefill": goal(2), "decode": goal(4)})
    assert all(list(sim.pods[key].values())[: len(pods)] == pods for key, pods in kept.items())


def test_failed_first_install_is_replaced_at_once() -> None:
    """Symptom in other systems: pods of a first revision that cannot start hold the GPUs its fix is waiting for."""
    goals: dict[EngineRole, RoleGoal] = {"prefill": goal(2), "decode": goal(2)}
    sim = Sim(broken={("prefill", "a"), ("decode", "a")})
    for _ in range(5):
        step(sim, "a", goals)
        sim.tick()
    counts = step(sim, "b", goals)
    assert counts[("prefill", "a")] == counts[("decode", "a")] == 0
    assert settle(sim, "b", goals) < 10


def test_old_pod_that_failed_by_itself_does_not_stop_a_rollout() -> None:
    """Ordinal 0 is broken for good, and StatefulSets remove the highest ordinal first."""
    goals: dict[EngineRole, RoleGoal] = {"prefill": goal(1), "decode": goal(3)}
    sim = serving("a", goals)
    sim.pods[("decode", "a")][0].state = "unready"
    settle(sim, "b", goals)


def test_old_revision_whose_pods_all_start_again_keeps_its_replicas() -> None:
    """Symptom: after a power cut amid a rollout the old pods, all starting, were dropped as ones that never came up."""
    goals: dict[EngineRole, RoleGoal] = {"prefill": goal(2), "decode": goal(3)}
    sim = serving("a", goals, ("decode", "b"))
    for _ in range(6):
        step(sim, "b", goals)
        sim.tick()
    for choice in range(len(sim.pods)):
        sim.restart(choice)
    for _ in range(20):
        step(sim, "b", goals)
        assert sim.replicas[("decode", "a")] == 3
        sim.tick()
    assert sim.view(("decode", "a")).ready == 3
    settle(sim, "c", goals)


def test_pod_stuck_on_a_lost_node_does_not_stop_a_rollout() -> None:
    """Symptom: with maxSurge 1 the lost pod was the one that a new pod waited for, for good."""
    goals: dict[EngineRole, RoleGoal] = {"prefill": goal(1), "decode": goal(2)}
    sim = serving("a", goals)
    sim.pods[("decode", "a")][1] = Pod("stuck")
    settle(sim, "b", goals)
    assert ("decode", "a") not in sim.replicas


def test_recreate_never_holds_more_gpus_than_wanted() -> None:
    goals: dict[EngineRole, RoleGoal] = {"prefill": goal(2, 0, recreate=True), "decode": goal(2, 0, recreate=True)}
    sim = serving("a", goals)
    for _ in range(20):
        step(sim, "b", goals)
        sim.tick()
        for role in ENGINE_ROLES:
            assert sum(len(pods) for key, pods in sim.pods.items() if key[0] == role) <= 2
    assert done(sim, "b", goals)


def test_suspend_and_resume() -> None:
    goals: dict[EngineRole, RoleGoal] = {"prefill": goal(2), "decode": goal(3)}
    sim = serving("a", goals)
    settle(sim, "a", {"prefill": goal(0), "decode": goal(0)})
    settle(sim, "a", goals)


def test_old_prefill_pods_stay_with_their_decode_pods() -> None:
    """While half of the old decode pods remain, so does half of the old prefill pods."""
    goals: dict[EngineRole, RoleGoal] = {"prefill": goal(4), "decode": goal(2)}
    sim = serving("a", goals)
    for _ in range(60):
        step(sim, "b", goals)
        sim.tick()
        old_prefill, old_decode = sim.replicas.get(("prefill", "a"), 0), sim.replicas.get(("decode", "a"), 0)
        assert old_prefill >= old_decode * 4 // 2
