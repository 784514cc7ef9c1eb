"""A stream whose pod is lost goes on at another one (ADR 0006): which, for how long, and when to give up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from aiohttp import web

from tandem_gateway.delivery import MAX_BARREN_DEATHS, AttemptFailed, Delivery, Interrupted, Limits, Lost
from tandem_gateway.errors import NoPodAvailable, ShuttingDown
from tandem_gateway.fleet import Fleet, Picked

RESUME_PAUSE_S = 0.2
"""Between two looks for a pod that can go on with a stream."""

Attempt = Callable[[Delivery, Picked], Awaitable[web.StreamResponse]]
"""`Attempts.make`."""


class Resumption:
    def __init__(self, fleet: Fleet, attempt: Attempt, limits: Limits, stopping: asyncio.Event) -> None:
        """`stopping`: set when the gateway ends."""
        self._fleet = fleet
        self._attempt = attempt
        self._limits = limits
        self._stopping = stopping

    async def go_on(self, delivery: Delivery, cut: Interrupted) -> web.StreamResponse:
        """Until the stream ends. Raises `Lost` when it must end early."""
        while True:
            delivery.interrupted(cut)
            if delivery.resumes > self._limits.max_resumes:
                raise Lost("limit", cut.error)
            try:
                return await self._at_another_pod(delivery, cut)
            except Interrupted as again:
                cut = again

    async def _at_another_pod(self, delivery: Delivery, cut: Interrupted) -> web.StreamResponse:
        """Tries every pod again and again until one goes on, for a bounded time. Raises `Interrupted` and `Lost`."""
        loop = asyncio.get_running_loop()
        give_up_at = min(delivery.end, loop.time() + self._limits.resume_timeout)
        avoid = frozenset({cut.key})
        while loop.time() < give_up_at:
            if self._stopping.is_set():
                raise Lost("shutdown", ShuttingDown())
            if delivery.barren_deaths >= MAX_BARREN_DEATHS:
                raise Lost("deaths", cut.error)
            picked = self._fleet.pick(
                delivery.call.prompt,
                wants_prefill=delivery.call.wants_prefill,
                exclude=avoid,
                continuation=delivery.continuation,
            )
            if picked is None:
                avoid = frozenset()  # the pod may be back, or have room again
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), RESUME_PAUSE_S)
                continue
            try:
                return await self._attempt(delivery, picked)
            except AttemptFailed as failed:
                avoid |= {picked.decode.key}
                delivery.barren_deaths += failed.pod_may_have_died_of_it
                if failed.reason == "refused":
                    raise Lost("refused", cut.error) from failed
        raise Lost("no_pod", NoPodAvailable(f"{cut.error.message} No other one could go on."))
