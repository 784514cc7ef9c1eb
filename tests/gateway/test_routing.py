from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from tandem_gateway.routing import FREE_SEQUENCES, FREE_TOKENS, LOAD_FACTOR, Ask, PodView, choose

ROLES = ("prefill", "decode", "both")
STRATEGIES = ("PrefixAware", "LeastLoaded", "RoundRobin")


def pod(key: str, role: str = "decode", **changes: object) -> PodView:
    base = PodView(key, role, ("m",), "f", True, 0.0, 0, 0)  # type: ignore[arg-type]
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


pod_lists = st.lists(
    st.builds(
        PodView,
        key=st.integers(0, 10**6).map(str),
        role=st.sampled_from(ROLES),
        models=st.sampled_from([("m",), ("m", "n"), ("n",), ()]),
        fingerprint=st.sampled_from("fg"),
        usable=st.booleans(),
        load=st.integers(0, 100).map(float),
        waiting=st.integers(0, 20),
        known_blocks=st.integers(0, 50),
    ),
    unique_by=lambda view: view.key,
    max_size=8,
)


@given(
    pods=pod_lists,
    strategy=st.sampled_from(STRATEGIES),
    turn=st.integers(0, 100),
    model=st.sampled_from(["m", "n", None]),
)
def test_a_pick_is_always_a_pod_that_can_answer(
    pods: list[PodView], strategy: str, turn: int, model: str | None
) -> None:
    exclude = frozenset(view.key for view in pods[:1])
    choice = choose(Ask(model, True, exclude, turn), pods, strategy)  # type: ignore[arg-type]
    by_key = {view.key: view for view in pods}
    able = [
        view for view in pods[1:] if view.usable and view.role != "prefill" and (model is None or model in view.models)
    ]
    assert (choice is None) == (not able)
    if choice is None:
        return
    decode = by_key[choice.decode]
    assert decode in able
    peers = [
        view for view in pods[1:] if view.usable and view.role == "prefill" and view.fingerprint == decode.fingerprint
    ]
    assert (choice.prefill is not None) == (decode.role == "decode" and bool(peers))
    if choice.prefill is not None:
        assert by_key[choice.prefill] in peers
    assert (choice.spare is not None) == (choice.prefill is not None and len(peers) > 1)
    if choice.spare is not None:
        assert by_key[choice.spare] in peers
        assert choice.spare != choice.prefill


@given(pods=pod_lists, turn=st.integers(0, 100))
def test_affinity_never_buys_a_queue_beyond_the_bound(pods: list[PodView], turn: int) -> None:
    choice = choose(Ask("m", turn=turn), pods)
    if choice is None:
        return
    able = [view for view in pods if view.usable and view.role != "prefill" and "m" in view.models]
    picked = next(view for view in pods if view.key == choice.decode)
    bound = max(LOAD_FACTOR * min(view.load for view in able), FREE_SEQUENCES)
    assert picked.load <= bound
    assert picked.waiting <= LOAD_FACTOR * min(view.waiting for view in able if view.load <= bound)


@given(pods=pod_lists.filter(bool), turn=st.integers(0, 100))
def test_the_order_of_the_list_only_breaks_ties(pods: list[PodView], turn: int) -> None:
    def worth(choice: object) -> object:
        picked = next((view for view in pods if choice and view.key == choice.decode), None)  # type: ignore[attr-defined]
        return picked and (picked.known_blocks, picked.load)

    assert worth(choose(Ask("m", turn=turn), pods)) == worth(choose(Ask("m", turn=turn), pods[::-1]))


def test_the_pod_that_knows_the_prompt_wins_until_its_queue_is_too_long() -> None:
    knows = pod("knows", known_blocks=9, load=12.0)
    assert choose(Ask("m"), [pod("a", load=10.0), knows]) == choose(Ask("m"), [knows, pod("a", load=10.0)])
    for other_load, expected in ((10.0, "knows"), (9.9, "a")):
        choice = choose(Ask("m"), [pod("a", load=other_load), knows])
        assert choice is not None
        assert choice.decode == expected


def test_a_few_running_sequences_are_no_queue() -> None:
    choice = choose(Ask("m"), [pod("idle"), pod("knows", known_blocks=1, load=float(FREE_SEQUENCES))])
    assert choice is not None
    assert choice.decode == "knows"


def test_the_prefill_pod_is_picked_by_backlog_and_prefix_in_tokens() -> None:
    decode = pod("d")
    for backlog, expected in ((float(FREE_TOKENS), "knows"), (FREE_TOKENS + 1.0, "idle")):
        pods = [decode, pod("idle", "prefill"), pod("knows", "prefill", known_blocks=5, load=backlog)]
        choice = choose(Ask("m"), pods)
        assert choice is not None
        assert choice.prefill == expected


def test_equals_take_turns() -> None:
    pods = [pod("a"), pod("b"), pod("c")]
    for strategy in STRATEGIES:
        picks = [choose(Ask("m", turn=turn), pods, strategy) for turn in range(3)]  # type: ignore[arg-type]
        assert {choice.decode for choice in picks if choice} == {"a", "b", "c"}
