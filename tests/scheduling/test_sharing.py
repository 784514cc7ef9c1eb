from __future__ import annotations

from scheduling.fleet import Fleet, config, make
from tandem_runtime.scheduling.memory import KVMemory
from tandem_runtime.scheduling.sequence import State
from tandem_runtime.scheduling.sharing import find_shared_prefill

PROMPT = list(range(41))


def computed_tokens(fleet: Fleet) -> int:
    total = 0
    while (plan := fleet.schedule()) is not None:
        total += plan.num_tokens
        fleet.commit()
    return total


def test_equal_prompts_that_arrive_together_are_computed_once() -> None:
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=16))
    for name in ("a", "b", "c"):
        fleet.add(make(name, PROMPT, max_tokens=1))
    assert computed_tokens(fleet) == 41 + 1 + 1
    assert [update.cached_tokens for update in fleet.updates] == [0, 40, 40]


def test_who_waits_for_a_prefix_lets_others_pass() -> None:
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=30))
    fleet.add(make("a", PROMPT, max_tokens=1))
    fleet.add(make("b", PROMPT, max_tokens=1))
    fleet.add(make("c", [7] * 30, max_tokens=1))
    for _ in range(2):
        fleet.step()
    assert fleet.in_state("waiting") == ["b"]
    assert fleet.in_state("running") == ["c"]


def test_a_short_common_beginning_is_not_worth_waiting_for() -> None:
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=200))
    fleet.add(make("a", PROMPT))
    fleet.add(make("b", [*PROMPT[:12], *[7] * 30]))
    plan = fleet.schedule()
    assert plan is not None
    assert len(plan.chunks) == 2


def test_other_salts_do_not_wait() -> None:
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=200))
    fleet.add(make("a", PROMPT))
    fleet.add(make("b", PROMPT, cache_salt="tenant"))
    plan = fleet.schedule()
    assert plan is not None
    assert len(plan.chunks) == 2


def test_when_the_leader_is_aborted_the_next_one_leads() -> None:
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=16))
    for name in ("a", "b", "c"):
        fleet.add(make(name, PROMPT, max_tokens=1))
    fleet.step()
    fleet.abort("a")
    # What "a" committed is cached: 16 tokens.
    assert computed_tokens(fleet) == (41 - 16) + 1
    assert fleet.ended == {"a": "aborted", "b": "length", "c": "length"}


def test_a_leader_that_is_past_the_pages_is_not_waited_for() -> None:
    """It has computed them, yet they are not cached (evicted under another page's label): they will never appear."""
    memory = KVMemory(num_pages=20, page_size=4, cache_root=b"", enable_prefix_caching=True)
    leader, seq = make("a", PROMPT), make("b", PROMPT)
    for each in (leader, seq):
        each.chain = memory.chain("")
    leader.state = State.RUNNING
    assert find_shared_prefill(seq, 0, [leader], memory) is not None
    leader.computed_tokens = 4
    assert find_shared_prefill(seq, 0, [leader], memory) is None
