"""The engine's account of itself: which status is due when, and what it says."""

from __future__ import annotations

from collections.abc import Sized

from tandem_runtime.core.plan import StepResult
from tandem_runtime.engine.grammar_gate import GrammarGate
from tandem_runtime.engine.handoff_decode import DecodeHandoffs
from tandem_runtime.engine.handoff_prefill import PrefillHandoffs
from tandem_runtime.engine.messages import HEARTBEAT_S, EngineStatus
from tandem_runtime.scheduling import Scheduler

STATUS_INTERVAL_S = 0.1


class StatusReporter:
    def __init__(
        self,
        scheduler: Scheduler,
        grammars: GrammarGate | None,
        followers: Sized,
        decode: DecodeHandoffs | None,
        prefill: PrefillHandoffs | None,
    ) -> None:
        """`followers`: requests that wait for another one's first token."""
        self._scheduler = scheduler
        self._grammars = grammars
        self._followers = followers
        self._decode = decode
        self._prefill = prefill
        self._steps = 0
        self._step_seconds: list[float] = []
        self._gap_seconds: list[float] = []
        self._sent_at = 0.0
        self._stale = True

    def changed(self) -> None:
        """Something happened since the last status."""
        self._stale = True

    def stepped(self, result: StepResult, *, waited: bool) -> None:
        """`waited`: the step was planned before the one before it ended, so the gap between them is the device's."""
        self._steps += 1
        self._step_seconds.append(result.seconds)
        if waited:
            self._gap_seconds.append(result.gap_seconds)

    def due(self, now: float, *, idle: bool) -> EngineStatus | None:
        """What to send now, if anything."""
        silence = now - self._sent_at
        if silence < HEARTBEAT_S and not (self._stale and (idle or silence >= STATUS_INTERVAL_S)):
            return None
        self._sent_at = now
        self._stale = False
        return self._status()

    def _status(self) -> EngineStatus:
        counters, decode, prefill = self._scheduler.counters, self._decode, self._prefill
        gated = self._grammars.waiting if self._grammars is not None else []
        step_seconds, self._step_seconds = self._step_seconds, []
        gap_seconds, self._gap_seconds = self._gap_seconds, []
        handoffs: dict[str, int] = {}
        moved_bytes: dict[str, int] = {}
        moved_pages: dict[str, int] = {}
        if decode is not None:
            handoffs |= decode.outcomes
            moved_bytes["received"], moved_pages["received"] = decode.bytes, decode.pages
        if prefill is not None:
            handoffs |= prefill.outcomes
            moved_bytes["sent"], moved_pages["sent"] = prefill.bytes, prefill.pages
        return EngineStatus(
            running=counters.running,
            waiting=counters.waiting + len(gated) + len(self._followers),
            waiting_tokens=counters.waiting_tokens + sum(len(request.known_token_ids) for request in gated),
            kv_pages_total=counters.pages_total,
            kv_pages_used=counters.pages_used,
            kv_pages_quarantined=counters.pages_quarantined,
            prefix_query_tokens=counters.prefix_query_tokens,
            prefix_hit_tokens=counters.prefix_hit_tokens,
            preemptions=counters.preemptions,
            drafts=counters.drafts,
            draft_tokens=counters.draft_tokens,
            accepted_tokens=counters.accepted_tokens,
            step_seconds=step_seconds,
            gap_seconds=gap_seconds,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            steps=self._steps,
            handoffs_open=sum(side.open_jobs for side in (decode, prefill) if side is not None),
            leases_expired=prefill.expired if prefill is not None else 0,
            handoff_fallbacks=dict(decode.fallbacks) if decode is not None else {},
            handoffs=handoffs,
            handoff_bytes=moved_bytes,
            handoff_pages=moved_pages,
        )
