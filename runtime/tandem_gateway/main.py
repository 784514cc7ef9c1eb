"""`tandem gateway`: reads the flags, serves until SIGTERM, drains, ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import web
from tandem_contract import env, ticket
from tandem_contract.api_keys import ApiKeys
from tandem_contract.flags import GatewayFlags
from tandem_http.body import PACE, Pace
from tandem_http.listening import listening
from tandem_tracing.spans import OFF, Tracing
from tandem_tracing.start import start

from tandem_gateway import logs
from tandem_gateway.app import GatewayApp
from tandem_gateway.cors import Cors
from tandem_gateway.delivery import Limits
from tandem_gateway.endpoints import Endpoints, StaticEndpoints
from tandem_gateway.fleet import Fleet
from tandem_gateway.kubernetes import ApiServer, WatchedEndpoints
from tandem_gateway.metrics import GatewayMetrics
from tandem_gateway.proxy import Proxy
from tandem_gateway.ui.routes import Page

log = logging.getLogger("tandem_gateway")

CUT_OFF_TIMEOUT_S = 2.0
TAKE_GRACE_S = 10.0
"""Streams are to end with an error event where their client takes nothing, not with their connection."""


def run(flags: GatewayFlags) -> int:
    """The exit status; 1 when a file cannot be read or a port cannot be had."""
    logs.configure(flags.log_format, flags.log_level)
    _raise_file_limit()
    _shorten_gc_pauses()
    return uvloop.run(_serve(flags))


class Gateway:
    """A gateway that listens; `api_port` and `metrics_port` are the real ones where the flags say 0."""

    def __init__(self, app: GatewayApp, proxy: Proxy, api_port: int, metrics_port: int) -> None:
        self._app = app
        self._proxy = proxy
        self.api_port = api_port
        self.metrics_port = metrics_port

    async def drain(self, timeout: float) -> None:
        """Takes nothing new; returns when all is answered, at the latest shortly after `timeout` seconds."""
        self._app.drain()
        log.info("draining", extra={"fields": {"in_flight": self._app.in_flight}})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._app.idle.wait(), timeout)
            return
        log.warning("cutting off", extra={"fields": {"in_flight": self._app.in_flight}})
        self._proxy.cut_off()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._app.idle.wait(), CUT_OFF_TIMEOUT_S)


@contextlib.asynccontextmanager
async def serving(
    flags: GatewayFlags, endpoints: Endpoints, *, pace: Pace = PACE, tracing: Tracing = OFF
) -> AsyncIterator[Gateway]:
    """Listens until the block ends; `tracing` stays the caller's to close.

    Raises `OSError` or `ValueError` for unusable files and ports.
    """
    keys = ApiKeys.from_file(flags.api_key_file) if flags.api_key_file else None
    tickets = ticket.keys_from_file(flags.ticket_key_file) if flags.ticket_key_file else None
    metrics = GatewayMetrics()
    fleet = Fleet(
        endpoints,
        metrics,
        strategy=flags.strategy,
        connect_timeout=flags.connect_timeout,
        status_interval=flags.status_interval,
    )
    limits = Limits(
        request_timeout=flags.request_timeout,
        stall_timeout=flags.stall_timeout,
        max_attempts=flags.max_attempts,
        max_resumes=flags.max_resumes,
        max_journal_bytes=flags.max_journal_bytes,
        resume_timeout=flags.resume_timeout,
    )
    proxy = Proxy(fleet, tickets, limits, metrics)
    app = GatewayApp(
        fleet,
        proxy,
        metrics,
        tracing,
        keys=keys,
        cors=Cors(flags.cors_origin),
        page=Page(fleet) if flags.ui else None,
        max_body_bytes=flags.max_body_bytes,
        max_in_flight=flags.max_in_flight,
        pace=pace,
    )
    async with fleet, _listening(app.api(), flags, flags.port) as api_port:
        async with _listening(app.probes(), flags, flags.metrics_port) as metrics_port:
            fields = {"host": flags.host, "port": api_port, "metrics_port": metrics_port}
            log.info("listening", extra={"fields": fields})
            yield Gateway(app, proxy, api_port, metrics_port)


async def _serve(flags: GatewayFlags) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        tracing = start("tandem-gateway", os.environ.get(env.POD_NAME) or socket.gethostname(), os.environ)
        stack.push_async_callback(tracing.close)
        try:
            gateway = await stack.enter_async_context(serving(flags, _endpoints(flags), tracing=tracing))
        except (OSError, ValueError) as error:
            print(f"tandem gateway: {error}", file=sys.stderr)
            return 1
        await stop.wait()
        await gateway.drain(flags.drain_timeout)
    return 0


def _endpoints(flags: GatewayFlags) -> Endpoints:
    if flags.kubernetes_service is None:
        return StaticEndpoints(flags.decode, flags.prefill)
    namespace, _, service = flags.kubernetes_service.partition("/")
    return WatchedEndpoints(ApiServer.in_cluster(os.environ), namespace, service)


def _listening(app: web.Application, flags: GatewayFlags, port: int) -> contextlib.AbstractAsyncContextManager[int]:
    return listening(
        app,
        host=flags.host,
        port=port,
        backlog=4096,
        auto_decompress=False,  # bodies are passed on as they came
        take_timeout=flags.stall_timeout + TAKE_GRACE_S,
    )


def _raise_file_limit() -> None:
    """Each stream is two sockets; the usual soft limit of 1,024 would end at 500."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _shorten_gc_pauses() -> None:
    """A full collection over a thousand live streams stops them all for some 80 ms, and finds next to nothing."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
