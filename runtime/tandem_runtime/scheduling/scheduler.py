"""Continuous batching with chunked prefill, one step ahead of the device."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from itertools import count
from typing import NamedTuple

import msgspec

from tandem_runtime.core.errors import OverloadedError, PromptTooLongError
from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan, StepResult
from tandem_runtime.scheduling.gates import near_head
from tandem_runtime.scheduling.memory import KVMemory
from tandem_runtime.scheduling.queues import RankedQueue
from tandem_runtime.scheduling.reservations import Reservations
from tandem_runtime.scheduling.sequence import Sequence, SequenceUpdate, State


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    page_size: int
    num_pages: int
    max_num_seqs: int
    """Slots: most sequences in one step."""
    max_num_batched_tokens: int
    max_model_len: int
    max_waiting: int
    enable_prefix_caching: bool
    cache_root: bytes
    """Digest of everything besides the tokens that shapes KV."""


class SchedulerCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges, and counters since start."""

    running: int
    waiting: int
    """Every added sequence that neither runs nor only keeps its pages for sending."""
    waiting_tokens: int
    """Prompt tokens that this pod has yet to compute."""
    pages_total: int
    pages_used: int
    pages_quarantined: int
    prompt_tokens: int
    """Of admitted sequences."""
    generation_tokens: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    preemptions: int


class _Row(NamedTuple):
    seq: Sequence
    chunk: Chunk
    tenure: int


class _Step:
    """A plan from `schedule` to `commit`."""

    def __init__(self, step: int, budget: int) -> None:
        self.step = step
        self.budget = budget
        self.starts: list[SlotStart] = []
        self.rows: list[_Row] = []
        self.releases: list[list[int]] = []
        """Page tables given up while this step may still touch them; released when it is committed."""

    def plan(self) -> StepPlan:
        # The executor wants single-token rows first, whichever way they came about.
        self.rows.sort(key=lambda row: row.chunk.num_tokens > 1)
        return StepPlan(self.step, self.starts, [row.chunk for row in self.rows])


