"""When requests are sent, against a sender that is stepped by hand."""

from __future__ import annotations

import asyncio
import random

from tandem_runtime.bench.serve.client import Request
from tandem_runtime.bench.serve.load import Clock, Load, drive
from tandem_runtime.bench.serve.metrics import RequestRecord


class Sender:
    """Holds every request until `release`d."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.due: list[float] = []
        self.came = asyncio.Condition()
        self.release = asyncio.Semaphore(0)

    async def __call__(self, request: Request, due: float, clock: Clock) -> RequestRecord:
        async with self.came:
            self.sent.append(request.index)
            self.due.append(due)
            self.came.notify_all()
        await self.release.acquire()
        return RequestRecord(index=request.index, start=due, end=clock(), input_tokens=1, output_tokens=1)

    async def until_sent(self, count: int) -> None:
        async with self.came:
            await self.came.wait_for(lambda: len(self.sent) == count)


REQUESTS = [Request(index, b"{}", None) for index in range(6)]


async def test_closed_loop_sends_the_next_when_one_ends() -> None:
    sender = Sender()
    running = asyncio.create_task(drive(REQUESTS, Load(2, None), sender, random.Random(0)))
    for ended in range(5):
        await sender.until_sent(min(2 + ended, 6))
        assert sender.sent == list(range(min(2 + ended, 6)))
        sender.release.release()
    sender.release.release()
    assert [record.index for record in await running] == list(range(6))


async def test_open_loop_does_not_wait_for_answers() -> None:
    sender = Sender()
    running = asyncio.create_task(drive(REQUESTS, Load(None, 1000.0), sender, random.Random(0)))
    await sender.until_sent(6)
    for _ in REQUESTS:
        sender.release.release()
    assert [record.index for record in await running] == list(range(6))


async def test_latency_of_a_capped_open_loop_counts_from_the_arrival() -> None:
    """A cap that restarted the clock when it let a request through would hide the queue (coordinated omission)."""
    sender = Sender()
    # Both are due within nanoseconds of the start, long before the first one ends.
    running = asyncio.create_task(drive(REQUESTS[:2], Load(1, 1e9), sender, random.Random(0)))
    await sender.until_sent(1)
    sender.release.release()
    await sender.until_sent(2)
    sender.release.release()
    first, second = await running
    assert second.start < first.end


async def test_arrivals_repeat_with_the_seed() -> None:
    dues = []
    for _ in range(2):
        sender = Sender()
        sender.release = asyncio.Semaphore(6)
        await drive(REQUESTS, Load(None, 5000.0), sender, random.Random(42))
        dues.append(sender.due)
    assert dues[0] == dues[1] == sorted(dues[0])
