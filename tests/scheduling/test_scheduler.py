"""Chunking, running one step ahead, and how sequences end."""

from __future__ import annotations

import pytest
from scheduling.device import expected_output
from scheduling.fleet import Fleet, config, make
from tandem_runtime.core.errors import OverloadedError, PromptTooLongError
from tandem_runtime.core.plan import StepPlan


def shape(plan: StepPlan | None) -> list[tuple[int, int]]:
    assert plan is not None
    return [(chunk.start, chunk.num_tokens) for chunk in plan.chunks]


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=16))
    fleet.add(make("short", [1] * 5, max_tokens=9))
    fleet.step()
    fleet.add(make("long", [2] * 35))
    shapes = []
    for _ in range(4):
        shapes.append(shape(fleet.schedule()))
        fleet.commit()
    assert shapes == [[(5, 1), (0, 15)], [(6, 1), (15, 15)], [(7, 1), (30, 5)], [(8, 1), (35, 1)]]


def test_decodes_bound_what_of_a_prompt_a_step_takes() -> None:
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=16, max_prefill_tokens_with_decodes=6))
    fleet.add(make("alone", [2] * 20, max_tokens=1))
    assert shape(fleet.schedule()) == [(0, 16)], "nobody is held up"
    fleet.commit()
    fleet.add(make("short", [1] * 5, max_tokens=3))
    shapes = [shape(fleet.schedule())]
    fleet.commit()
    fleet.add(make("long", [2] * 40))
    for _ in range(4):
        shapes.append(shape(fleet.schedule()))
        fleet.commit()
    assert shapes == [[(16, 4), (0, 5)], [(5, 1), (20, 6)], [(6, 1), (26, 6)], [(32, 8)], [(40, 1)]]
    fleet.drain()


@pytest.mark.parametrize("cap", [1, 5, 16, 64])
@pytest.mark.parametrize("long_prompts", [1, 3])
def test_while_long_prompts_are_computed_no_decode_skips_a_step(cap: int, long_prompts: int) -> None:
    """What bounds the inter-token latency of running answers: each step has a row for every one of them, and at most
    `cap` tokens of prompts, from the arrival of the long ones to the end of the last."""
    names = [f"long {number}" for number in range(long_prompts)]
    shape = {"num_pages": 600, "max_model_len": 2000, "max_num_seqs": 8, "max_num_batched_tokens": 24}
    fleet = Fleet(config(**shape, max_prefill_tokens_with_decodes=cap))
    for name in ("a", "b", "c"):
        fleet.add(make(name, [ord(name) % 13] * 3, max_tokens=400))
    fleet.step()
    for number, name in enumerate(names):
        fleet.add(make(name, [number] * 100, max_tokens=1))
    fleet.schedule()
    steps = 0
    while fleet.ended.keys() < set(names):
        fleet.schedule()  # one step ahead of the device
        decodes = [chunk for chunk in fleet.plans[0].chunks if chunk.num_tokens == 1 and chunk.start == 3 + steps]
        assert len(decodes) == 3
        # The last token of a prompt alone is a row like theirs.
        others = [
            chunk
            for chunk in fleet.plans[0].chunks
            if chunk not in decodes and not (chunk.num_tokens == 1 and chunk.sample)
        ]
        assert sum(chunk.num_tokens for chunk in others) <= cap
        fleet.commit()
        steps += 1
    assert steps >= (100 * long_prompts - long_prompts) // cap
    fleet.drain()


def test_a_handed_over_sequence_does_not_wait_for_the_end_of_a_long_prompt() -> None:
    """It needs one token of a step, but the long prompt used to take them all, step after step."""
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=16))
    fleet.add(make("long", [2] * 70))
    fleet.step()
    fleet.add(make("handed over", [1] * 9, mode="remote"))
    fleet.hold("handed over")
    assert fleet.reserve("handed over")
    fleet.fill("handed over")
    assert shape(fleet.schedule()) == [(8, 1), (16, 15)]
    fleet.commit()
    fleet.drain()


def test_only_the_end_of_a_prompt_is_sampled() -> None:
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=16))
    fleet.add(make("r", [2] * 20))
    samples = []
    for _ in range(3):
        plan = fleet.schedule()
        assert plan is not None
        samples.append([chunk.sample for chunk in plan.chunks])
        fleet.commit()
    assert samples == [[False], [True], [True]]


