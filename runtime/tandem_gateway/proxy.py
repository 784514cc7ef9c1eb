"""A request's way through the gateway: pick pods, send, try another pod, let a stream go on elsewhere."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from tandem_gateway import tracing
from tandem_gateway.attempt import Attempts, TicketKeys
from tandem_gateway.delivery import AttemptFailed, Call, Delivery, Interrupted, Limits, Lost
from tandem_gateway.errors import ApiError, ModelNotFound, NoPodAvailable, ShuttingDown
from tandem_gateway.fleet import Fleet, Picked
from tandem_gateway.journal import Journals
from tandem_gateway.metrics import GatewayMetrics
from tandem_gateway.prompt import Prompt
from tandem_gateway.resume import Resumption
from tandem_gateway.retry import RetryBudget

_MAX_DEATHS = 2
"""After so many attempts that a pod may have died of, the request is given up: one may be chance, but a poison request
must not take the fleet."""


class Proxy:
    def __init__(self, fleet: Fleet, tickets: TicketKeys | None, limits: Limits, metrics: GatewayMetrics) -> None:
        self._fleet = fleet
        self._tickets = tickets
        self._limits = limits
        self._metrics = metrics
        self._budget = RetryBudget(time.monotonic())
        self._stopping = asyncio.Event()
        self._attempts = Attempts(fleet, tickets, limits, metrics)
        self._resumption = Resumption(fleet, self._attempts, limits, self._stopping)
        self._journals = Journals(limits.max_journal_bytes, lambda reason: metrics.unprotected.labels(reason).inc())
        metrics.journal_bytes.set_function(lambda: self._journals.size)

    def cut_off(self) -> None:
        """Ends every answer in flight, streams with an error event."""
        self._stopping.set()
        self._attempts.cut_off(ShuttingDown())

    async def answer(self, call: Call, request: web.Request) -> web.StreamResponse:
        """Tries pods until one answers, and lets others go on with a stream. Raises `ApiError` when none does."""
        self._budget.deposit()
        now = asyncio.get_running_loop().time()
        live = self._tickets is not None and self._limits.max_resumes > 0 and call.prompt.stream and call.wants_prefill
        with self._journals.open() as journal:
            delivery = Delivery(
                call=call,
                request=request,
                started=now,
                end=now + self._limits.request_timeout,
                wants_live=live,
                journal=journal,
            )
            try:
                return await self._deliver(delivery)
            except Lost as lost:
                assert delivery.client is not None
                self._metrics.lost.labels(lost.reason).inc()
                tracing.fail(call.span, lost.error)
                await delivery.client.fail(lost.error)
                return delivery.client.response
            finally:
                delivery.let_go()

    async def _deliver(self, delivery: Delivery) -> web.StreamResponse:
        try:
            return await self._begin(delivery)
        except Interrupted as cut:
            return await self._resumption.go_on(delivery, cut)

    async def _begin(self, delivery: Delivery) -> web.StreamResponse:
        tried: frozenset[str] = frozenset()
        failure: AttemptFailed | None = None
        deaths = 0
        for _ in range(self._limits.max_attempts):
            if failure is not None and not self._budget.withdraw(time.monotonic()):
                break
            picked = self._pick(delivery.call, tried, failure)
            if picked is None:
                break
            if failure is not None:
                self._metrics.retries.labels(failure.reason).inc()
            try:
                return await self._attempts.make(delivery, picked)
            except AttemptFailed as error:
                failure = error
                tried |= {picked.decode.key}
                deaths += error.pod_may_have_died_of_it
                if deaths == _MAX_DEATHS:
                    break
        if failure is None:
            raise self._nobody(delivery.call.prompt)
        if isinstance(failure.answer, ApiError):
            raise failure.answer
        return failure.answer

    def _pick(self, call: Call, tried: frozenset[str], failure: AttemptFailed | None) -> Picked | None:
        wants_prefill = call.wants_prefill and self._tickets is not None
        picked = self._fleet.pick(call.prompt, wants_prefill=wants_prefill, exclude=tried)
        if picked is None and failure is not None and failure.reason in ("broken", "pod_down"):
            # The pod had just closed a kept-alive connection, or restarted: it may well answer on a new one.
            picked = self._fleet.pick(call.prompt, wants_prefill=wants_prefill)
        return picked

    def _nobody(self, prompt: Prompt) -> ApiError:
        known = self._fleet.models()
        if prompt.model is not None and known and prompt.model not in known:
            return ModelNotFound(f"The model {prompt.model!r} does not exist.", param="model")
        return NoPodAvailable("No pod can take the request just now.")
