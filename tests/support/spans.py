"""Finished spans as tests look at them, whether they were kept in memory or came to a collector."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tandem_tracing.otel import OtelTracing

CALLER = "b7ad6b7169203331"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER}-01"
"""Of a client: the example of the W3C's specification."""


@dataclass(frozen=True)
class Seen:
    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    state: str
    started: int
    ended: int
    """Both in Unix nanoseconds."""
    attributes: dict[str, Any]
    failed: bool
    message: str

    @property
    def error(self) -> str | None:
        """`error.type`; a span has one exactly when its status says that it failed."""
        found: str | None = self.attributes.get("error.type")
        assert self.failed == (found is not None), self
        return found


@dataclass
class Spans:
    """Of one trace, or of several."""

    seen: list[Seen] = field(default_factory=list)

    def one(self, service: str, name: str) -> Seen:
        found = self.all(service, name)
        assert len(found) == 1, f"{len(found)} spans {service}/{name} among {self.names()}"
        return found[0]

    def all(self, service: str, name: str) -> list[Seen]:
        """In the order of their beginning."""
        found = [span for span in self.seen if (span.service, span.name) == (service, name)]
        return sorted(found, key=lambda span: span.started)

    def below(self, parent: Seen) -> list[str]:
        """The names of a span's children, in the order of their beginning."""
        children = [span for span in self.seen if span.parent_id == parent.span_id]
        return [f"{span.service}/{span.name}" for span in sorted(children, key=lambda span: span.started)]

    def names(self) -> list[str]:
        return sorted(f"{span.service}/{span.name}" for span in self.seen)

    def of(self, trace_id: str) -> Spans:
        return Spans([span for span in self.seen if span.trace_id == trace_id])

    def check_tree(self, root_parent: str) -> None:
        """One root, below `root_parent`; every other span's parent is there."""
        ids = {span.span_id for span in self.seen}
        assert len(ids) == len(self.seen)
        assert [span.name for span in self.seen if span.parent_id not in ids and span.parent_id != root_parent] == []
        assert len([span for span in self.seen if span.parent_id == root_parent]) == 1
        assert all(span.ended >= span.started for span in self.seen)


class Recorder:
    """Makes tracings that keep their spans in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()

    @contextlib.asynccontextmanager
    async def tracing(self, service: str) -> AsyncIterator[OtelTracing]:
        """Its spans are there once the block has ended."""
        made = OtelTracing(_Shared(self._exporter), service=service, instance=f"{service}-0")
        try:
            yield made
        finally:
            await made.close()

    @property
    def spans(self) -> Spans:
        return Spans([_seen(span) for span in self._exporter.get_finished_spans()])


class _Shared(InMemorySpanExporter):
    """Several processes' spans in one exporter, which outlives them."""

    def __init__(self, kept: InMemorySpanExporter) -> None:
        super().__init__()
        self._kept = kept

    def export(self, spans: Sequence[ReadableSpan]) -> Any:
        return self._kept.export(spans)


def _seen(span: ReadableSpan) -> Seen:
    context = span.get_span_context()
    assert context is not None
    assert span.start_time is not None
    assert span.end_time is not None
    return Seen(
        service=str(span.resource.attributes["service.name"]),
        name=span.name,
        kind=span.kind.name.lower(),
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=f"{span.parent.span_id:016x}" if span.parent is not None else "",
        state=context.trace_state.to_header(),
        started=span.start_time,
        ended=span.end_time,
        attributes=dict(span.attributes or {}),
        failed=not span.status.is_ok,
        message=span.status.description or "",
    )


def told(resource_spans: Iterable[Any]) -> list[Seen]:
    """As a collector is told them: `ResourceSpans` of OTLP's protocol buffers."""
    return [
        Seen(
            service=_attributes(group.resource.attributes)["service.name"],
            name=span.name,
            kind={1: "internal", 2: "server", 3: "client"}[span.kind],
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            state=span.trace_state,
            started=span.start_time_unix_nano,
            ended=span.end_time_unix_nano,
            attributes=_attributes(span.attributes),
            failed=span.status.code == 2,
            message=span.status.message,
        )
        for group in resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(one) for one in value.array_value.values)
    return getattr(value, kind)