def test_a_single_token_left_of_a_prompt_is_a_decode_row() -> None:
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=8, max_num_seqs=4))
    fleet.add(make("a", [1] * 9))
    fleet.add(make("b", [2] * 20))
    fleet.step()
    assert shape(fleet.schedule()) == [(8, 1), (0, 7)]


def test_one_step_ahead_the_sampled_id_stays_on_the_device() -> None:
    fleet = Fleet(config())
    fleet.add(make("r", [1, 2, 3], max_tokens=3))
    fleet.schedule()
    ahead = fleet.schedule()
    assert ahead is not None
    assert [(chunk.start, chunk.token_ids, chunk.sample) for chunk in ahead.chunks] == [(3, None, True)]
    fleet.commit()
    last = fleet.schedule()
    assert last is not None
    assert last.chunks[0].token_ids is None
    fleet.commit()
    assert fleet.schedule() is None, "max_tokens is known to be reached by what is in flight"
    fleet.commit()
    assert fleet.ended == {"r": "length"}


def test_plans_are_numbered_without_gaps() -> None:
    """A fruitless `schedule` used to take a number: the next plan no longer named its predecessor as the one before."""
    fleet = Fleet(config())
    fleet.add(make("r", [1, 2, 3], max_tokens=1))
    fleet.schedule()
    assert fleet.schedule() is None
    fleet.add(make("s", [4, 5, 6]))
    plan = fleet.schedule()
    assert plan is not None
    assert plan.step == 2
    fleet.commit()
    fleet.drain()


def test_a_row_planned_past_a_stop_token_is_ignored_and_its_pages_stay_until_its_commit() -> None:
    prompt = [1, 2, 3, 4, 5, 6, 7]
    fleet = Fleet(config(enable_prefix_caching=False))
    probe = make("r", prompt, max_tokens=20)
    first = expected_output(prompt, probe.sampling, 80)[0]
    fleet.add(make("r", prompt, max_tokens=20, stop=(first,)))
    fleet.schedule()
    fleet.schedule()
    (update,) = fleet.commit()
    assert (update.finish_reason, update.stop_token_id, update.new_token_ids) == ("stop", first, [first])
    assert fleet.scheduler.counters.pages_used == 2, "the plan in flight still writes to them"
    assert fleet.commit() == []
    assert fleet.scheduler.counters.pages_used == 0


def test_a_slot_may_change_hands_while_its_last_row_is_in_flight() -> None:
    fleet = Fleet(config(max_num_seqs=1))
    fleet.add(make("a", [1, 2, 3], max_tokens=20))
    fleet.add(make("b", [4, 5, 6], max_tokens=2))
    fleet.schedule()
    fleet.schedule()
    fleet.abort("a")
    fleet.commit()
    plan = fleet.schedule()
    assert plan is not None
    assert [start.prompt_token_ids for start in plan.starts] == [[4, 5, 6]]
    fleet.commit()
    fleet.drain()
    assert fleet.ended == {"a": "aborted", "b": "length"}


def test_the_context_ends_an_answer() -> None:
    fleet = Fleet(config(max_model_len=10))
    fleet.add(make("r", [1] * 7, max_tokens=50))
    fleet.drain()
    assert len(fleet.outputs["r"]) == 3
    assert fleet.ended == {"r": "length"}


def test_the_pool_bounds_the_context_too() -> None:
    fleet = Fleet(config(num_pages=3))
    with pytest.raises(PromptTooLongError, match=r"12 tokens.*at most 12"):
        fleet.add(make("r", [1] * 12))
    fleet.add(make("s", [1] * 11, max_tokens=50))
    fleet.drain()
    assert fleet.ended == {"s": "length"}


def test_a_full_queue_refuses() -> None:
    fleet = Fleet(config(max_waiting=2))
    fleet.add(make("a", [1]))
    fleet.add(make("b", [1] * 9, mode="remote"))
    with pytest.raises(OverloadedError):
        fleet.add(make("c", [1]))
    fleet.drain()


