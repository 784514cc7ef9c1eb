"""Prometheus metrics of one fetch; names from `tandem_contract.metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from tandem_contract import metrics

from tandem_fetch.errors import BadSource


class Telemetry:
    """Counts into a registry of its own."""

    def __init__(self, scheme: str) -> None:
        self.registry = CollectorRegistry()
        fetched, retries, seconds = metrics.FETCH_BYTES, metrics.FETCH_RETRIES, metrics.FETCH_SECONDS
        self.bytes = Counter(fetched.name, fetched.help, fetched.labels, registry=self.registry).labels(scheme)
        self._retries = Counter(retries.name, retries.help, retries.labels, registry=self.registry)
        self.seconds = Gauge(seconds.name, seconds.help, registry=self.registry)

    def retried(self, reason: str) -> None:
        self._retries.labels(reason).inc()

    @contextmanager
    def served(self, port: int | None) -> Iterator[None]:
        """`/metrics` on `port` while the block runs; None: nowhere. Raises `BadSource` when the port cannot be had."""
        if port is None:
            yield
            return
        try:
            server, thread = start_http_server(port, registry=self.registry)
        except OSError as error:
            raise BadSource(f"--metrics-port {port}: {error.strerror}", "choose another, or leave it out") from error
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
