"""The engine: an actor that owns the scheduler and turns messages and step results into outputs.

Everything that happens reaches it through one inbox: requests and control messages (from the API process), step
results (executor thread), transfer reports (transport threads), due events (timer thread). So nothing here locks.
It plans one step ahead: while a step runs, the next plan already waits in the executor.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from tandem_contract.handoff import RequestTrace

from tandem_runtime.core.errors import RequestError
from tandem_runtime.core.plan import StepPlan, StepResult
from tandem_runtime.engine.control import ControlPlane
from tandem_runtime.engine.handoff_decode import DecodeHandoffs, HandoffRecord
from tandem_runtime.engine.handoff_prefill import PrefillHandoffs
from tandem_runtime.engine.messages import (
    Abort,
    ControlCall,
    ControlReply,
    EngineOutput,
    EngineRequest,
    EngineStatus,
    Outputs,
    Shutdown,
)
from tandem_runtime.engine.transfers import TransferGroup
from tandem_runtime.scheduling import Scheduler, Sequence, SequenceUpdate
from tandem_runtime.transfer.protocol import ReceiveReport, SendReport

logger = logging.getLogger(__name__)

STATUS_INTERVAL_S = 0.1
HEARTBEAT_S = 1.0
"""A status is sent at least this often: an engine that is silent for longer hangs, or is frozen."""
STEPS_AHEAD = 2
"""The step that runs and the one planned behind it."""

RankReport = ReceiveReport | SendReport
Event = (
    EngineRequest
    | Abort
    | ControlCall
    | ControlReply
    | Shutdown
    | StepResult
    | BaseException
    | RankReport
    | Callable[[], None]
)
Publish = Callable[[Outputs | EngineStatus | ControlCall | ControlReply], None]


@dataclass(slots=True)
class _Live:
    request: EngineRequest
    arrival: float
    handoff: HandoffRecord = field(default_factory=HandoffRecord)
    followers: dict[str, tuple[EngineRequest, float]] = field(default_factory=dict)
    """Requests that wait for this one's first token, with their arrival."""
    first_token_at: float = 0.0
    queue_seconds: float = 0.0
    cached_tokens: int = 0
    num_tokens: int = 0


