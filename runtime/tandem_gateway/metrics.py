"""The gateway's metrics, made from the contract's names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from tandem_contract import metrics as names
from tandem_contract.metrics import Metric


class GatewayMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(names.GATEWAY_REQUESTS)
        self.in_flight = self._gauge(names.GATEWAY_IN_FLIGHT)
        self.retries = self._counter(names.GATEWAY_RETRIES)
        self.resumes = self._counter(names.GATEWAY_STREAM_RESUMES)
        self.lost = self._counter(names.GATEWAY_STREAMS_LOST)
        self.unprotected = self._counter(names.GATEWAY_STREAMS_UNPROTECTED)
        self.journal_bytes = self._gauge(names.GATEWAY_JOURNAL_BYTES)
        self.picks = self._counter(names.GATEWAY_PICKS)
        self.ttfb = self._histogram(names.GATEWAY_TTFB)
        self.seconds = self._histogram(names.GATEWAY_SECONDS)
        self.pods = self._gauge(names.GATEWAY_PODS)
        self.prefix_blocks = self._counter(names.GATEWAY_PREFIX_BLOCKS)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry)
