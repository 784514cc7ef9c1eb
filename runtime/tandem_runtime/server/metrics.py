"""The Prometheus collectors of an engine pod, built from `tandem_contract.metrics`."""

from __future__ import annotations

from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from tandem_contract import metrics as m
from tandem_contract.handoff import RequestTrace

from tandem_runtime.engine.messages import EngineStatus


class Metrics:
    """One registry per pod. Latencies are measured in the API process, everything else comes with `EngineStatus`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.info = self._gauge(m.INFO)
        self.model_load = self._gauge(m.MODEL_LOAD)
        self.requests = self._counter(m.REQUESTS)
        self.ttft = self._histogram(m.TTFT)
        self.tpot = self._histogram(m.TPOT)
        self.itl = self._histogram(m.ITL)
        self.e2e = self._histogram(m.E2E)
        self.queue_time = self._histogram(m.QUEUE_TIME)
        self.tickets_refused = self._counter(m.TICKETS_REFUSED)
        self.handoff_seconds = self._histogram(m.HANDOFF_SECONDS)
        self._step_time = self._histogram(m.STEP_TIME)
        self._step_gap = self._histogram(m.STEP_GAP)
        self._running = self._gauge(m.REQUESTS_RUNNING)
        self._waiting = self._gauge(m.REQUESTS_WAITING)
        self._kv_pages = self._gauge(m.KV_PAGES)
        self._kv_usage = self._gauge(m.KV_USAGE)
        self._quarantined = self._gauge(m.HANDOFF_QUARANTINED)
        self._totals = {
            field: self._counter(metric)
            for field, metric in (
                ("prompt_tokens", m.PROMPT_TOKENS),
                ("generation_tokens", m.GENERATION_TOKENS),
                ("prefix_query_tokens", m.PREFIX_QUERIES),
                ("prefix_hit_tokens", m.PREFIX_HITS),
                ("preemptions", m.PREEMPTIONS),
                ("drafts", m.DRAFTS),
                ("draft_tokens", m.DRAFT_TOKENS),
                ("accepted_tokens", m.ACCEPTED_TOKENS),
                ("leases_expired", m.HANDOFF_EXPIRED),
            )
        }
        self._labelled_totals = {
            field: self._counter(metric)
            for field, metric in (
                ("handoff_fallbacks", m.HANDOFF_FALLBACKS),
                ("handoffs", m.HANDOFFS),
                ("handoff_bytes", m.HANDOFF_BYTES),
                ("handoff_pages", m.HANDOFF_PAGES),
            )
        }
        self._seen = EngineStatus()

    def observe(self, status: EngineStatus) -> None:
        """To be called with every status, in order: totals advance by the difference to the one before."""
        self._running.set(status.running)
        self._waiting.set(status.waiting)
        self._kv_pages.set(status.kv_pages_total)
        self._kv_usage.set(status.kv_pages_used / max(1, status.kv_pages_total))
        self._quarantined.set(status.kv_pages_quarantined)
        for seconds in status.step_seconds:
            self._step_time.observe(seconds)
        for seconds in status.gap_seconds:
            self._step_gap.observe(seconds)
        for field, counter in self._totals.items():
            counter.inc(getattr(status, field) - getattr(self._seen, field))
        for field, counter in self._labelled_totals.items():
            before: dict[str, int] = getattr(self._seen, field)
            for key, total in cast("dict[str, int]", getattr(status, field)).items():
                counter.labels(*key.split("/")).inc(total - before.get(key, 0))
        self._seen = status

    def request(self, arrived: float, *, resumed: bool = False) -> RequestTiming:
        return RequestTiming(self, arrived, resumed=resumed)

    def _counter(self, metric: m.Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def _gauge(self, metric: m.Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def _histogram(self, metric: m.Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, registry=self.registry, buckets=metric.buckets)


class RequestTiming:
    """Latencies of one sequence; times are `time.perf_counter` seconds."""

    __slots__ = ("_arrived", "_first", "_last", "_metrics", "_num_tokens")

    def __init__(self, metrics: Metrics, arrived: float, *, resumed: bool) -> None:
        """`resumed`: the first token came from another pod; the next one ends a gap between two tokens."""
        self._metrics = metrics
        self._arrived = arrived
        self._first = arrived if resumed else None
        self._last = arrived
        self._num_tokens = 0

    def tokens(self, count: int, now: float) -> None:
        if count == 0:
            return
        if self._first is None:
            self._first = now
            self._metrics.ttft.observe(now - self._arrived)
        else:
            for _ in range(count):
                self._metrics.itl.observe((now - self._last) / count)
        self._last = now
        self._num_tokens += count

    def trace(self, trace: RequestTrace) -> None:
        self._metrics.queue_time.observe(trace.queue_seconds)
        if trace.prefill_pod is not None:
            self._metrics.handoff_seconds.observe(trace.handoff_seconds)

    @property
    def tpot_seconds(self) -> float:
        """Mean so far; 0 before the second token."""
        return (
            0.0 if self._first is None or self._num_tokens < 2 else (self._last - self._first) / (self._num_tokens - 1)
        )

    def end(self, outcome: str, now: float) -> None:
        self._metrics.requests.labels(outcome).inc()
        if outcome in ("stop", "length") and self._first is not None:
            self._metrics.e2e.observe(now - self._arrived)
            if self._num_tokens > 1:
                self._metrics.tpot.observe(self.tpot_seconds)
