"""When requests are sent: so many at a time (closed loop), or as they arrive (open loop, Poisson)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter

from tandem_runtime.bench.serve.client import Request
from tandem_runtime.bench.serve.metrics import RequestRecord

Clock = Callable[[], float]
Send = Callable[[Request, float, Clock], Awaitable[RequestRecord]]
"""Sends a request that was due at the given time on the given clock."""


@dataclass(frozen=True, slots=True)
class Load:
    """At least one of the two is set; with both, `concurrency` caps what is in flight."""

    concurrency: int | None
    request_rate: float | None
    """Mean arrivals per second of a Poisson process; None is a closed loop."""

    def __str__(self) -> str:
        parts = []
        if self.request_rate is not None:
            parts.append(f"{self.request_rate:g} req/s")
        if self.concurrency is not None:
            parts.append(f"c={self.concurrency}")
        return ", ".join(parts)


async def drive(requests: Sequence[Request], load: Load, send: Send, rng: random.Random) -> list[RequestRecord]:
    """Every request's record, in the order of `requests`; times count from this call."""
    begin = perf_counter()

    def clock() -> float:
        return perf_counter() - begin

    if load.request_rate is None:
        assert load.concurrency is not None
        return await _closed_loop(requests, load.concurrency, send, clock)
    arrivals = list(accumulate(rng.expovariate(load.request_rate) for _ in requests))
    return await _open_loop(requests, arrivals, load.concurrency, send, clock)


async def _closed_loop(requests: Sequence[Request], concurrency: int, send: Send, clock: Clock) -> list[RequestRecord]:
    queue = iter(requests)
    records: list[RequestRecord] = []

    async def keep_one_in_flight() -> None:
        for request in queue:
            records.append(await send(request, clock(), clock))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(keep_one_in_flight())
    return sorted(records, key=lambda record: record.index)


async def _open_loop(
    requests: Sequence[Request], arrivals: Sequence[float], cap: int | None, send: Send, clock: Clock
) -> list[RequestRecord]:
    gate = nullcontext() if cap is None else asyncio.Semaphore(cap)

    async def send_when_due(request: Request, due: float) -> RequestRecord:
        await asyncio.sleep(max(0.0, due - clock()))
        async with gate:
            # Latency counts from `due`: a cap must not hide the queue that it makes.
            return await send(request, due, clock)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(send_when_due(r, at)) for r, at in zip(requests, arrivals, strict=True)]
    return [task.result() for task in tasks]
