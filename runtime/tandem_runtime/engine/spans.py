"""Spans of traced requests and jobs, from what the engine has noted of them. Pure; times are in the engine's clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem_tracing.context import TraceContext
from tandem_tracing.spans import Error, FinishedSpan, Value

Attributes = dict[str, Value]


@dataclass(slots=True)
class JobTimes:
    """Of a job at a prefill pod, in this order; None: not reached."""

    received: float
    announced: float | None = None
    """Near the queue's head: the decode pod is asked for pages."""
    granted: float | None = None
    """It has them."""
    computed: float | None = None
    sent: float | None = None
    """Nothing reads the pages any more."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Of a request or job; what follows it ends it."""

    name: str
    begins: float | None
    """None: not reached."""
    attributes: Attributes = field(default_factory=dict)


def attempt_spans(
    own: TraceContext,
    parent: TraceContext,
    request_id: str,
    *,
    prefill_pod: str,
    asked: float,
    granted: float | None,
    ended: float,
    moved: Attributes,
    error: Error | None,
) -> list[FinishedSpan]:
    """A decode pod's attempt at a handoff, and its transfer where pages were granted. `moved`: pages and bytes."""
    attempt = FinishedSpan(
        name="handoff",
        context=own,
        parent_id=parent.span_id,
        kind="client",
        started=asked,
        ended=ended,
        attributes={"tandem.request_id": request_id, "tandem.prefill.pod": prefill_pod},
        error=error,
    )
    return [attempt] if granted is None else [attempt, _transfer(own, granted, ended, moved, error)]


def job_spans(
    caller: TraceContext,
    request_id: str,
    times: JobTimes,
    *,
    ended: float,
    computed: Attributes,
    moved: Attributes,
    error: Error | None,
) -> list[FinishedSpan]:
    """What a prefill pod did for a decode pod. `computed`: tokens, `moved`: pages and bytes."""
    own = caller.child()
    job = FinishedSpan(
        name="prefill",
        context=own,
        parent_id=caller.span_id,
        kind="server",
        started=times.received,
        ended=ended,
        attributes={"tandem.request_id": request_id, **computed},
        error=error,
    )
    phases = [
        Phase("queue", times.received),
        Phase("reserve", times.announced),
        Phase("compute", times.granted),
    ]
    spans = [job, *phase_spans(own, request_id, phases, times.computed or ended, None if times.computed else error)]
    if times.granted is not None:
        spans.append(_transfer(own, times.granted, times.sent or ended, moved, error))
    return spans


def phase_spans(
    parent: TraceContext, request_id: str, phases: Sequence[Phase], ended: float, error: Error | None
) -> list[FinishedSpan]:
    """A phase that was not reached has none; the last one lasts until the end, and `error` is its."""
    reached = [(phase, phase.begins) for phase in phases if phase.begins is not None]
    ends = [begins for _, begins in reached[1:]] + [ended]
    return [
        FinishedSpan(
            name=phase.name,
            context=parent.child(),
            parent_id=parent.span_id,
            started=begins,
            ended=ends[index],
            attributes={"tandem.request_id": request_id, **phase.attributes},
            error=error if index == len(reached) - 1 else None,
        )
        for index, (phase, begins) in enumerate(reached)
    ]


def _transfer(
    parent: TraceContext, started: float, ended: float, moved: Attributes, error: Error | None
) -> FinishedSpan:
    return FinishedSpan(
        name="transfer",
        context=parent.child(),
        parent_id=parent.span_id,
        started=started,
        ended=ended,
        attributes=moved,
        error=error,
    )
