"""Prefill and decode engines together: same text as one engine, and nothing leaks, whatever fails in between."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.engine_pods import Pod, Wire, pods, prompt
from support.token_model import continue_text
from tandem_contract import handoff
from tandem_runtime.engine.messages import Abort


def test_text_equals_one_engine_with_prefix_hits_on_either_side(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    rng = random.Random(1)
    shared = prompt(rng, 40)
    prompts = [
        (shared[: rng.randrange(41)] if rng.random() < 0.5 else []) + prompt(rng, rng.randrange(2, 90))
        for _ in range(50)
    ]

    def serve(index: int) -> list[int]:
        request_id = f"r{index}"
        return decode.ask(request_id, prompts[index], 20, [prefill.ticket(request_id)]).wait()

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(serve, range(50)))
    assert answers == [continue_text(tokens, 20) for tokens in prompts]
    decode.wait_idle()
    prefill.wait_idle()
    assert decode.decode.outcomes["received/ok"] >= 40
    assert decode.decode.pages == prefill.prefill.pages > 0
    assert not decode.decode.fallbacks


def test_a_held_prefix_is_not_sent_again(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    tokens = prompt(random.Random(2), 41)
    decode.ask("first", tokens, 4, [prefill.ticket("first")]).wait()
    pages_before = decode.decode.pages
    assert pages_before == 10
    longer = [*tokens, 1, 2, 3, 4, 5, 6, 7, 8]
    answer = decode.ask("second", longer, 4, [prefill.ticket("second")])
    assert answer.wait() == continue_text(longer, 4)
    assert answer.last.trace.handoff_pages == decode.decode.pages - pages_before == 2
    assert answer.last.trace.prefill_pod == "1"
    assert answer.last.trace.handoff_transport == "tcp"
    alone = decode.ask("third", tokens, 4, [])
    alone.wait()
    assert alone.last.trace.handoff_transport is None


def test_the_prefill_pod_computes_all_tokens_but_the_last(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    tokens = prompt(random.Random(3), 50)
    decode.ask("r", tokens, 3, [prefill.ticket("r")]).wait()
    assert prefill.runner.computed_tokens == 49
    # The last prompt token, two more outputs, and at most one row planned ahead of the end.
    assert decode.runner.computed_tokens <= 4


def test_an_unreachable_prefill_pod_is_replaced_by_the_next_ticket() -> None:
    with pods(("prefill", "1", {}), ("prefill", "2", {}), ("decode", "3", {})) as (lost, other, decode):
        decode.wire.lost.add(lost.url)
        tokens = prompt(random.Random(4), 30)
        answer = decode.ask("r", tokens, 5, [lost.ticket("r"), other.ticket("r")])
        assert answer.wait() == continue_text(tokens, 5)
        assert answer.last.trace.prefill_pod == "2"
        decode.wait_idle()
        other.wait_idle()


def test_without_any_reachable_prefill_pod_the_prompt_is_computed_locally(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    decode.wire.lost.add(prefill.url)
    tokens = prompt(random.Random(5), 30)
    answer = decode.ask("r", tokens, 5, [prefill.ticket("r")])
    assert answer.wait() == continue_text(tokens, 5)
    assert answer.last.trace.prefill_pod is None
    assert decode.decode.fallbacks == {"unreachable": 1}
    decode.wait_idle()


def test_a_prefill_pod_frozen_before_it_sent_anything_is_given_up() -> None:
    with pods(("prefill", "1", {}), ("decode", "2", {"probe_interval_s": 0.05})) as (prefill, decode):
        prefill.runner.gate.clear()
        tokens = prompt(random.Random(6), 30)
        answer = decode.ask("r", tokens, 5, [prefill.ticket("r")])
        decode.wire.frozen.add(prefill.url)
        assert answer.wait() == continue_text(tokens, 5)
        assert decode.decode.fallbacks.total() == 1
        prefill.runner.gate.set()
        decode.wait_idle()


def test_late_pages_of_a_given_up_prefill_pod_never_land(trio: tuple[Pod, Pod]) -> None:
    """Symptom elsewhere: after an abort, late writes land in pages that already serve another request."""
    prefill, decode = trio
    rng = random.Random(7)
    for index in range(30):
        tokens = prompt(rng, 60)
        request_id = f"aborted{index}"
        decode.ask(request_id, tokens, 5, [prefill.ticket(request_id)])
        if index % 3:
            decode.call(lambda: None)
        decode.inbox.put(Abort(request_id))
        other = prompt(rng, 50)
        assert decode.ask(f"other{index}", other, 8).wait() == continue_text(other, 8)
    decode.wait_idle()
    prefill.wait_idle()


def test_a_lease_ends_when_the_decode_pod_falls_silent() -> None:
    with pods(("prefill", "1", {"lease_s": 0.2}), ("decode", "2", {})) as (prefill, decode):
        prefill.runner.gate.clear()
        decode.ask("r", prompt(random.Random(8), 30), 5, [prefill.ticket("r")])
        decode.call(lambda: None)
        decode.wire.lost.add(decode.url)
        decode.wire.lost.add(prefill.url)
        prefill.runner.gate.set()
        prefill.wait_idle()


def test_a_full_decode_pool_makes_the_prefill_pod_ask_again() -> None:
    with pods(("prefill", "1", {}), ("decode", "2", {"num_pages": 32})) as (prefill, decode):
        rng = random.Random(9)
        prompts = [prompt(rng, 60) for _ in range(12)]
        answers = [
            decode.ask(f"r{index}", tokens, 30, [prefill.ticket(f"r{index}")]) for index, tokens in enumerate(prompts)
        ]
        assert [answer.wait() for answer in answers] == [continue_text(tokens, 30) for tokens in prompts]
        decode.wait_idle()
        prefill.wait_idle()


def test_cross_wired_models_are_refused_and_computed_locally() -> None:
    with pods(("prefill", "1", {"model": "another"}), ("decode", "2", {})) as (prefill, decode):
        tokens = prompt(random.Random(10), 30)
        answer = decode.ask("r", tokens, 5, [prefill.ticket("r")])
        assert answer.wait() == continue_text(tokens, 5)
        assert decode.decode.fallbacks == {"mismatch": 1}
        assert prefill.prefill.outcomes == {"sent/mismatch": 1}


def test_a_restarted_prefill_pod_loses_its_jobs_and_nothing_else() -> None:
    wire = Wire()
    before = Pod(wire, "prefill", "1")
    decode = Pod(wire, "decode", "2", probe_interval_s=0.05)
    before.runner.gate.clear()
    tokens = prompt(random.Random(11), 30)
    answer = decode.ask("r", tokens, 5, [before.ticket("r")])
    decode.call(lambda: None)
    after = Pod(wire, "prefill", "1")
    assert answer.wait() == continue_text(tokens, 5)
    assert decode.decode.fallbacks == {"peer_lost": 1}
    before.runner.gate.set()
    for pod in (before, after, decode):
        pod.close()


def test_deadlines_end_a_request_that_waits_for_its_prefill_pod(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    prefill.runner.gate.clear()
    answer = decode.ask("r", prompt(random.Random(12), 30), 5, [prefill.ticket("r")], deadline_s=0.2)
    assert answer.done.wait(10)
    assert answer.last.finish_reason == "deadline"
    prefill.runner.gate.set()
    decode.wait_idle()
    prefill.wait_idle()


def test_followers_share_their_leaders_prompt(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    tokens = prompt(random.Random(13), 41)
    answers = [decode.ask("n0", tokens, 5, [prefill.ticket("n0")])]
    answers += [decode.ask(f"n{index}", tokens, 5, after="n0") for index in (1, 2, 3)]
    decode.ask("n4", tokens, 5, after="n0")
    decode.inbox.put(Abort("n4"))
    assert [answer.wait() for answer in answers] == [continue_text(tokens, 5)] * 4
    assert prefill.runner.computed_tokens == 40
    assert decode.runner.computed_tokens < 40
    decode.wait_idle()


def test_followers_outlive_an_aborted_leader(trio: tuple[Pod, Pod]) -> None:
    _, decode = trio
    decode.runner.gate.clear()
    tokens = prompt(random.Random(14), 41)
    decode.ask("n0", tokens, 5)
    answer = decode.ask("n1", tokens, 5, after="n0")
    decode.inbox.put(Abort("n0"))
    decode.runner.gate.set()
    assert answer.wait() == continue_text(tokens, 5)
    decode.wait_idle()


def test_a_probe_that_overtakes_its_job_is_no_sign_of_a_lost_pod() -> None:
    """Symptom: a slow post of a long prompt, and a healthy prefill pod was avoided for five seconds.

    Cause: a probe listed the job before the pod had it, and the pod answered that it did not know it.
    """
    with pods(("prefill", "1", {}), ("decode", "2", {"probe_interval_s": 0.02})) as (prefill, decode):
        decode.wire.slow[handoff.PREFILL_PATH] = 0.3
        tokens = prompt(random.Random(17), 60)
        answer = decode.ask("r", tokens, 5, [prefill.ticket("r")])
        assert answer.wait() == continue_text(tokens, 5)
        assert decode.decode.outcomes == {"received/ok": 1}


def test_a_lost_grant_is_given_again(trio: tuple[Pod, Pod]) -> None:
    """Symptom: 11 s to the first token. Cause: the pod refused to repeat its grant, and waited for the stall timer."""
    prefill, decode = trio
    decode.wire.lost_replies[handoff.RESERVE_PATH] = 1
    tokens = prompt(random.Random(18), 60)
    answer = decode.ask("r", tokens, 5, [prefill.ticket("r")])
    assert answer.wait() == continue_text(tokens, 5)
    assert decode.decode.outcomes == {"received/ok": 1}
    assert answer.last.trace.ttft_seconds < 5


def test_a_fallback_counts_its_prompt_once(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    decode.wire.lost.add(prefill.url)
    decode.ask("r", prompt(random.Random(19), 40), 5, [prefill.ticket("r")]).wait()
    assert decode.call(lambda: decode.scheduler.counters.prefix_query_tokens) == 40


def test_a_refused_prompt_says_nothing_about_the_pod() -> None:
    """Symptom: after one prompt too long for the prefill pods, all others were computed locally for five seconds."""
    with pods(("prefill", "1", {"num_pages": 16}), ("decode", "2", {})) as (prefill, decode):
        long, short = prompt(random.Random(20), 200), prompt(random.Random(21), 40)
        assert decode.ask("long", long, 5, [prefill.ticket("long")]).wait() == continue_text(long, 5)
        answer = decode.ask("short", short, 5, [prefill.ticket("short")])
        assert answer.wait() == continue_text(short, 5)
        assert answer.last.trace.prefill_pod == "1"


@pytest.mark.parametrize("ticketed", [True, False])
def test_a_sequence_goes_on_where_another_engine_was_killed(ticketed: bool) -> None:
    """Its outputs so far are computed like a longer prompt, of which the prefill pod has the beginning cached."""
    with pods(("prefill", "1", {}), ("decode", "2", {}), ("decode", "3", {})) as (prefill, first, second):
        tokens = prompt(random.Random(31), 50)
        whole = continue_text(tokens, 30)
        assert first.ask("before", tokens, 13, [prefill.ticket("before")]).wait() == whole[:13]
        tickets = [prefill.ticket("after")] if ticketed else []
        answer = second.ask("after", tokens, 30, tickets, output_token_ids=whole[:13])
        assert answer.wait() == whole[13:]
        trace = answer.last.trace
        assert (trace.prompt_tokens, trace.resumed_tokens) == (50, 13)
        assert trace.handoff_pages == (16 if ticketed else 0)
        if ticketed:
            # All of the 50 + 13 - 1 tokens but those of the prompt's 12 whole pages, which it had.
            assert prefill.runner.computed_tokens == 49 + 62 - 48
        for pod in (prefill, first, second):
            pod.wait_idle()


def test_a_continued_sequence_falls_back_when_its_prefill_pod_is_gone() -> None:
    with pods(("prefill", "1", {}), ("decode", "2", {})) as (prefill, decode):
        decode.wire.lost.add(prefill.url)
        tokens = prompt(random.Random(32), 40)
        whole = continue_text(tokens, 20)
        answer = decode.ask("r", tokens, 20, [prefill.ticket("r")], output_token_ids=whole[:7])
        assert answer.wait() == whole[7:]
        assert decode.decode.fallbacks == {"unreachable": 1}
        decode.wait_idle()
