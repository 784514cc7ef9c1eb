"""What a span is to the code that makes one, and the tracing that is off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tandem_tracing.context import TraceContext

Value = str | bool | int | float
Attributes = Mapping[str, Value | Sequence[str]]
Kind = Literal["server", "client", "internal"]
Error = tuple[str, str]
"""`error.type` of the semantic conventions, one of few values; and a message."""


class Span(Protocol):
    """Something under way. Nothing of it raises, and nothing of it waits."""

    @property
    def context(self) -> TraceContext | None:
        """None where the span is not recorded."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Of requests to others that belong to this span; empty when tracing is off."""
        ...

    def child(self, name: str, attributes: Attributes) -> Span:
        """Of kind client: the work is another process's."""
        ...

    def rename(self, name: str) -> None: ...

    def set(self, attributes: Attributes) -> None: ...

    def fail(self, error_type: str, message: str = "") -> None:
        """As `Error`. The first failure stays."""
        ...

    def end(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSpan:
    """Told after the fact, by a process that has no SDK. Times are `time.monotonic` seconds, which the processes of one
    machine share."""

    name: str
    context: TraceContext
    parent_id: str
    kind: Kind = "internal"
    started: float
    ended: float
    attributes: dict[str, Value] = field(default_factory=dict)
    error: Error | None = None


class Tracing(Protocol):
    def receive(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Span:
        """Of kind server, below the caller's span where `headers` name one."""
        ...

    def record(self, spans: Sequence[FinishedSpan]) -> None: ...

    async def close(self) -> None:
        """Sends what is left, for a bounded time."""
        ...


class _NoSpan:
    @property
    def context(self) -> TraceContext | None:
        return None

    @property
    def headers(self) -> Mapping[str, str]:
        return {}

    def child(self, name: str, attributes: Attributes) -> Span:
        return self

    def rename(self, name: str) -> None: ...

    def set(self, attributes: Attributes) -> None: ...

    def fail(self, error_type: str, message: str = "") -> None: ...

    def end(self) -> None: ...


class _Off:
    def receive(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Span:
        return NO_SPAN

    def record(self, spans: Sequence[FinishedSpan]) -> None: ...

    async def close(self) -> None: ...


NO_SPAN: Span = _NoSpan()
OFF: Tracing = _Off()
