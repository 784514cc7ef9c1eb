"""The decode side of a handoff."""

from __future__ import annotations

import pytest
from scheduling.fleet import Fleet, config, make

PROMPT = list(range(30))


def test_a_filled_sequence_decodes_from_its_last_prompt_token() -> None:
    fleet = Fleet(config())
    fleet.add(make("r", PROMPT, mode="remote"))
    assert fleet.schedule() is None
    fleet.hold("r")
    assert fleet.reserve("r")
    assert len(fleet.granted["r"]) == 8
    fleet.fill("r")
    plan = fleet.schedule()
    assert plan is not None
    assert [(chunk.start, chunk.token_ids) for chunk in plan.chunks] == [(29, [29])]
    fleet.drain()
    assert fleet.ended == {"r": "length"}
    assert fleet.scheduler.match_prefix(PROMPT, "") == 28, "pages that arrived are cached like computed ones"


def test_a_last_token_on_a_page_of_its_own_gets_that_page() -> None:
    fleet = Fleet(config())
    fleet.add(make("r", list(range(9)), mode="remote"))
    assert fleet.reserve("r")
    assert len(fleet.granted["r"]) == 2
    fleet.fill("r")
    fleet.drain()
    assert fleet.ended == {"r": "length"}


def test_only_what_is_not_held_is_reserved() -> None:
    fleet = Fleet(config())
    fleet.add(make("a", PROMPT[:18], max_tokens=1))
    fleet.drain()
    fleet.add(make("r", PROMPT, mode="remote"))
    fleet.hold("r")
    assert fleet.held["r"] == 16
    assert fleet.reserve("r")
    assert len(fleet.granted["r"]) == 4
    assert fleet.scheduler.reserve("r") == fleet.granted["r"], "P may ask twice"
    fleet.fill("r")
    fleet.drain()
    assert fleet.updates[-1].cached_tokens == 16


def test_a_held_prefix_is_not_evicted() -> None:
    fleet = Fleet(config(num_pages=12))
    fleet.add(make("a", PROMPT[:18], max_tokens=1))
    fleet.drain()
    fleet.add(make("r", PROMPT, mode="remote"))
    fleet.hold("r")
    fleet.add(make("greedy", [1] * 25, max_tokens=7))
    while fleet.step():
        pass
    assert fleet.reserve("r")
    fleet.fill("r")
    fleet.drain()


@pytest.mark.parametrize("how", ["fail", "abort", "expire"])
def test_reserved_pages_are_not_reused_before_late_writes_quiesced(how: str) -> None:
    """Known from other systems: a late write of an aborted transfer lands in a page that another request got."""
    fleet = Fleet(config(num_pages=10, max_model_len=40))
    fleet.add(make("r", PROMPT, mode="remote", deadline=1.0))
    assert fleet.reserve("r")
    if how == "fail":
        fleet.fail("r")
        fleet.abort("r")
    elif how == "abort":
        fleet.abort("r")
    else:
        fleet.now = 1.0
        fleet.expire()
    assert fleet.scheduler.counters.pages_quarantined == 8
    fleet.add(make("next", [1] * 30))
    assert fleet.schedule() is None
    fleet.quiesce("r")
    assert fleet.step()
    fleet.drain()
    assert fleet.ended["next"] == "length"


def test_a_failed_handoff_is_computed_locally_in_its_old_place() -> None:
    fleet = Fleet(config(max_num_seqs=1))
    fleet.add(make("r", PROMPT, mode="remote"))
    fleet.add(make("later", [1] * 5, arrival=1.0))
    fleet.reserve("r")
    fleet.fail("r")
    fleet.step()
    assert fleet.in_state("running") == ["r"]
    fleet.drain()
    assert fleet.ended == {"r": "length", "later": "length"}


def test_reservations_leave_running_sequences_room_to_grow() -> None:
    fleet = Fleet(config(num_pages=10, max_model_len=40))
    fleet.add(make("running", [1] * 5, max_tokens=20))
    fleet.step()
    fleet.add(make("r", PROMPT, mode="remote"))
    assert not fleet.reserve("r"), "8 pages are free, and 8 would do, but one must stay free"
    fleet.abort("running")
    assert fleet.reserve("r")
    fleet.abort("r")
    fleet.drain()