class Scheduler:
    """Single-threaded. Alternate `schedule` and `commit`; at most two plans may be uncommitted.

    Every queue is in order of `Sequence.rank`, only the head of the waiting queue may take pages, and a sequence is
    preempted for none but more urgent ones: so the most urgent always advances and nobody starves.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        if config.max_num_batched_tokens < config.max_num_seqs:
            # Else decodes alone could fill every step and a prefill would wait for ever.
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        self.config = config
        self._memory = KVMemory(
            num_pages=config.num_pages,
            page_size=config.page_size,
            cache_root=config.cache_root,
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self._pool = self._memory.pool
        self._reservations = Reservations(self._memory)
        self._sequences: dict[str, Sequence] = {}
        self._waiting = RankedQueue()
        self._gated = RankedQueue()
        self._filled = RankedQueue()
        self._running = RankedQueue()
        self._num_remote = 0
        self._announced: set[str] = set()
        self._deadlines: list[tuple[float, str]] = []
        self._free_slots = list(range(config.max_num_seqs))
        self._arrivals = count()
        self._steps = count(1)
        self._uncommitted: deque[_Step] = deque()
        self._admission_updates: list[SequenceUpdate] = []
        self._now = 0.0
        self._prompt_tokens = self._generation_tokens = self._preemptions = 0
        self._prefix_query_tokens = self._prefix_hit_tokens = 0

    # -- arrival ----------------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Raises `PromptTooLongError` when it could never run, `OverloadedError` when the queue is full."""
        assert seq.request_id not in self._sequences, f"request {seq.request_id} was added twice"
        num_prompt = len(seq.prompt_token_ids)
        assert num_prompt > 0
        context = min(self.config.max_model_len, self.config.num_pages * self.config.page_size)
        if num_prompt >= context:
            raise PromptTooLongError(
                f"the prompt has {num_prompt} tokens, but prompt and answer together can have at most {context}",
                param="prompt",
            )
        if self._num_waiting >= self.config.max_waiting:
            raise OverloadedError(f"{self._num_waiting} requests are waiting already; try again later")
        seq.max_outputs = min(seq.sampling.max_tokens, context - num_prompt)
        seq.rank = (seq.rank[0], next(self._arrivals))
        seq.chain = self._memory.cache.chain(seq.cache_salt, self.config.page_size)
        self._sequences[seq.request_id] = seq
        if seq.deadline is not None:
            heapq.heappush(self._deadlines, (seq.deadline, seq.request_id))
        if seq.mode == "prefill_only":
            seq.state = State.GATED
            self._gated.add(seq)
        elif seq.mode == "remote":
            seq.state = State.REMOTE
            self._num_remote += 1
        else:
            self._wait(seq)

    # -- one step ---------------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> StepPlan | None:
        """The next step; None when there is nothing that could run before a commit or an event from outside."""
        assert len(self._uncommitted) < 2, "commit the oldest plan first"
        self._now = now
        step = _Step(next(self._steps), self.config.max_num_batched_tokens)
        preempted_or_stalled = self._plan_decodes(step)
        self._plan_prefills(step)
        if not preempted_or_stalled:
            self._admit(step, now)
        if not step.rows:
            return None
        self._uncommitted.append(step)
        return step.plan()

    def _plan_decodes(self, step: _Step) -> bool:
        """A row for every sequence that lacks one token; returns whether pages were short."""
        short = False
        for seq in list(self._running):
            if seq.state is not State.RUNNING or seq.tokens_to_compute != 1:
                continue
            pages: list[int] = []
            if self._memory.lacks_page(seq):
                if self._pool.available == 0:
                    short = True
                    if not self._make_room(seq):
                        continue
                pages = self._memory.grow(seq)
            self._add_row(step, seq, 1, pages)
        return short

    def _plan_prefills(self, step: _Step) -> None:
        for seq in self._running:
            if step.budget == 0:
                return
            if seq.tokens_to_compute > 1:
                self._add_row(step, seq, min(seq.tokens_to_compute, step.budget), [])

    def _add_row(self, step: _Step, seq: Sequence, num_tokens: int, append_page_ids: list[int]) -> None:
        start = seq.scheduled_tokens
        stop = start + num_tokens
        chunk = Chunk(
            slot=seq.slot,
            start=start,
            num_tokens=num_tokens,
            token_ids=None if stop > seq.num_tokens else seq.token_range(start, stop),
            append_page_ids=append_page_ids,
            sample=seq.mode != "prefill_only" and num_tokens == seq.tokens_to_compute,
        )
        seq.scheduled_tokens = stop
        seq.in_flight_samples += chunk.sample
        seq.last_step = step.step
        step.budget -= num_tokens
        step.rows.append(_Row(seq, chunk, seq.tenure))

    # -- admission --------------------------------------------------------------------------------------------------

    def _admit(self, step: _Step, now: float) -> None:
        waiting_blocked = filled_blocked = False
        while self._free_slots and step.budget > 0:
            filled = None if filled_blocked else self._filled.head
            waiting = None if waiting_blocked else self._waiting.head
            if filled is not None and (waiting is None or filled.rank < waiting.rank):
                filled_blocked = not self._admit_filled(step, filled, now)
            elif waiting is not None:
                waiting_blocked = not self._admit_waiting(step, waiting, now)
            else:
                return

    def _admit_filled(self, step: _Step, seq: Sequence, now: float) -> bool:
        if self._memory.lacks_page(seq):
            if self._pool.available == 0:
                # While others run, or a step is in flight, pages will come free by themselves.
                if not self._running and not self._uncommitted:
                    self._preempt(next(reversed(self._filled)))
                return False
            self._memory.grow(seq)
        self._filled.remove(seq)
        self._start(step, seq, now)
        return True

    def _admit_waiting(self, step: _Step, seq: Sequence, now: float) -> bool:
        # A page for each running sequence to grow into, lest the newcomer is preempted at once.
        room = self._pool.available - len(self._running) - self._reservations.set_aside(seq, now)
        if seq.pages_wanted > room:
            return False  # spares matching a long prompt again in each step
        prefix = self._memory.find_prefix(seq)
        cost = self._memory.cost(prefix, seq.resident_tokens)
        if cost > room:
            seq.pages_wanted = cost
            return False
        self._waiting.remove(seq)
        self._memory.take(seq, prefix, seq.resident_tokens)
        if self._memory.caching and seq.prompt_logprobs is None:
            self._prefix_query_tokens += seq.num_tokens
            self._prefix_hit_tokens += seq.computed_tokens
        if seq.admitted_at is None:
            seq.cached_tokens = seq.computed_tokens
        self._start(step, seq, now)
        return True

    def _start(self, step: _Step, seq: Sequence, now: float) -> None:
        assert seq.in_flight_samples == 0
        if seq.admitted_at is None:
            seq.admitted_at = now
            self._prompt_tokens += len(seq.prompt_token_ids)
        if seq.mode == "prefill_only":
            self._admission_updates.append(self._update(seq))
            if seq.tokens_to_compute == 0:
                seq.state = State.HELD
                return
        seq.state = State.RUNNING
        seq.slot = heapq.heappop(self._free_slots)
        self._running.add(seq)
        step.starts.append(
            SlotStart(
                slot=seq.slot,
                prompt_token_ids=seq.prompt_token_ids,
                output_token_ids=list(seq.output_token_ids),
                page_ids=list(seq.pages),
                sampling=seq.sampling,
            )
        )
        self._add_row(step, seq, min(seq.tokens_to_compute, step.budget), [])

    def take_updates(self) -> list[SequenceUpdate]:
        """News that needed no step: `prefill_only` sequences admitted since the last call, and what they found cached.

        Call it after every `schedule`, whatever that returned: such a sequence may be complete without any step.
        """
        updates, self._admission_updates = self._admission_updates, []
        return updates

    # -- preemption -------------------------------------------------------------------------------------------------

    def _make_room(self, seq: Sequence) -> bool:
        """Preempts until a page is free; False when `seq` must wait for a step in flight, or was preempted itself."""
        while self._pool.available == 0:
            if any(step.releases for step in self._uncommitted):
                return False
            victim = self._victim()
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _victim(self) -> Sequence:
        """The least urgent sequence whose pages may be taken. Pages of a `prefill_only` one may be on the wire."""
        last_filled = next(reversed(self._filled), None)
        last_running = next(seq for seq in reversed(self._running) if seq.mode != "prefill_only")
        if last_filled is not None and last_filled.rank > last_running.rank:
            return last_filled
        return last_running

    def _preempt(self, seq: Sequence) -> None:
        """Back to the waiting queue; its tokens, outputs included, will be computed again."""
        self._preemptions += 1
        if seq.state is State.RUNNING:
            self._leave_slot(seq)
        else:
            self._filled.remove(seq)
        self._give_up_pages(seq)
        seq.mode = "local"
        seq.tenure += 1
        self._wait(seq)

    def _wait(self, seq: Sequence) -> None:
        seq.state = State.WAITING
        seq.pages_wanted = 0
        self._waiting.add(seq)

    def _leave_slot(self, seq: Sequence) -> None:
        self._running.remove(seq)
        heapq.heappush(self._free_slots, seq.slot)
        seq.slot = -1

    def _give_up_pages(self, seq: Sequence) -> None:
        """Releases the page table, after the last uncommitted step that touches it."""
        touching = next((step for step in self._uncommitted if step.step == seq.last_step), None)
        if touching is None:
            self._pool.release(seq.pages)
        elif seq.pages:
            touching.releases.append(seq.pages)
        seq.pages = []
        seq.pages_registered = seq.scheduled_tokens = seq.computed_tokens = 0

    # -- results ----------------------------------------------------------------------------------------------------

    def commit(self, result: StepResult, now: float) -> list[SequenceUpdate]:
        """Takes the result of the oldest uncommitted plan. Rows of sequences that ended meanwhile are ignored."""
        step = self._uncommitted.popleft()
        assert step.step == result.step, f"result of step {result.step}, expected {step.step}"
        updates = []
        num_sampled = 0
        for index, row in enumerate(step.rows):
            position = num_sampled
            num_sampled += row.chunk.sample
            if row.seq.state is State.ENDED:
                continue
            update = self._commit_row(row, result, index, position)
            if update is not None:
                updates.append(update)
        for pages in step.releases:
            self._pool.release(pages)
        return updates

    def _commit_row(self, row: _Row, result: StepResult, index: int, position: int) -> SequenceUpdate | None:
        seq, chunk, tenure = row
        if tenure == seq.tenure:
            seq.computed_tokens = chunk.start + chunk.num_tokens
            if seq.prompt_logprobs is not None and index in result.prompt_logprobs:
                seq.prompt_logprobs[chunk.start :] = result.prompt_logprobs[index]
        update = None
        if chunk.sample:
            update = self._commit_sample(seq, result, position)
        elif seq.mode == "prefill_only":
            update = self._update(seq)
        if tenure == seq.tenure:
            self._memory.register(seq)
            if seq.mode == "prefill_only" and seq.computed_tokens == len(seq.prompt_token_ids) - 1:
                self._leave_slot(seq)
                seq.state = State.HELD
        if update is not None and update.finish_reason is not None:
            self._end(seq)
        return update

    def _commit_sample(self, seq: Sequence, result: StepResult, position: int) -> SequenceUpdate:
        token_id = result.token_ids[position]
        seq.in_flight_samples -= 1
        self._generation_tokens += 1
        reason = seq.append_output(token_id)
        update = self._update(seq)
        update.new_token_ids = [token_id]
        update.finish_reason = reason
        update.stop_token_id = token_id if reason == "stop" else None
        update.first_token = len(seq.output_token_ids) == 1
        if seq.sampling.logprobs is not None:
            update.logprobs = [result.logprobs[position]]
        update.prompt_logprobs, seq.prompt_logprobs = seq.prompt_logprobs, None
        return update

    def _update(self, seq: Sequence) -> SequenceUpdate:
        assert seq.admitted_at is not None
        return SequenceUpdate(
            request_id=seq.request_id,
            computed_tokens=seq.computed_tokens,
            cached_tokens=seq.cached_tokens,
            queue_seconds=seq.admitted_at - seq.arrival,
        )

    # -- the end ----------------------------------------------------------------------------------------------------

    def abort(self, request_id: str) -> bool:
        """Ends a sequence in any state; False when it is not known (any more).

        Pages reserved for a remote writer are quarantined until `quiesced`. Whoever sends pages of a `prefill_only`
        sequence must not declare that transfer complete afterwards.
        """
        seq = self._sequences.get(request_id)
        if seq is None:
            return False
        self._end(seq)
        return True

    def expire(self, now: float) -> list[str]:
        """Aborts the sequences whose deadline has passed; returns their ids."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, request_id = heapq.heappop(self._deadlines)
            seq = self._sequences.get(request_id)
            if seq is not None and seq.deadline == deadline:
                self._end(seq)
                expired.append(request_id)
        return expired

    def _end(self, seq: Sequence) -> None:
        match seq.state:
            case State.WAITING:
                self._waiting.remove(seq)
            case State.GATED:
                self._gated.remove(seq)
                self._announced.discard(seq.request_id)
            case State.REMOTE:
                self._num_remote -= 1
                self._reservations.dissolve(seq)
            case State.FILLED:
                self._filled.remove(seq)
            case State.RUNNING:
                self._leave_slot(seq)
        self._give_up_pages(seq)
        seq.state = State.ENDED
        del self._sequences[seq.request_id]

    # -- decode side of a handoff -----------------------------------------------------------------------------------

    def match_prefix(self, token_ids: list[int], cache_salt: str) -> int:
        """Tokens of such a prompt that are cached now; takes no reference."""
        return self._memory.match_prefix(token_ids, cache_salt)

    def hold_prefix(self, request_id: str) -> int:
        """Pins what is cached of a remote sequence's prompt; returns the tokens held, a multiple of the page size."""
        seq = self._remote(request_id)
        if self._claimed_by_waiting(seq):
            return 0
        held = self._reservations.hold(seq, self._now)
        self._prefix_query_tokens += len(seq.prompt_token_ids)
        self._prefix_hit_tokens += held
        return held

    def reserve(self, request_id: str) -> list[tuple[int, int]] | None:
        """(page id, generation) for tokens [held, n - 1); None: not now. Asking again gives the same answer."""
        seq = self._remote(request_id)
        keep_free = len(self._running) + self._claimed_by_waiting(seq)
        return self._reservations.reserve(seq, keep_free=keep_free, now=self._now)

    def filled(self, request_id: str) -> None:
        """The reserved pages arrived and were verified; the last prompt token will be the first decode step."""
        seq = self._remote(request_id)
        self._reservations.filled(seq)
        self._num_remote -= 1
        seq.state = State.FILLED
        self._filled.add(seq)

    def make_local(self, request_id: str) -> None:
        """The handoff failed: computed here, queued as of its arrival. Reserved pages stay quarantined."""
        seq = self._remote(request_id)
        self._reservations.dissolve(seq)
        self._num_remote -= 1
        seq.mode = "local"
        self._wait(seq)

    def quiesced(self, request_id: str) -> None:
        """No late write can reach the pages quarantined under this id."""
        self._pool.quiesced(request_id)

    def _remote(self, request_id: str) -> Sequence:
        seq = self._sequences[request_id]
        assert seq.state is State.REMOTE, f"request {request_id} is {seq.state.value}, not remote"
        return seq

    def _claimed_by_waiting(self, seq: Sequence) -> int:
        """Free pages that a remote sequence must leave to a more urgent one that waits for pages."""
        head = self._waiting.head
        if head is None or head.rank > seq.rank or not self._reservations.attainable(head.pages_wanted):
            return 0
        return head.pages_wanted

    # -- prefill side of a handoff ----------------------------------------------------------------------------------

    def near_head(self, token_horizon: int) -> list[str]:
        """Gated sequences with less than `token_horizon` prompt tokens of work before them; each is named once."""
        backlog = sum(seq.tokens_to_compute for seq in self._running if seq.tokens_to_compute > 1)
        near = [
            seq.request_id
            for seq in near_head(self._gated, self._waiting, backlog=backlog, horizon=token_horizon)
            if seq.request_id not in self._announced
        ]
        self._announced.update(near)
        return near

    def open_gate(self, request_id: str) -> None:
        """The decode pod has reserved pages: the sequence may be computed."""
        seq = self._sequences[request_id]
        assert seq.state is State.GATED
        self._announced.discard(request_id)
        self._gated.remove(seq)
        self._wait(seq)

    def page_table(self, request_id: str) -> list[int]:
        return list(self._sequences[request_id].pages)

    def release(self, request_id: str) -> None:
        """The pages of a computed `prefill_only` sequence were sent."""
        seq = self._sequences[request_id]
        assert seq.state is State.HELD
        self._end(seq)

    # -- state ------------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `schedule` may return a plan, now or after a commit or an event from outside."""
        return bool(self._running or self._waiting or self._filled or self._uncommitted)

    @property
    def _num_waiting(self) -> int:
        return len(self._waiting) + len(self._gated) + len(self._filled) + self._num_remote

    @property
    def counters(self) -> SchedulerCounters:
        backlog = sum(seq.tokens_to_compute for queue in (self._waiting, self._gated) for seq in queue)
        backlog += sum(seq.tokens_to_compute for seq in self._running if seq.tokens_to_compute > 1)
        return SchedulerCounters(
            running=len(self._running),
            waiting=self._num_waiting,
            waiting_tokens=backlog,
            pages_total=self._pool.num_pages,
            pages_used=self._pool.used,
            pages_quarantined=self._pool.quarantined,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefix_query_tokens=self._prefix_query_tokens,
            prefix_hit_tokens=self._prefix_hit_tokens,
            preemptions=self._preemptions,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when any two books disagree. O(everything): for tests."""
        queues = {
            State.WAITING: self._waiting,
            State.GATED: self._gated,
            State.FILLED: self._filled,
            State.RUNNING: self._running,
        }
        for state, queue in queues.items():
            queue.check_integrity()
            assert all(seq.state is state for seq in queue)
            assert len(queue) == sum(seq.state is state for seq in self._sequences.values())
        slots = [seq.slot for seq in self._running]
        assert sorted(slots + self._free_slots) == list(range(self.config.max_num_seqs)), "slots leak"
        holders = [seq.pages for seq in self._sequences.values()]
        holders += [pages for step in self._uncommitted for pages in step.releases]
        references = Counter(page for pages in holders for page in pages)
        assert all(references[page] == self._pool.references(page) for page in range(self._pool.num_pages))
        for seq in self._sequences.values():
            assert len(set(seq.pages)) == len(seq.pages)
            assert seq.computed_tokens <= seq.scheduled_tokens <= len(seq.pages) * self.config.page_size
            assert seq.pages or seq.state is not State.RUNNING
            assert not seq.pages or seq.state is not State.WAITING
        self._pool.check_integrity()
        self._memory.cache.check_integrity()
        self._reservations.check_integrity()
