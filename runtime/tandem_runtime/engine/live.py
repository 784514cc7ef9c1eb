"""A request that the engine serves, and what is told of its way at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem_contract.handoff import RequestTrace

from tandem_runtime.engine.handoff_decode import HandoffRecord
from tandem_runtime.engine.messages import EngineRequest


@dataclass(slots=True)
class Live:
    """Times are in the engine's clock."""

    request: EngineRequest
    arrival: float
    handoff: HandoffRecord = field(default_factory=HandoffRecord)
    followers: dict[str, tuple[EngineRequest, float]] = field(default_factory=dict)
    """Requests that wait for this one's first token, with their arrival."""
    first_token_at: float = 0.0
    queue_seconds: float = 0.0
    cached_tokens: int = 0
    num_tokens: int = 0

    def trace(self, pod: str, now: float) -> RequestTrace:
        first = self.first_token_at or now
        return RequestTrace(
            decode_pod=pod,
            prefill_pod=self.handoff.prefill_pod,
            prompt_tokens=len(self.request.prompt_token_ids),
            resumed_tokens=len(self.request.output_token_ids),
            cached_tokens=self.cached_tokens,
            handoff_pages=self.handoff.pages,
            handoff_bytes=self.handoff.bytes,
            handoff_seconds=self.handoff.seconds,
            queue_seconds=self.queue_seconds,
            ttft_seconds=first - self.arrival,
            tpot_seconds=(now - first) / (self.num_tokens - 1) if self.num_tokens > 1 else 0.0,
        )