def test_small_local_requests_do_not_starve_a_refused_reservation() -> None:
    fleet = Fleet(config(num_pages=12, max_waiting=1000))
    fleet.add(make("r", PROMPT, mode="remote", arrival=5.0))
    refused = 0
    for index in range(100):
        fleet.now += 1.0
        fleet.add(make(f"s{index}", [index % 7] * 9, max_tokens=6, arrival=fleet.now))
        fleet.add(make(f"t{index}", [index % 5, 8] * 5, max_tokens=6, arrival=fleet.now))
        fleet.step()
        if fleet.now > 5.0:
            if fleet.reserve("r"):
                break
            refused += 1
    assert 0 < refused < 30
    fleet.fill("r")
    fleet.drain()


def test_a_refused_reservation_that_is_not_asked_for_again_stops_nobody() -> None:
    fleet = Fleet(config(num_pages=10, max_model_len=40))
    fleet.add(make("running", [1] * 5, max_tokens=30))
    fleet.step()
    fleet.add(make("r", PROMPT, mode="remote"))
    assert not fleet.reserve("r")
    fleet.add(make("later", [1] * 5, arrival=1.0))
    fleet.step()
    assert fleet.in_state("waiting") == ["later"]
    fleet.now = 3.0
    fleet.step()
    assert sorted(fleet.in_state("running")) == ["later", "running"]
    fleet.drain()


def test_holders_never_block_one_another() -> None:
    """Two prompts that each pin half of the pool and need more than half would wait for each other for ever."""
    fleet = Fleet(config(num_pages=10, max_model_len=40))
    one, two = [1] * 36, [2] * 36
    for name, prompt in (("a", one), ("b", two)):
        fleet.add(make(name, prompt[:18], max_tokens=1))
        fleet.drain()
    for name, prompt in (("x", one), ("y", two)):
        fleet.add(make(name, prompt, mode="remote"))
        fleet.hold(name)
    assert [fleet.held[name] for name in "xy"] == [16, 0]
    assert fleet.reserve("x")
    fleet.fill("x")
    fleet.drain()
    assert fleet.ended["y"] == "length"


def test_filled_sequences_that_lack_a_last_page_do_not_block_one_another() -> None:
    fleet = Fleet(config(num_pages=8, max_model_len=32, enable_prefix_caching=False))
    for index, name in enumerate("xy"):
        fleet.add(make(name, [index] * 17, mode="remote"))
        assert fleet.reserve(name)
        fleet.fill(name)
    fleet.drain()
    assert fleet.ended == {"x": "length", "y": "length"}
    assert fleet.scheduler.counters.preemptions == 1


def fleet_with_a_holder() -> Fleet:
    """ "x" pins 4 of 10 pages and needs 4 more; nothing runs."""
    fleet = Fleet(config(num_pages=10, max_model_len=40))
    fleet.add(make("a", [1] * 18, max_tokens=1))
    fleet.drain()
    fleet.add(make("x", [1] * 31, mode="remote", arrival=2.0))
    fleet.hold("x")
    assert fleet.held["x"] == 16
    return fleet


def test_a_holder_goes_first_when_a_more_urgent_sequence_could_not_run_beside_its_pins() -> None:
    """Each would wait for the other: the urgent one for the pinned pages, the holder for what it must leave free."""
    fleet = fleet_with_a_holder()
    fleet.add(make("urgent", [2] * 30, arrival=1.0))
    assert fleet.schedule() is None
    assert fleet.reserve("x")
    fleet.fill("x")
    fleet.drain()
    assert fleet.ended["urgent"] == "length"


def test_a_holder_goes_first_when_a_more_urgent_reservation_could_not_stand_beside_its_pins() -> None:
    fleet = fleet_with_a_holder()
    fleet.add(make("urgent", [2] * 35, mode="remote", arrival=1.0))
    assert not fleet.reserve("urgent")
    assert fleet.reserve("x")
    fleet.fill("x")
    fleet.drain()
    assert fleet.ended["urgent"] == "length"


def test_nothing_more_is_pinned_while_a_more_urgent_sequence_lacks_pages() -> None:
    fleet = fleet_with_a_holder()
    fleet.add(make("local", [2] * 30, arrival=1.0))
    assert fleet.schedule() is None
    fleet.add(make("y", [1] * 31, mode="remote", arrival=3.0))
    fleet.abort("x")
    fleet.hold("y")
    assert fleet.held["y"] == 0
    fleet.drain()


def test_nothing_more_is_pinned_while_a_more_urgent_reservation_is_refused() -> None:
    fleet = fleet_with_a_holder()
    fleet.add(make("remote", [2] * 35, mode="remote", arrival=1.0))
    assert not fleet.reserve("remote")
    fleet.add(make("y", [1] * 31, mode="remote", arrival=3.0))
    fleet.hold("y")
    assert fleet.held["y"] == 0
    fleet.drain()
