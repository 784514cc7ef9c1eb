"""A request that the engine serves, and what is told of its way at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem_contract.handoff import RequestTrace
from tandem_tracing.spans import Error, FinishedSpan

from tandem_runtime.engine.handoff_decode import HandoffRecord
from tandem_runtime.engine.messages import EngineRequest
from tandem_runtime.engine.spans import Attributes, Phase, phase_spans
from tandem_runtime.scheduling import Sequence


@dataclass(slots=True)
class Live:
    """Times are in the engine's clock."""

    request: EngineRequest
    arrival: float
    sequence: Sequence | None = None
    """None while its grammar is being compiled."""
    handoff: HandoffRecord | None = None
    """None where no prefill pod was to compute the prompt."""
    followers: dict[str, tuple[EngineRequest, float]] = field(default_factory=dict)
    """Requests that wait for this one's first token, with their arrival."""
    first_token_at: float = 0.0
    queue_seconds: float = 0.0
    cached_tokens: int = 0
    num_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0

    def trace(self, pod: str, now: float) -> RequestTrace:
        first, handoff = self.first_token_at or now, self.handoff or HandoffRecord()
        return RequestTrace(
            decode_pod=pod,
            prefill_pod=handoff.prefill_pod,
            prompt_tokens=len(self.request.prompt_token_ids),
            resumed_tokens=len(self.request.output_token_ids),
            cached_tokens=self.cached_tokens,
            handoff_pages=handoff.pages,
            handoff_bytes=handoff.bytes,
            handoff_seconds=handoff.seconds,
            handoff_transport=handoff.transport,
            queue_seconds=self.queue_seconds,
            ttft_seconds=first - self.arrival,
            draft_tokens=self.draft_tokens,
            accepted_tokens=self.accepted_tokens,
            tpot_seconds=(now - first) / (self.num_tokens - 1) if self.num_tokens > 1 else 0.0,
        )

    def spans(self, now: float, error: Error | None) -> list[FinishedSpan]:
        """Of a traced request that has ended: waiting, the way to the first token, and from there to the last."""
        assert self.request.trace is not None
        handoff = self.handoff
        if handoff is not None and handoff.settled_at is None:
            return []  # it ended with its handoff, which has a span of its own
        admitted = self.sequence.admitted_at if self.sequence is not None else None
        phases = [
            Phase("queue", handoff.settled_at if handoff is not None else self.arrival),
            Phase("first_token", admitted)  # computed from the last prompt token
            if handoff is not None and handoff.prefill_pod is not None
            else Phase("prefill", admitted, self._prefilled()),
            Phase("decode", self.first_token_at or None, {"gen_ai.usage.output_tokens": self.num_tokens}),
        ]
        return phase_spans(self.request.trace, self.request.request_id, phases, now, error)

    def _prefilled(self) -> Attributes:
        prefilled: Attributes = {
            "gen_ai.usage.input_tokens": len(self.request.prompt_token_ids),
            "gen_ai.usage.cache_read.input_tokens": self.cached_tokens,
        }
        if self.handoff is not None and self.handoff.fallback is not None:
            prefilled["tandem.handoff.fallback"] = self.handoff.fallback
        return prefilled
