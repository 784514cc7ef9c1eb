"""The W3C's trace context, as it travels inside pods and between them."""

from __future__ import annotations

import pytest
from support.spans import CALLER, TRACE_ID, TRACEPARENT
from tandem_tracing.context import TraceContext


def test_what_is_written_is_read() -> None:
    context = TraceContext(TRACE_ID, CALLER, "vendor=1")
    assert context.traceparent == TRACEPARENT
    assert TraceContext.parse(TRACEPARENT, "vendor=1") == context


def test_a_child_is_another_span_of_the_same_trace() -> None:
    context = TraceContext(TRACE_ID, CALLER, "vendor=1")
    child = context.child()
    assert (child.trace_id, child.state) == (context.trace_id, context.state)
    assert child.span_id != context.span_id
    assert TraceContext.parse(child.traceparent, child.state) == child


@pytest.mark.parametrize(
    "given",
    [
        *("", "nonsense", TRACEPARENT + "-01", TRACEPARENT.upper(), f"00-{TRACE_ID}-{CALLER}-00"),
        *(f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE_ID}-{'0' * 16}-01", f"00-{TRACE_ID}-{CALLER}-0g"),
    ],
)
def test_the_malformed_and_the_unrecorded_are_none(given: str) -> None:
    assert TraceContext.parse(given) is None
