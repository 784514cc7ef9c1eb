from __future__ import annotations

from scheduling.fleet import Fleet, config, make
from tandem_runtime.scheduling import Sequence


def job(name: str, num_tokens: int, *, arrival: float = 0.0) -> Sequence:
    return make(name, [len(name), *range(num_tokens - 1)], mode="prefill_only", arrival=arrival)


def test_a_job_is_announced_when_little_work_is_left_before_it_and_only_once() -> None:
    fleet = Fleet(config(num_pages=100))
    for name in ("a", "bb", "ccc"):
        fleet.add(job(name, 20))
    assert fleet.scheduler.near_head(1) == ["a"], "nothing precedes the head"
    assert fleet.scheduler.near_head(19) == []
    assert fleet.scheduler.near_head(20) == ["bb"], "19 tokens precede it"
    assert fleet.scheduler.near_head(1000) == ["ccc"]
    assert fleet.scheduler.near_head(1000) == []


def test_running_and_opened_jobs_count_as_work_before_the_gate() -> None:
    fleet = Fleet(config(num_pages=100, max_num_batched_tokens=8))
    fleet.add(job("a", 41))
    fleet.add(make("local", [5] * 10, arrival=0.0))
    fleet.add(job("late", 9))
    fleet.scheduler.near_head(1)
    fleet.scheduler.open_gate("a")
    fleet.step()
    assert fleet.scheduler.near_head(32 + 10) == [], "32 tokens of the running job, 10 of the local one"
    assert fleet.scheduler.near_head(32 + 10 + 1) == ["late"]


def test_a_closed_gate_lets_others_pass() -> None:
    fleet = Fleet(config())
    fleet.add(job("a", 20))
    fleet.add(make("local", [5] * 10))
    while fleet.step():
        pass
    assert fleet.ended == {"local": "length"}
    assert fleet.in_state("gated") == ["a"]
