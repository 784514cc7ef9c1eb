"""The work queue: many events are one look, one key is never worked on twice at a time, failures wait longer."""

from __future__ import annotations

import asyncio

from tandem_operator.work_queue import FIRST_BACKOFF_S, MAX_BACKOFF_S, WorkQueue


async def taken(queue: WorkQueue[str]) -> str | None:
    """None where nothing is ready."""
    try:
        async with asyncio.timeout(0.05):
            return await queue.take()
    except TimeoutError:
        return None


async def test_many_events_are_one_look() -> None:
    queue: WorkQueue[str] = WorkQueue(rest_s=0)
    for _ in range(5):
        queue.add("a")
    assert await taken(queue) == "a"
    assert await taken(queue) is None


async def test_event_during_work_is_a_second_look_after_it() -> None:
    queue: WorkQueue[str] = WorkQueue(rest_s=0)
    queue.add("a")
    await queue.take()
    queue.add("a")
    assert await taken(queue) is None
    queue.done("a")
    assert await taken(queue) == "a"


async def test_event_comes_before_a_later_look_and_replaces_it() -> None:
    queue: WorkQueue[str] = WorkQueue(rest_s=0)
    queue.add_later("a", 0.02)
    queue.add("a")
    assert await queue.take() == "a"
    queue.done("a")
    assert await taken(queue) is None


async def test_later_look_comes() -> None:
    queue: WorkQueue[str] = WorkQueue(rest_s=0)
    queue.add("a")
    await queue.take()
    queue.done("a", again=0.01)
    async with asyncio.timeout(5):
        assert await queue.take() == "a"


async def test_burst_of_events_after_a_look_is_one_look_more() -> None:
    """Symptom: what a first look made was told in some thirty events, and looked at nearly as often."""
    queue: WorkQueue[str] = WorkQueue(rest_s=0.1)
    queue.add("a")
    await queue.take()
    queue.done("a")
    for _ in range(5):
        queue.add("a")
    assert await taken(queue) is None, "no rest"
    async with asyncio.timeout(5):
        assert await queue.take() == "a"
    queue.done("a")
    await asyncio.sleep(0.11)
    assert await taken(queue) is None


async def test_waiting_for_a_worker_is_counted_by_itself() -> None:
    waits: list[float] = []
    queue: WorkQueue[str] = WorkQueue(waited=waits.append, rest_s=0)
    queue.add("a")
    await asyncio.sleep(0.05)
    queue.add("a")
    await queue.take()
    assert len(waits) == 1
    assert waits[0] >= 0.05


async def test_failures_in_a_row_wait_longer_up_to_a_limit() -> None:
    queue: WorkQueue[str] = WorkQueue(rest_s=0)
    pauses = []
    for _ in range(12):
        queue.add("a")
        await queue.take()
        pauses.append(queue.failed("a"))
    assert pauses[:3] == [FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S]
    assert pauses[-1] == MAX_BACKOFF_S
    queue.add("a")
    await queue.take()
    queue.done("a")
    queue.add("a")
    await queue.take()
    assert queue.failed("a") == FIRST_BACKOFF_S
