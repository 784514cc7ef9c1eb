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

import msgspec
from tandem_tracing.spans import Error

from tandem_runtime.core.errors import GrammarError, OverloadedError, PromptTooLongError, RequestError
from tandem_runtime.core.plan import StepPlan, StepResult
from tandem_runtime.engine.control import ControlPlane
from tandem_runtime.engine.grammar_gate import GrammarGate
from tandem_runtime.engine.handoff_decode import DecodeHandoffs, HandoffRecord
from tandem_runtime.engine.handoff_prefill import PrefillHandoffs
from tandem_runtime.engine.live import Live
from tandem_runtime.engine.messages import (
    Abort,
    ControlCall,
    ControlReply,
    EngineOutput,
    EngineRequest,
    EngineStatus,
    Outputs,
    Shutdown,
    Spans,
)
from tandem_runtime.engine.reporting import STATUS_INTERVAL_S, StatusReporter
from tandem_runtime.engine.transfers import TransferGroup
from tandem_runtime.scheduling import Scheduler, Sequence, SequenceUpdate
from tandem_runtime.transfer.protocol import ReceiveReport, SendReport

logger = logging.getLogger(__name__)

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
Publish = Callable[[Outputs | EngineStatus | Spans | ControlCall | ControlReply], None]


class Engine:
    def __init__(
        self,
        *,
        name: str,
        scheduler: Scheduler,
        submit: Callable[[StepPlan], None],
        inbox: queue.SimpleQueue[Event],
        publish: Publish,
        grammars: GrammarGate | None = None,
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
        self._grammars = grammars
        self._transfers = transfers
        self._control = control
        self._decode = decode_handoffs
        self._prefill = prefill_handoffs
        self._local_prefill_max_tokens = local_prefill_max_tokens
        self._clock = clock
        self._routes: dict[str, Callable[[ControlCall], None]] = {}
        for side in (decode_handoffs, prefill_handoffs):
            self._routes |= side.routes if side is not None else {}
        self._live: dict[str, Live] = {}
        self._leaders: dict[str, Live] = {}
        """The leader of every follower that still waits for it. Not in the scheduler's queue, whose own waiting for a
        shared prefix knows only what is computed here, and lets only so many be passed over."""
        self._in_flight = 0
        self._step_waited = False
        """Whether the oldest step in flight was planned before the one before it ended; else it waited for work."""
        self._running = True
        self._outputs: list[EngineOutput] = []
        self._reporter = StatusReporter(scheduler, grammars, self._leaders, decode_handoffs, prefill_handoffs)

    def run(self) -> None:
        """Returns after `Shutdown`; raises what ended the executor."""
        while self._running:
            # Whatever could be planned has been: only an event, or a deadline, changes that.
            self.turn(self._next_event(block=True))

    def report(self) -> None:
        """Publishes a status, if one is due: the first always is."""
        if status := self._reporter.due(self._clock(), idle=self._in_flight == 0):
            self._publish(status)

    def turn(self, event: Event | None) -> None:
        """Takes `event` and whatever else has happened, then does all that can be done now."""
        while event is not None and self._running:
            self._take(event)
            event = self._next_event(block=False)
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

    def _take(self, event: Event) -> None:
        match event:
            case StepResult():
                self._commit(event)
            case EngineRequest():
                self._receive(event)
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
        self._reporter.changed()

    def _plan(self) -> None:
        while self._in_flight < STEPS_AHEAD:
            plan = self._scheduler.schedule(self._clock())
            for update in self._scheduler.take_updates():
                self._on_prefilled(update)
            if plan is None:
                return
            self._in_flight += 1
            self._submit(plan)

    def _receive(self, request: EngineRequest) -> None:
        now = self._clock()
        if self._grammars is None:
            self._add(request, now)
        else:
            room = self._scheduler.room - len(self._leaders)
            self._grammars.enter(request, now, room=room, admit=self._add, refuse=self._refuse)

    def _add(self, request: EngineRequest, arrival: float) -> None:
        leader = self._live.get(request.after)
        if leader is not None and leader.num_tokens == 0:
            if self._scheduler.room <= self._waiting_outside:
                self._refuse(request, OverloadedError("too many requests are waiting already; try again later"))
                return
            leader.followers[request.request_id] = (request, arrival)
            self._leaders[request.request_id] = leader
        else:
            self._admit(request, arrival)

    @property
    def _waiting_outside(self) -> int:
        """Requests that wait, though not in the scheduler's queue."""
        return len(self._leaders) + (len(self._grammars.waiting) if self._grammars is not None else 0)

    def _admit(self, request: EngineRequest, arrival: float) -> None:
        remote = self._goes_remote(request)
        sequence = Sequence(
            request.request_id,
            request.prompt_token_ids,
            request.sampling,
            arrival=arrival,
            deadline=None if request.deadline_s is None else arrival + request.deadline_s,
            output_token_ids=request.output_token_ids,
            priority=request.priority,
            cache_salt=request.cache_salt,
            mode="remote" if remote else "local",
        )
        try:
            self._scheduler.add(sequence, outside=self._waiting_outside)
        except RequestError as error:
            self._refuse(request, error)
            return
        live = self._live[request.request_id] = Live(request, arrival, sequence)
        if remote:
            assert self._decode is not None
            live.handoff = HandoffRecord()
            self._decode.start(request, live.handoff)

    def _refuse(self, request: EngineRequest, error: RequestError) -> None:
        self._leave_gate(request.request_id)
        param, message = error.param, str(error)
        if isinstance(error, GrammarError):
            param = request.sampling.grammar_param
            message = f"'{param}': {message}"
        elif isinstance(error, PromptTooLongError):
            param = request.prompt_param
        self._outputs.append(
            EngineOutput(
                request_id=request.request_id,
                finish_reason="error",
                error=message,
                error_code=error.code or "",
                error_param=param,
            )
        )

    def _goes_remote(self, request: EngineRequest) -> bool:
        """Whether a prefill pod should compute what is known (all but the last token)."""
        if self._decode is None or not request.tickets or request.sampling.prompt_logprobs is not None:
            return False
        known = request.known_token_ids
        cached = self._scheduler.match_prefix(known, request.cache_salt)
        return len(known) - 1 - cached > self._local_prefill_max_tokens

    def _release_followers(self, leader: Live) -> None:
        followers, leader.followers = leader.followers, {}
        for request_id, (request, arrival) in followers.items():
            del self._leaders[request_id]
            self._admit(request, arrival)

    def _abort(self, request_id: str) -> None:
        self._leave_gate(request_id)
        if leader := self._leaders.pop(request_id, None):
            del leader.followers[request_id]
        if live := self._live.pop(request_id, None):
            self._tell_spans(live)
            self._scheduler.abort(request_id)
            self._drop(live)

    def _drop(self, live: Live) -> None:
        """The scheduler has ended a request early."""
        if self._decode is not None:
            self._decode.drop(live.request.request_id)
        self._release_followers(live)

    def _expire(self) -> None:
        now = self._clock()
        overdue = [Live(*gated) for gated in self._grammars.expire(now)] if self._grammars is not None else []
        for request_id in self._scheduler.expire(now):
            live = self._live.pop(request_id)
            self._leave_gate(request_id)
            self._drop(live)
            overdue.append(live)
        for live in overdue:
            trace = live.trace(self._name, now)
            output = EngineOutput(request_id=live.request.request_id, finish_reason="deadline", trace=trace)
            self._outputs.append(output)
            self._tell_spans(live, ("deadline", "the deadline passed"))

    def _commit(self, result: StepResult) -> None:
        self._in_flight -= 1
        self._reporter.stepped(result, waited=self._step_waited)
        self._step_waited = self._in_flight > 0
        for update in self._scheduler.commit(result, self._clock()):
            if live := self._live.get(update.request_id):
                self._report(live, update)
            else:
                self._on_prefilled(update)

    def _on_prefilled(self, update: SequenceUpdate) -> None:
        if self._prefill is not None:
            self._prefill.on_progress(update.request_id, update.computed_tokens)

    def _report(self, live: Live, update: SequenceUpdate) -> None:
        live.cached_tokens = update.cached_tokens
        if not update.new_token_ids and update.finish_reason is None and update.prompt_logprobs is None:
            return
        first = live.num_tokens == 0
        if first:
            live.first_token_at = self._clock()
            live.queue_seconds = update.queue_seconds
            self._release_followers(live)
        if update.error is not None:
            del self._live[update.request_id]
            self._refuse(live.request, GrammarError(update.error))
            self._tell_spans(live, ("invalid_grammar", update.error))
            return
        live.num_tokens += len(update.new_token_ids)
        live.draft_tokens += update.draft_tokens
        live.accepted_tokens += update.accepted_tokens
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
                trace=live.trace(self._name, self._clock()) if first or finished or update.draft_tokens else None,
            )
        )
        if finished:
            del self._live[update.request_id]
            self._leave_gate(update.request_id)
            self._tell_spans(live)

    def _leave_gate(self, request_id: str) -> None:
        """Of a request that has ended."""
        if self._grammars is not None:
            self._grammars.leave(request_id)

    def _tell_spans(self, live: Live, error: Error | None = None) -> None:
        """Of a request that has ended."""
        if live.request.trace is not None:
            self._publish(Spans(live.spans(self._clock(), error)))

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
        self.report()
