"""What a delivery makes of broken streams: pure."""

from __future__ import annotations

from typing import Any

import pytest
from tandem_gateway.delivery import AttemptFailed, Cause, Delivery, Interrupted
from tandem_gateway.errors import BadUpstream
from tandem_gateway.journal import Journals


def delivery(continuation: str = "c") -> Delivery:
    unused: Any = None
    with Journals(1000, lambda reason: None).open() as journal:
        return Delivery(
            call=unused,
            request=unused,
            started=0.0,
            end=1.0,
            wants_live=True,
            journal=journal,
            continuation=continuation,
        )


def test_a_stream_can_go_on_while_its_records_are_all_there_and_something_is_left_to_say() -> None:
    going, lost, ended = delivery(), delivery(), delivery()
    lost.journal.give_up("event")
    ended.journal.end()
    assert [made.resumable for made in (going, lost, ended, delivery(continuation=""))] == [True, False, False, False]


@pytest.mark.parametrize(
    ("cuts", "deaths"),
    [
        ([("broken", 1)], 0),
        ([("broken", 1), ("broken", 0)], 1),
        ([("broken", 1), ("pod_down", 0), ("broken", 0)], 2),
        ([("broken", 1), ("broken", 0), ("broken", 1)], 0),
        ([("leaving", 0), ("stalled", 0)], 0),
    ],
)
def test_deaths_count_until_the_stream_gets_on(cuts: list[tuple[Cause, int]], deaths: int) -> None:
    """`cuts`: causes, each with the records since the cut before it."""
    made = delivery()
    for cause, records in cuts:
        for _ in range(records):
            made.journal.add(b"1")
        made.interrupted(Interrupted(cause, "pod", BadUpstream("It broke.")))
    assert (made.barren_deaths, made.cause) == (deaths, cuts[-1][0])


@pytest.mark.parametrize(
    ("reason", "suspect"),
    [("engine_dead", True), ("broken", True), ("pod_down", True), ("connect", False), ("busy", False), ("slow", False)],
)
def test_a_pod_may_have_died_of_a_request_that_it_had(reason: str, suspect: bool) -> None:
    assert AttemptFailed(reason, BadUpstream("It broke.")).pod_may_have_died_of_it is suspect
