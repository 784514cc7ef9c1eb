"""Spans by OpenTelemetry's SDK: sampling, limits, resource and batches are as the OTEL_ variables say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tandem_tracing.context import TraceContext
from tandem_tracing.spans import Attributes, FinishedSpan, Kind, Span

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 3.0
"""For the last spans to reach a collector."""
LOG_EVERY_S = 60.0
"""The exporter has several lines for every batch that a collector does not take."""
_KINDS: dict[Kind, SpanKind] = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_W3C = TraceContextTextMapPropagator()


def otlp_exporter() -> SpanExporter:
    """As the OTEL_EXPORTER_OTLP_ variables say."""
    logging.getLogger(OTLPSpanExporter.__module__).addFilter(_Seldom())
    return OTLPSpanExporter()


class OtelTracing:
    """Implements `spans.Tracing`. Used on one event loop; spans leave the process on a thread of their own, which drops
    those that it cannot keep up with."""

    def __init__(self, exporter: SpanExporter, *, service: str, instance: str) -> None:
        release = version("tandem-serving")
        ours = {"service.name": service, "service.instance.id": instance, "service.version": release}
        self._ids = _Ids()
        self._provider = TracerProvider(
            resource=Resource.create(ours).merge(OTELResourceDetector().detect()),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tandem", release)

    def receive(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Span:
        caller = _W3C.extract(headers, Context())
        return _OtelSpan(self._tracer, self._tracer.start_span(name, caller, SpanKind.SERVER, attributes))

    def record(self, spans: Sequence[FinishedSpan]) -> None:
        now = time.time_ns() - time.monotonic_ns()
        for told in spans:
            self._ids.next_span_id = int(told.context.span_id, 16)
            span = self._tracer.start_span(
                told.name,
                _context_of(told.context, told.parent_id, remote=told.kind == "server"),
                _KINDS[told.kind],
                told.attributes,
                start_time=now + int(told.started * 1e9),
            )
            if told.error is not None:
                _fail(span, *told.error)
            span.end(now + int(told.ended * 1e9))

    async def close(self) -> None:
        """The SDK's own shutdown may take as long as the exporter's timeout, and as long again."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(done.set)

        # A daemon, so that the process need not wait for it.
        threading.Thread(target=shut_down, name="tracing-close", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            logger.warning("the collector did not take the last spans within %g s", CLOSE_TIMEOUT_S)


class _OtelSpan:
    """Implements `spans.Span`."""

    __slots__ = ("_failed", "_span", "_tracer")

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._failed = False

    @property
    def context(self) -> TraceContext | None:
        own = self._span.get_span_context()
        if not own.trace_flags.sampled:
            return None
        return TraceContext(f"{own.trace_id:032x}", f"{own.span_id:016x}", own.trace_state.to_header())

    @property
    def headers(self) -> Mapping[str, str]:
        """Of a span that is not recorded too: those who come after it must not record either."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier

    def child(self, name: str, attributes: Attributes) -> Span:
        parent = trace.set_span_in_context(self._span, Context())
        return _OtelSpan(self._tracer, self._tracer.start_span(name, parent, SpanKind.CLIENT, attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, error_type: str, message: str = "") -> None:
        if not self._failed:
            self._failed = True
            _fail(self._span, error_type, message)

    def end(self) -> None:
        self._span.end()


class _Ids(RandomIdGenerator):
    """Gives the next span the id that it was told of, if any."""

    def __init__(self) -> None:
        self.next_span_id = 0

    def generate_span_id(self) -> int:
        told, self.next_span_id = self.next_span_id, 0
        return told or super().generate_span_id()


class _Seldom(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        passes = now >= self._next
        if passes:
            self._next = now + LOG_EVERY_S
        return passes


def _fail(span: trace.Span, error_type: str, message: str) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR, message or None))


def _context_of(own: TraceContext, span_id: str, *, remote: bool) -> Context:
    parent = SpanContext(
        int(own.trace_id, 16),
        int(span_id, 16),
        is_remote=remote,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([own.state]) if own.state else TraceState(),
    )
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())
