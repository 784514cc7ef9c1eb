"""Admission order, preemption, and that nobody starves."""

from __future__ import annotations

from scheduling.fleet import Fleet, config, make
from tandem_runtime.scheduling.sequence import PRIORITY_SECONDS


def test_the_latest_is_preempted_and_resumes_with_its_output() -> None:
    fleet = Fleet(config(num_pages=6, enable_prefix_caching=False))
    fleet.add(make("first", [1] * 7, max_tokens=12))
    fleet.add(make("second", [2] * 7, max_tokens=12, arrival=1.0))
    while fleet.scheduler.counters.preemptions == 0:
        assert fleet.step()
    assert fleet.in_state("waiting") == ["second"]
    produced = len(fleet.outputs["second"])
    assert produced > 0
    fleet.drain()
    resumed = fleet.executed_starts("second")[-1]
    assert len(resumed.output_token_ids) == produced
    assert fleet.ended == {"first": "length", "second": "length"}


def test_the_lowest_priority_is_preempted_first() -> None:
    fleet = Fleet(config(num_pages=6))
    fleet.add(make("low", [1] * 7, max_tokens=12, priority=1))
    fleet.add(make("high", [2] * 7, max_tokens=12))
    while fleet.scheduler.counters.preemptions == 0:
        assert fleet.step()
    assert fleet.in_state("waiting") == ["low"]
    fleet.drain()


def test_a_token_in_flight_survives_the_preemption_of_its_sequence() -> None:
    fleet = Fleet(config(num_pages=6, enable_prefix_caching=False))
    fleet.add(make("first", [1] * 7, max_tokens=12))
    fleet.add(make("second", [2] * 7, max_tokens=12, arrival=1.0))
    fleet.schedule()
    while fleet.scheduler.counters.preemptions == 0:
        fleet.schedule()
        if fleet.scheduler.counters.preemptions == 0:
            fleet.commit()
    before = len(fleet.outputs["second"])
    assert fleet.in_state("waiting") == ["second"]
    while fleet.plans:
        fleet.commit()
    assert len(fleet.outputs["second"]) == before + 1
    fleet.drain()
    assert fleet.ended == {"first": "length", "second": "length"}


def test_pages_coming_back_with_a_step_in_flight_spare_another_preemption() -> None:
    fleet = Fleet(config(num_pages=9, enable_prefix_caching=False, max_num_seqs=3))
    for index, name in enumerate("abc"):
        fleet.add(make(name, [index] * 11, max_tokens=14, arrival=float(index)))
    fleet.schedule()
    for _ in range(60):
        if len(fleet.plans) < 2:
            fleet.schedule()
        if fleet.plans:
            fleet.commit()
        assert fleet.scheduler.counters.preemptions <= 2
    fleet.drain()


def test_a_small_newcomer_does_not_overtake_the_head_that_waits_for_pages() -> None:
    fleet = Fleet(config(num_pages=10, max_model_len=40))
    fleet.add(make("running", [1] * 20, max_tokens=8))
    fleet.step()
    fleet.add(make("big", [2] * 30, arrival=1.0))
    fleet.add(make("small", [3] * 2, arrival=2.0))
    fleet.step()
    assert fleet.in_state("waiting") == ["big", "small"]
    fleet.drain()
    assert next(iter(fleet.ended)) == "running"


def test_priority_overtakes_but_never_for_ever() -> None:
    fleet = Fleet(config(max_num_seqs=1))
    fleet.add(make("patient", [1], max_tokens=1))
    served_at = None
    for index in range(200):
        fleet.now += 1.0
        fleet.add(make(f"vip{index}", [2], max_tokens=1, arrival=fleet.now, priority=-2))
        fleet.step()
        if "patient" in fleet.ended:
            served_at = fleet.now
            break
    assert served_at is not None
    assert 2 * PRIORITY_SECONDS - 1 <= served_at <= 2 * PRIORITY_SECONDS + 2


def test_a_stream_of_small_requests_does_not_starve_a_big_one() -> None:
    fleet = Fleet(config(num_pages=12, max_waiting=1000))
    waited = 0
    fleet.add(make("big", [1] * 44, max_tokens=2, arrival=5.0))
    for index in range(300):
        fleet.now += 1.0
        fleet.add(make(f"s{index}", [index % 7] * 9, max_tokens=6, arrival=fleet.now))
        fleet.step()
        if fleet.now > 5.0 and "big" not in fleet.ended:
            waited += 1
    assert waited < 80
    assert fleet.ended["big"] == "length"


def test_a_filled_sequence_gives_its_pages_up_before_a_more_urgent_one_that_runs() -> None:
    fleet = Fleet(config(num_pages=6, max_num_seqs=1, enable_prefix_caching=False))
    fleet.add(make("running", [1] * 7, max_tokens=14))
    fleet.step()
    fleet.add(make("filled", [2] * 9, mode="remote", arrival=1.0))
    assert fleet.reserve("filled")
    fleet.fill("filled")
    while "running" not in fleet.ended:
        assert fleet.step()
    assert len(fleet.executed_starts("running")) == 1, "never preempted"
    fleet.drain()
    assert fleet.ended["filled"] == "length"
    assert fleet.scheduler.counters.preemptions == 1


def test_pages_of_a_prefill_job_are_never_taken() -> None:
    """They may be on the wire; a decode pod would get another sequence's KV under a right checksum."""
    fleet = Fleet(config(num_pages=12, max_num_batched_tokens=4, enable_prefix_caching=False))
    fleet.add(make("local", [1] * 7, max_tokens=20))
    while len(fleet.outputs["local"]) < 1:
        fleet.step()
    fleet.add(make("job", [2] * 34, mode="prefill_only", arrival=1.0))
    fleet.scheduler.open_gate("job")
    fleet.step()
    assert "job" in fleet.in_state("running")
    table = fleet.scheduler.page_table("job")
    while "job" not in fleet.computed:
        assert fleet.step()
        assert fleet.scheduler.page_table("job") == table
    assert fleet.scheduler.counters.preemptions > 0
    fleet.drain()
    assert fleet.ended == {"job": "sent", "local": "length"}


def test_a_preempted_sequence_is_not_readmitted_while_its_newest_token_is_in_flight() -> None:
    """Scheduling twice on one uncommitted plan used to resume it without the token that plan samples."""
    fleet = Fleet(config(num_pages=14, enable_prefix_caching=False))
    fleet.add(make("remote", [3] * 30, mode="remote"))
    assert fleet.reserve("remote")
    fleet.add(make("first", [1] * 6, max_tokens=12))
    fleet.add(make("second", [2] * 6, max_tokens=12, arrival=1.0))
    while fleet.scheduler.counters.preemptions == 0:
        while fleet.plans:
            fleet.commit()
        fleet.schedule()
        fleet.schedule()
    fleet.abort("remote")
    fleet.quiesce("remote")
    assert len(fleet.plans) == 1
    fleet.schedule()
    fleet.drain()
    assert fleet.ended == {"remote": "aborted", "first": "length", "second": "length"}
