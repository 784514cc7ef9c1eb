"""Spans on their way to a collector, over real sockets; and collectors that are slow, or not there."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from support.collector import PATIENCE_S, Collector
from support.spans import CALLER, TRACE_ID, TRACEPARENT, Recorder
from tandem_tracing import otel
from tandem_tracing.context import TraceContext
from tandem_tracing.otel import OtelTracing
from tandem_tracing.spans import FinishedSpan

HEADERS = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}


def tracing_to(url: str, *, timeout: float = 10.0) -> OtelTracing:
    """`timeout` (s): for one batch of spans, with all attempts at sending it."""
    exporter = OTLPSpanExporter(f"{url}/v1/traces", timeout=timeout)
    return OtelTracing(exporter, service="tandem-decode", instance="d-0")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(autouse=True)
def threads_end(collector: Collector) -> Iterator[None]:
    """While they have a collector. The exporter's draws from `random` between its attempts, which later tests of random
    inputs do not allow."""
    before = threading.enumerate()
    yield
    collector.answers.set()
    for thread in set(threading.enumerate()) - set(before):
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread.name


async def test_what_is_left_at_the_end_reaches_the_collector(collector: Collector) -> None:
    tracing = tracing_to(collector.url)
    span = tracing.receive("POST /x", HEADERS, {"a": 1})
    span.fail("broken", "first")
    span.fail("other", "second")
    span.end()
    await tracing.close()
    seen = collector.spans.one("tandem-decode", "POST /x")
    assert (seen.trace_id, seen.parent_id, seen.state) == (TRACE_ID, CALLER, "vendor=1")
    assert (seen.error, seen.message, seen.attributes["a"]) == ("broken", "first", 1)


async def test_a_span_told_afterwards_keeps_its_id_its_parent_and_its_times() -> None:
    recorder = Recorder()
    own = TraceContext(TRACE_ID, "00000000000000aa", "vendor=1")
    now, wall = time.monotonic(), time.time()
    async with recorder.tracing("d") as tracing:
        tracing.record(
            [
                FinishedSpan(
                    name="prefill",
                    context=own,
                    parent_id=CALLER,
                    kind="server",
                    started=now - 2.0,
                    ended=now - 0.5,
                    attributes={"tandem.prefill.tokens": 7},
                    error=("peer_lost", "gone"),
                ),
                FinishedSpan(name="queue", context=own.child(), parent_id=own.span_id, started=now - 2.0, ended=now),
            ]
        )
    spans = recorder.spans
    spans.check_tree(CALLER)
    seen = spans.one("d", "prefill")
    assert (seen.trace_id, seen.span_id, seen.parent_id) == (TRACE_ID, own.span_id, CALLER)
    assert (seen.kind, seen.state, seen.error, seen.message) == ("server", "vendor=1", "peer_lost", "gone")
    assert seen.attributes["tandem.prefill.tokens"] == 7
    assert seen.ended - seen.started == pytest.approx(1.5e9)
    assert seen.started / 1e9 == pytest.approx(wall - 2.0, abs=0.5)


async def test_the_environment_names_the_service_where_it_wants_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=chat,deployment.environment.name=test")
    recorder = Recorder()
    async with recorder.tracing("tandem-decode") as tracing:
        tracing.receive("POST /x", {}, {}).end()
    assert recorder.spans.names() == ["chat/POST /x"]


async def test_the_environments_sampler_decides_and_those_below_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    recorder = Recorder()
    async with recorder.tracing("tandem-gateway") as tracing:
        span = tracing.receive("POST /x", {}, {})
        assert span.context is None
        assert int(span.headers["traceparent"][-2:], 16) & 1 == 0
        tracing.receive("POST /x", HEADERS, {}).end()
        span.end()
    assert len(recorder.spans.seen) == 1, "only the client that sampled is recorded"


async def test_a_collector_that_hangs_holds_nobody_up(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    collector.answers.clear()
    tracing = tracing_to(collector.url)
    began = time.monotonic()
    for _ in range(5000):  # more than are kept
        tracing.receive("POST /x", HEADERS, {}).end()
    assert time.monotonic() - began < 5.0, "no export was waited for"
    await asyncio.wait_for(tracing.close(), otel.CLOSE_TIMEOUT_S + 5.0)
    assert "did not take the last spans" in caplog.text


async def test_a_collector_that_is_not_there_is_no_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    tracing = tracing_to(url, timeout=1.0)
    tracing.receive("POST /x", HEADERS, {}).end()
    await asyncio.wait_for(tracing.close(), otel.CLOSE_TIMEOUT_S + 5.0)