class Engine:
    def __init__(
        self,
        *,
        name: str,
        scheduler: Scheduler,
        submit: Callable[[StepPlan], None],
        inbox: queue.SimpleQueue[Event],
        publish: Publish,
        transfers: TransferGroup | None = None,
        control: ControlPlane | None = None,
        decode_handoffs: DecodeHandoffs | None = None,
        prefill_handoffs: PrefillHandoffs | None = None,
        local_prefill_max_tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._scheduler = scheduler
        self._submit = submit
        self._inbox = inbox
        self._publish = publish
        self._transfers = transfers
        self._control = control
        self._decode = decode_handoffs
        self._prefill = prefill_handoffs
        self._local_prefill_max_tokens = local_prefill_max_tokens
        self._clock = clock
        self._routes: dict[str, Callable[[ControlCall], None]] = {}
        for side in (decode_handoffs, prefill_handoffs):
            self._routes |= side.routes if side is not None else {}
        self._live: dict[str, _Live] = {}
        self._leaders: dict[str, _Live] = {}
        """The leader of every follower that still waits for it."""
        self._in_flight = 0
        self._step_waited = False
        """Whether the oldest step in flight was planned before the one before it ended; else it waited for work."""
        self._running = True
        self._outputs: list[EngineOutput] = []
        self._steps = 0
        self._step_seconds: list[float] = []
        self._gap_seconds: list[float] = []
        self._status_at = 0.0
        self._status_stale = True

    def run(self) -> None:
        """Returns after `Shutdown`; raises what ended the executor."""
        while self._running:
            # Whatever could be planned has been: only an event, or a deadline, changes that.
            self._take(self._next_event(block=True))
            while self._running and (event := self._next_event(block=False)) is not None:
                self._take(event)
            self._expire()
            if self._prefill is not None:
                self._prefill.announce()
            self._plan()
            self._flush()

    def _next_event(self, *, block: bool) -> Event | None:
        try:
            return self._inbox.get(block, STATUS_INTERVAL_S if block else None)
        except queue.Empty:
            return None

    def _take(self, event: Event | None) -> None:
        match event:
            case None:
                return
            case StepResult():
                self._commit(event)
            case EngineRequest():
                self._add(event)
            case Abort():
                self._abort(event.request_id)
            case ControlCall():
                self._on_control(event)
            case ControlReply():
                assert self._control is not None
                self._control.on_reply(event)
            case ReceiveReport() | SendReport():
                assert self._transfers is not None
                self._transfers.on_rank_report(event)
            case Shutdown():
                self._running = False
            case BaseException():
                raise event
            case _:
                event()
        self._status_stale = True

    def _plan(self) -> None:
        while self._in_flight < STEPS_AHEAD:
            plan = self._scheduler.schedule(self._clock())
            for update in self._scheduler.take_updates():
                self._on_prefilled(update)
            if plan is None:
                return
            self._in_flight += 1
            self._submit(plan)

    def _add(self, request: EngineRequest) -> None:
        leader = self._live.get(request.after)
        if leader is not None and leader.num_tokens == 0:
            leader.followers[request.request_id] = (request, self._clock())
            self._leaders[request.request_id] = leader
        else:
            self._admit(request, self._clock())

    def _admit(self, request: EngineRequest, now: float) -> None:
        remote = self._goes_remote(request)
        sequence = Sequence(
            request.request_id,
            request.prompt_token_ids,
            request.sampling,
            arrival=now,
            deadline=None if request.deadline_s is None else now + request.deadline_s,
            output_token_ids=request.output_token_ids,
            priority=request.priority,
            cache_salt=request.cache_salt,
            mode="remote" if remote else "local",
        )
        try:
            self._scheduler.add(sequence)
        except RequestError as error:
            self._outputs.append(
                EngineOutput(
                    request_id=request.request_id,
                    finish_reason="error",
                    error=str(error),
                    error_code=error.code or "",
                )
            )
            return
        live = self._live[request.request_id] = _Live(request, now)
        if remote:
            assert self._decode is not None
            self._decode.start(request, live.handoff)

    def _goes_remote(self, request: EngineRequest) -> bool:
        """Whether a prefill pod should compute what is known (all but the last token)."""
        if self._decode is None or not request.tickets or request.sampling.prompt_logprobs is not None:
            return False
        known = request.known_token_ids
        cached = self._scheduler.match_prefix(known, request.cache_salt)
        return len(known) - 1 - cached > self._local_prefill_max_tokens

    def _release_followers(self, leader: _Live) -> None:
        followers, leader.followers = leader.followers, {}
        for request_id, (request, arrival) in followers.items():
            del self._leaders[request_id]
            self._admit(request, arrival)

    def _abort(self, request_id: str) -> None:
        if leader := self._leaders.pop(request_id, None):
            del leader.followers[request_id]
        if live := self._live.pop(request_id, None):
            self._scheduler.abort(request_id)
            self._drop(live)

    def _drop(self, live: _Live) -> None:
        """The scheduler has ended a request early."""
        if self._decode is not None:
            self._decode.drop(live.request.request_id)
        self._release_followers(live)

    def _expire(self) -> None:
        for request_id in self._scheduler.expire(self._clock()):
            if live := self._live.pop(request_id, None):
                self._drop(live)
                self._outputs.append(
                    EngineOutput(request_id=request_id, finish_reason="deadline", trace=self._trace(live))
                )
            elif self._prefill is not None:
                self._prefill.drop(request_id)

    def _commit(self, result: StepResult) -> None:
        self._in_flight -= 1
        self._steps += 1
        self._step_seconds.append(result.seconds)
        if self._step_waited:
            self._gap_seconds.append(result.gap_seconds)
        self._step_waited = self._in_flight > 0
        for update in self._scheduler.commit(result, self._clock()):
            if live := self._live.get(update.request_id):
                self._report(live, update)
            else:
                self._on_prefilled(update)

    def _on_prefilled(self, update: SequenceUpdate) -> None:
        if self._prefill is not None:
            self._prefill.on_progress(update.request_id, update.computed_tokens)

    def _report(self, live: _Live, update: SequenceUpdate) -> None:
        live.cached_tokens = update.cached_tokens
        if not update.new_token_ids and update.finish_reason is None and update.prompt_logprobs is None:
            return
        if live.num_tokens == 0:
            live.first_token_at = self._clock()
            live.queue_seconds = update.queue_seconds
            self._release_followers(live)
        live.num_tokens += len(update.new_token_ids)
        finished = update.finish_reason is not None
        self._outputs.append(
            EngineOutput(
                request_id=update.request_id,
                token_ids=update.new_token_ids,
                logprobs=update.logprobs,
                prompt_logprobs=update.prompt_logprobs,
                finish_reason=update.finish_reason,
                stop_token_id=update.stop_token_id,
                cached_tokens=live.cached_tokens,
                trace=self._trace(live) if finished else None,
            )
        )
        if finished:
            del self._live[update.request_id]

    def _trace(self, live: _Live) -> RequestTrace:
        now = self._clock()
        first = live.first_token_at or now
        return RequestTrace(
            decode_pod=self._name,
            prefill_pod=live.handoff.prefill_pod,
            prompt_tokens=len(live.request.prompt_token_ids),
            resumed_tokens=len(live.request.output_token_ids),
            cached_tokens=live.cached_tokens,
            handoff_pages=live.handoff.pages,
            handoff_bytes=live.handoff.bytes,
            handoff_seconds=live.handoff.seconds,
            queue_seconds=live.queue_seconds,
            ttft_seconds=first - live.arrival,
            tpot_seconds=(now - first) / (live.num_tokens - 1) if live.num_tokens > 1 else 0.0,
        )

    def _on_control(self, call: ControlCall) -> None:
        assert self._control is not None
        route = self._routes.get(call.path)
        if route is None:
            self._control.answer(call, 404, {"error": f"this pod does not serve {call.path}"})
            return
        try:
            route(call)
        except msgspec.DecodeError as error:
            self._control.answer(call, 400, {"error": str(error)})

    def _flush(self) -> None:
        if self._outputs:
            self._publish(Outputs(self._outputs))
            self._outputs = []
        now = self._clock()
        idle = self._in_flight == 0
        silence = now - self._status_at
        if silence >= HEARTBEAT_S or (self._status_stale and (idle or silence >= STATUS_INTERVAL_S)):
            self._status_at = now
            self._status_stale = False
            self._publish(self._status())

    def _status(self) -> EngineStatus:
        counters = self._scheduler.counters
        step_seconds, self._step_seconds = self._step_seconds, []
        gap_seconds, self._gap_seconds = self._gap_seconds, []
        status = EngineStatus(
            running=counters.running,
            waiting=counters.waiting,
            waiting_tokens=counters.waiting_tokens,
            kv_pages_total=counters.pages_total,
            kv_pages_used=counters.pages_used,
            kv_pages_quarantined=counters.pages_quarantined,
            prefix_query_tokens=counters.prefix_query_tokens,
            prefix_hit_tokens=counters.prefix_hit_tokens,
            preemptions=counters.preemptions,
            step_seconds=step_seconds,
            gap_seconds=gap_seconds,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            steps=self._steps,
        )
        handoffs: dict[str, int] = {}
        moved_bytes: dict[str, int] = {}
        moved_pages: dict[str, int] = {}
        if self._decode is not None:
            handoffs |= self._decode.outcomes
            moved_bytes["received"], moved_pages["received"] = self._decode.bytes, self._decode.pages
        if self._prefill is not None:
            handoffs |= self._prefill.outcomes
            moved_bytes["sent"], moved_pages["sent"] = self._prefill.bytes, self._prefill.pages
        return msgspec.structs.replace(
            status,
            handoffs_open=sum(side.open_jobs for side in (self._decode, self._prefill) if side is not None),
            leases_expired=self._prefill.expired if self._prefill else 0,
            handoff_fallbacks=dict(self._decode.fallbacks) if self._decode else {},
            handoffs=handoffs,
            handoff_bytes=moved_bytes,
            handoff_pages=moved_pages,
        )
