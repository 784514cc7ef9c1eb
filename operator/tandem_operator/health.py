"""The operator's own metrics, and whether it is alive: /metrics, /livez, /readyz."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from tandem_contract import metrics as names
from tandem_http.listening import listening


class OperatorMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        seconds, waited, errors, writes, unread, services = (
            names.RECONCILE_SECONDS,
            names.RECONCILE_WAIT,
            names.RECONCILE_ERRORS,
            names.API_WRITES,
            names.WATCH_FAILURES,
            names.SERVICES,
        )
        self.seconds = Histogram(seconds.name, seconds.help, buckets=seconds.buckets, registry=self.registry)
        self.waited = Histogram(waited.name, waited.help, buckets=waited.buckets, registry=self.registry)
        self.errors = Counter(errors.name, errors.help, errors.labels, registry=self.registry)
        self.writes = Counter(writes.name, writes.help, writes.labels, registry=self.registry)
        self._unread = Counter(unread.name, unread.help, unread.labels, registry=self.registry)
        self._services = Gauge(services.name, services.help, services.labels, registry=self.registry)
        self._ready: dict[tuple[str, str], str] = {}

    @property
    def services(self) -> frozenset[tuple[str, str]]:
        """Namespace and name of those that were there when last looked at."""
        return frozenset(self._ready)

    def wrote(self, kind: str, verb: str) -> None:
        self.writes.labels(kind, verb).inc()

    def unread(self, kind: str, reason: str) -> None:
        """A list or watch failed."""
        self._unread.labels(kind, reason).inc()

    def saw(self, key: tuple[str, str], ready: str | None) -> None:
        """`ready` None: the service is gone."""
        if ready is None:
            self._ready.pop(key, None)
        else:
            self._ready[key] = ready
        for value in ("True", "False", "Unknown"):
            self._services.labels(value).set(list(self._ready.values()).count(value))


class Pulse:
    """Alive while reconciles end. Only silence counts, not failure: a restart does not mend an API server that is away.

    Where there is nothing to reconcile (no service, no lease, no CRD), each look for it is the sign of life.
    """

    def __init__(self, limit_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit_s
        self._clock = clock
        self._last = clock()

    def beat(self) -> None:
        self._last = self._clock()

    @property
    def age_s(self) -> float:
        return self._clock() - self._last

    @property
    def alive(self) -> bool:
        return self.age_s < self._limit


@contextlib.asynccontextmanager
async def serving(metrics: OperatorMetrics, pulse: Pulse, host: str, port: int) -> AsyncIterator[int]:
    """Yields the port listened on. Raises `OSError` when it is taken."""

    async def live(request: web.Request) -> web.Response:
        return web.Response(status=200 if pulse.alive else 503, text=f"last reconcile {pulse.age_s:.0f} s ago\n")

    async def ready(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def expose(request: web.Request) -> web.Response:
        body = generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    app = web.Application()
    app.router.add_get("/livez", live)
    app.router.add_get("/readyz", ready)
    app.router.add_get("/metrics", expose)
    async with listening(app, host=host, port=port, backlog=128) as bound:
        yield bound