def test_a_fully_cached_prompt_still_computes_its_last_token() -> None:
    fleet = Fleet(config())
    prompt = list(range(8))
    for name in ("a", "b"):
        fleet.add(make(name, prompt, max_tokens=1))
        plan = fleet.schedule()
        fleet.commit()
    assert shape(plan) == [(4, 4)], "page 1 holds the last token, so it is computed anew"
    assert fleet.updates[-1].cached_tokens == 4
    counters = fleet.scheduler.counters
    assert (counters.prefix_query_tokens, counters.prefix_hit_tokens) == (16, 4)


def test_answers_are_cached_too() -> None:
    fleet = Fleet(config())
    fleet.add(make("a", [1] * 6, max_tokens=7))
    fleet.drain()
    conversation = [1] * 6 + fleet.outputs["a"] + [2]
    assert fleet.scheduler.match_prefix(conversation, "") == 12
    assert fleet.scheduler.match_prefix(conversation, "tenant") == 0
    assert fleet.scheduler.match_prefix(conversation[:12], "") == 8, "the last token is never taken from the cache"


def test_nothing_is_cached_before_the_step_that_computes_it_was_committed() -> None:
    fleet = Fleet(config())
    fleet.add(make("a", [1] * 9))
    fleet.schedule()
    assert fleet.scheduler.match_prefix([1] * 9, "") == 0
    fleet.commit()
    assert fleet.scheduler.match_prefix([1] * 9, "") == 8


def test_prompt_logprobs_cover_the_prompt_whatever_was_cached_or_chunked() -> None:
    prompt = list(range(40))
    fleet = Fleet(config(max_num_batched_tokens=16))
    fleet.add(make("a", prompt, max_tokens=1))
    fleet.drain()
    fleet.add(make("b", prompt, max_tokens=2, prompt_logprobs=0))
    fleet.drain()
    first, second = (update for update in fleet.updates if update.request_id == "b")
    assert first.prompt_logprobs is not None
    assert [position.token_id for position in first.prompt_logprobs] == prompt[1:]
    assert first.cached_tokens == 0
    assert second.prompt_logprobs is None


def test_deadlines_end_sequences_in_any_state() -> None:
    fleet = Fleet(config(max_num_seqs=1))
    fleet.add(make("running", [1], max_tokens=50, deadline=5.0))
    fleet.step()
    fleet.add(make("waiting", [1], deadline=4.0))
    fleet.add(make("remote", [1] * 9, mode="remote", deadline=3.0))
    fleet.add(make("patient", [1], deadline=9.0))
    fleet.now = 5.0
    fleet.expire()
    assert sorted(fleet.ended) == ["remote", "running", "waiting"]
    fleet.drain()
    assert fleet.ended["patient"] == "length"


def test_a_prefill_only_sequence_computes_all_but_the_last_token_and_keeps_its_pages() -> None:
    fleet = Fleet(config(max_num_batched_tokens=8))
    fleet.add(make("job", list(range(14)), mode="prefill_only"))
    assert fleet.schedule() is None, "the gate is closed"
    fleet.scheduler.open_gate("job")
    fleet.drain_plans()
    assert [update.computed_tokens for update in fleet.updates] == [0, 8, 13]
    assert all(update.new_token_ids == [] and update.finish_reason is None for update in fleet.updates)
    counters = fleet.scheduler.counters
    assert (counters.running, counters.waiting, counters.pages_used) == (0, 0, 4)
    fleet.sent("job")
    assert fleet.scheduler.counters.pages_used == 0


def test_a_prefill_only_sequence_that_is_cached_is_complete_without_a_step() -> None:
    fleet = Fleet(config())
    for name in ("a", "b"):
        fleet.add(make(name, list(range(13)), mode="prefill_only"))
        fleet.scheduler.open_gate(name)
        fleet.drain_plans()
    assert fleet.schedule() is None
    assert fleet.updates[-1].request_id == "b"
    assert (fleet.updates[-1].computed_tokens, fleet.updates[-1].cached_tokens) == (12, 12)
    assert fleet.scheduler.page_table("a") == fleet.scheduler.page_table("b")
    fleet.drain()


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_num_batched_tokens \(3\) must be at least max_num_seqs \(4\)"):
        config(max_num_batched_tokens=3)
