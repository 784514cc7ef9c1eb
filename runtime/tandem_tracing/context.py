"""Where in a trace something happens, as W3C Trace Context spells it (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span of a trace that is recorded; of one that is not, no context is passed on inside a pod or between pods."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    state: str = ""
    """The `tracestate` header; other tracing systems' own."""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED:02x}"

    def child(self) -> TraceContext:
        """The context of a new span below this one."""
        return replace(self, span_id=secrets.token_hex(8))

    @classmethod
    def parse(cls, traceparent: str, state: str = "") -> TraceContext | None:
        """None for what is malformed, and for a trace that is not recorded."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None or not int(match[3], 16) & _SAMPLED or not int(match[1], 16) or not int(match[2], 16):
            return None
        return cls(match[1], match[2], state)
