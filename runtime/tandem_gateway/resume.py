"""A stream whose pod is lost, or leaves, goes on at another one (ADR 0006): which, for how long, when to give up."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from tandem_gateway.attempt import Attempts
from tandem_gateway.delivery import MAX_BARREN_DEATHS, AttemptFailed, Delivery, Interrupted, Limits, Lost
from tandem_gateway.errors import NoPodAvailable, ShuttingDown
from tandem_gateway.fleet import Fleet

log = logging.getLogger(__name__)

RESUME_PAUSE_S = 0.2
"""Between two looks for a pod that can go on with a stream."""
MOVE_AGAIN_S = 2.0
"""A stream that no other pod took stays for so long before they are asked again: each time its client waits."""
MOVE_WITHIN_S = 5.0
"""With `--resume-timeout 0`, other pods may take so long to take up a stream that its own pod still has."""


class Resumption:
    def __init__(self, fleet: Fleet, attempts: Attempts, limits: Limits, stopping: asyncio.Event) -> None:
        """`stopping`: set when the gateway ends."""
        self._fleet = fleet
        self._attempts = attempts
        self._limits = limits
        self._stopping = stopping

    async def go_on(self, delivery: Delivery, cut: Interrupted) -> web.StreamResponse:
        """Until the stream ends. Raises `Lost` when it must end early."""
        while True:
            delivery.interrupted(cut)
            try:
                return await self._somewhere(delivery, cut)
            except Interrupted as again:
                cut = again

    async def _somewhere(self, delivery: Delivery, cut: Interrupted) -> web.StreamResponse:
        """At another pod, or at its own where that has not let go of it. Raises `Interrupted` and `Lost`."""
        try:
            return await self._at_another_pod(delivery, cut)
        except Lost as lost:
            if delivery.parked is None or self._stopping.is_set():
                raise
            fields = {"request_id": delivery.call.request_id, "pod": delivery.parked.pod.key, "reason": lost.reason}
            log.info("stream stays at its leaving pod", extra={"fields": fields})
        delivery.stays_until = asyncio.get_running_loop().time() + MOVE_AGAIN_S
        return await self._attempts.go_back(delivery)

    async def _at_another_pod(self, delivery: Delivery, cut: Interrupted) -> web.StreamResponse:
        """Asks every pod; then again and again until one goes on, for a bounded time, unless the stream's own pod still
        has it. Raises `Interrupted` and `Lost`."""
        loop = asyncio.get_running_loop()
        stays = delivery.parked is not None
        patience = self._limits.resume_timeout or (MOVE_WITHIN_S if stays else 0.0)
        give_up_at = min(delivery.end, loop.time() + patience)
        avoid = frozenset({cut.key})
        while True:
            if self._stopping.is_set():
                raise Lost("shutdown", ShuttingDown())
            if not delivery.resumable:
                raise Lost("no_records", cut.error)
            if delivery.resumes >= self._limits.max_resumes:
                raise Lost("limit", cut.error)
            if delivery.barren_deaths >= MAX_BARREN_DEATHS:
                raise Lost("deaths", cut.error)
            picked = self._fleet.pick(
                delivery.call.prompt,
                wants_prefill=delivery.call.wants_prefill,
                exclude=avoid | delivery.refused_by,
                continuation=delivery.continuation,
            )
            left = give_up_at - loop.time()
            if picked is None:
                if delivery.refused_by and not avoid:
                    raise Lost("refused", cut.error)
                if stays or left <= 0:
                    raise Lost("no_pod", NoPodAvailable(f"{cut.error.message} No other one could go on."))
                avoid = frozenset()  # the pod may be back, or have room again
                await asyncio.sleep(min(left, RESUME_PAUSE_S))
                continue
            try:
                return await self._attempts.make(delivery, picked, within=left if stays else None)
            except AttemptFailed as failed:
                avoid |= {picked.decode.key}
                delivery.barren_deaths += failed.pod_may_have_died_of_it
                if failed.reason == "refused":
                    delivery.refused_by |= {picked.decode.key}
