"""Continuous batching with chunked prefill, one step ahead of the device."""

from __future__ import annotations

from collections import Counter

from tandem_runtime.core.errors import OverloadedError, PromptTooLongError
from tandem_runtime.core.plan import StepPlan, StepResult
from tandem_runtime.scheduling.config import SchedulerConfig, SchedulerCounters, Tally
from tandem_runtime.scheduling.gates import near_head
from tandem_runtime.scheduling.memory import KVMemory
from tandem_runtime.scheduling.reservations import Reservations
from tandem_runtime.scheduling.residency import Residency
from tandem_runtime.scheduling.roster import Roster
from tandem_runtime.scheduling.sequence import Mode, Sequence, SequenceUpdate, State
from tandem_runtime.scheduling.speculation import NewProposer, Speculation, num_accepted
from tandem_runtime.scheduling.steps import Row, Step, StepsInFlight

_INITIAL_STATE: dict[Mode, State] = {
    "local": State.WAITING,
    "remote": State.REMOTE,
    "prefill_only": State.GATED,
}


class Scheduler:
    """Decides each step. Single-threaded; `commit` follows `schedule`, at most two plans behind."""

    def __init__(self, config: SchedulerConfig, *, new_proposer: NewProposer | None = None) -> None:
        """`new_proposer`: guesses by other means than prompt lookup, where `config` asks for speculation."""
        self._config = config
        self._memory = KVMemory(
            num_pages=config.num_pages,
            page_size=config.page_size,
            cache_root=config.cache_root,
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self._roster = Roster(config.max_num_seqs)
        self._reservations = Reservations(self._memory)
        self._in_flight = StepsInFlight(self._memory.pool)
        self._tally = Tally()
        self._residency = Residency(self._roster, self._memory, self._reservations, self._in_flight, self._tally)
        self._speculation = Speculation(config.speculation, self._roster, self._memory, new_proposer)
        self._last_step = 0
        self._announced: set[str] = set()
        self._admission_updates: list[SequenceUpdate] = []
        self._now = 0.0

    @property
    def room(self) -> int:
        """How many more may wait."""
        return self._config.max_waiting - self._roster.num_waiting

    def add(self, seq: Sequence, *, outside: int = 0) -> None:
        """`outside`: how many wait elsewhere, and count as if they were queued.

        Raises `PromptTooLongError` when it could never run, `OverloadedError` when the queue is full.
        """
        num_prompt = len(seq.prompt_token_ids)
        context = self._config.context
        if seq.num_tokens >= context:
            raise PromptTooLongError(
                f"the prompt has {seq.num_tokens} tokens, but prompt and answer together can have at most {context}"
            )
        if self.room <= outside:
            raise OverloadedError(f"{self._roster.num_waiting + outside} requests are waiting already; try again later")
        seq.max_outputs = min(seq.sampling.max_tokens, context - num_prompt)
        assert len(seq.output_token_ids) < seq.max_outputs, "the sequence has ended before"
        seq.chain = self._memory.chain(seq.cache_salt)
        self._roster.add(seq, _INITIAL_STATE[seq.mode])

    # -- one step ---------------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> StepPlan | None:
        """The next step; None when nothing can run before a commit or an event from outside.

        May be called with one plan uncommitted. Plans are numbered without gaps.
        `now` is in seconds, on the clock of `Sequence.arrival`.
        """
        assert len(self._in_flight) < 2, "commit the oldest plan first"
        self._now = now
        if self._speculation.awaits_commit:
            return None
        step = Step(self._last_step + 1, self._config.max_num_batched_tokens)
        pages_were_short = self._plan_decodes(step)
        if step.rows:
            step.budget = min(step.budget, self._config.max_prefill_tokens_with_decodes)
        self._plan_prefills(step)
        if not pages_were_short:
            admitted = self._residency.admit(step, now)
            self._admission_updates += [_update(seq) for seq in admitted if seq.mode == "prefill_only"]
        if not step.rows:
            return None
        self._last_step = step.number
        self._in_flight.add(step)
        return step.plan()

    def _plan_decodes(self, step: Step) -> bool:
        """A row for every sequence that lacks one token; returns whether pages were short."""
        short = False
        decodes = [seq for seq in self._roster.running if seq.tokens_to_compute == 1]
        # Each decode has its token, and at least half of what is left is for prompts.
        room_for_drafts = (step.budget - len(decodes)) // 2
        for seq in decodes:
            # More urgent ones come first, so that a sequence preempted on the way has no row yet.
            if seq.state is not State.RUNNING:
                continue
            pages: list[int] = []
            if self._memory.lacks_page(seq):
                if self._memory.pool.available == 0:
                    short = True
                    if not self._residency.make_room(seq):
                        continue
                pages = self._memory.grow(seq)
            drafts = self._speculation.draft(seq, room_for_drafts)
            room_for_drafts -= len(drafts.token_ids)
            step.advance(seq, pages + drafts.page_ids, drafts.token_ids)
        return short

    def _plan_prefills(self, step: Step) -> None:
        # Filled sequences are admitted after this and need one token each; a long prompt must not keep them waiting.
        room = max(0, min(len(self._roster.filled), self._roster.num_free_slots, step.budget - 1))
        step.budget -= room
        for seq in self._roster.running:
            if step.budget == 0:
                break
            if seq.tokens_to_compute > 1:
                step.advance(seq, [])
        step.budget += room

    def take_updates(self) -> list[SequenceUpdate]:
        """News that needed no step: `prefill_only` sequences admitted since the last call, and what they found cached.

        Call it after every `schedule`, whatever that returned: such a sequence may be complete without any step.
        """
        updates, self._admission_updates = self._admission_updates, []
        return updates

    def commit(self, result: StepResult, now: float) -> list[SequenceUpdate]:
        """Takes the result of the oldest uncommitted plan. Rows of sequences that ended meanwhile are ignored."""
        self._now = now
        step = self._in_flight.pop(result.step)
        updates: list[SequenceUpdate] = []
        num_sampled = 0
        for index, row in enumerate(step.rows):
            if row.seq.state is not State.ENDED:
                updates += self._commit_row(row, result, index, num_sampled)
            num_sampled += row.chunk.num_samples
        self._in_flight.finish(step)
        return updates

    def _commit_row(self, row: Row, result: StepResult, index: int, position: int) -> list[SequenceUpdate]:
        """`index` is the row's in the plan, `position` that of its first sample in the result."""
        seq, chunk, tenure = row
        sampled = result.token_ids[position : position + chunk.num_samples]
        accepted = num_accepted(chunk.drafts, sampled)
        update = _update(seq)
        if tenure == seq.tenure and seq.prompt_logprobs is not None and index in result.prompt_logprobs:
            seq.prompt_logprobs[chunk.start :] = result.prompt_logprobs[index]
        if chunk.sample:
            # Even if it was preempted meanwhile: the tokens were sampled from the right KV.
            seq.in_flight_samples -= 1
            seq.in_flight_drafts = 0
            _take_samples(update, seq, result, position, sampled[: accepted + 1])
            update.draft_tokens = chunk.num_drafts
            update.accepted_tokens = min(accepted, len(update.new_token_ids))
            self._tally.generation_tokens += len(update.new_token_ids)
            self._tally.drafts += chunk.num_drafts > 0
            self._tally.draft_tokens += update.draft_tokens
            self._tally.accepted_tokens += update.accepted_tokens
        if tenure == seq.tenure:
            rejected = chunk.num_drafts - accepted
            seq.scheduled_tokens -= rejected
            # A stop token may come before the last accepted one.
            seq.computed_tokens = min(chunk.start + chunk.num_tokens - rejected, seq.num_tokens)
            self._memory.register(seq)
            update.computed_tokens = seq.computed_tokens
        if update.finish_reason is not None:
            self._end(seq)
        elif seq.mode == "prefill_only" and seq.computed_tokens == seq.resident_tokens:
            self._roster.move(seq, State.HELD)
        return [update] if chunk.sample or seq.mode == "prefill_only" else []

    # -- the end ----------------------------------------------------------------------------------------------------

    def abort(self, request_id: str) -> bool:
        """Ends a sequence in any state; False when it is not known (any more).

        Pages reserved for a remote writer are quarantined until `quiesced`. Whoever sends pages of a `prefill_only`
        sequence must not declare that transfer complete afterwards.
        """
        seq = self._roster.get(request_id)
        if seq is not None:
            self._end(seq)
        return seq is not None

    def expire(self, now: float) -> list[str]:
        """Aborts the sequences whose deadline has passed; returns their ids."""
        overdue = list(self._roster.pop_overdue(now))
        for seq in overdue:
            self._end(seq)
        return [seq.request_id for seq in overdue]

    def _end(self, seq: Sequence) -> None:
        self._reservations.dissolve(seq)
        self._in_flight.release(seq)
        self._announced.discard(seq.request_id)
        self._speculation.forget(seq)
        self._roster.move(seq, State.ENDED)

    # -- decode side of a handoff -----------------------------------------------------------------------------------

    def match_prefix(self, token_ids: list[int], cache_salt: str) -> int:
        """Tokens of such a prompt that are cached now; takes no reference."""
        return self._memory.match_prefix(token_ids, cache_salt)

    def hold_prefix(self, request_id: str) -> int:
        """Pins what is cached of a remote sequence's prompt; returns the tokens held, a multiple of the page size."""
        seq = self._roster.expect(request_id, State.REMOTE)
        if self._wanted_by_waiting(seq) > 0:
            return 0
        return self._reservations.hold(seq, self._now)

    def reserve(self, request_id: str) -> list[tuple[int, int]] | None:
        """(page id, generation) for tokens [held, n - 1) of the n that are known; None: not now.

        Asking again gives the same answer.
        """
        seq = self._roster.expect(request_id, State.REMOTE)
        keep_free = len(self._roster.running) + self._wanted_by_waiting(seq)
        return self._reservations.reserve(seq, keep_free=keep_free, now=self._now)

    def filled(self, request_id: str) -> None:
        """The reserved pages arrived and were verified; the last prompt token will be the first decode step."""
        seq = self._roster.expect(request_id, State.REMOTE)
        self._reservations.filled(seq)
        # Here, not when they were held: a sequence that falls back to local prefill is counted when admitted.
        self._tally.prefix_query_tokens += len(seq.prompt_token_ids)
        self._tally.prefix_hit_tokens += seq.cached_tokens
        self._roster.move(seq, State.FILLED)

    def make_local(self, request_id: str) -> None:
        """The handoff failed: computed here, queued as of its arrival. Reserved pages stay quarantined."""
        seq = self._roster.expect(request_id, State.REMOTE)
        self._reservations.dissolve(seq)
        seq.mode = "local"
        self._roster.move(seq, State.WAITING)

    def quiesced(self, request_id: str) -> None:
        """No late write can reach the pages quarantined under this id."""
        self._memory.pool.quiesced(request_id)

    def _wanted_by_waiting(self, seq: Sequence) -> int:
        """Free pages that a remote sequence must leave to a more urgent one that waits for pages."""
        head = self._roster.waiting.head
        if head is None or head.rank > seq.rank or not self._reservations.attainable(head.pages_wanted):
            return 0
        return head.pages_wanted

    # -- prefill side of a handoff ----------------------------------------------------------------------------------

    def near_head(self, token_horizon: int) -> list[str]:
        """Gated sequences with less than `token_horizon` tokens of prefill before them; each is named once."""
        ahead = near_head(
            self._roster.gated, self._roster.waiting, backlog=self._running_prefill, horizon=token_horizon
        )
        near = [seq.request_id for seq in ahead if seq.request_id not in self._announced]
        self._announced.update(near)
        return near

    def open_gate(self, request_id: str) -> None:
        """The decode pod has reserved pages: the sequence may be computed."""
        seq = self._roster.expect(request_id, State.GATED)
        self._announced.discard(request_id)
        self._roster.move(seq, State.WAITING)

    def page_table(self, request_id: str) -> list[int]:
        seq = self._roster.get(request_id)
        assert seq is not None, f"request {request_id} is not known"
        return list(seq.pages)

    def release(self, request_id: str) -> None:
        """The pages of a computed `prefill_only` sequence were sent."""
        self._end(self._roster.expect(request_id, State.HELD))

    # -- state ------------------------------------------------------------------------------------------------------

    @property
    def counters(self) -> SchedulerCounters:
        """O(queued sequences): for reports, not for every step."""
        roster, pool, tally = self._roster, self._memory.pool, self._tally
        queued = sum(seq.tokens_to_compute for queue in (roster.waiting, roster.gated) for seq in queue)
        return SchedulerCounters(
            running=len(roster.running),
            waiting=roster.num_waiting,
            waiting_tokens=queued + self._running_prefill,
            pages_total=pool.num_pages,
            pages_used=pool.used,
            pages_quarantined=pool.quarantined,
            prompt_tokens=tally.prompt_tokens,
            generation_tokens=tally.generation_tokens,
            prefix_query_tokens=tally.prefix_query_tokens,
            prefix_hit_tokens=tally.prefix_hit_tokens,
            preemptions=tally.preemptions,
            drafts=tally.drafts,
            draft_tokens=tally.draft_tokens,
            accepted_tokens=tally.accepted_tokens,
        )

    @property
    def _running_prefill(self) -> int:
        """Tokens; decodes do not count."""
        return sum(seq.tokens_to_compute for seq in self._roster.running if seq.tokens_to_compute > 1)

    def check_integrity(self) -> None:
        """Raises AssertionError when any two books disagree. O(everything): for tests."""
        tables = [seq.pages for seq in self._roster] + self._in_flight.releases
        references = Counter(page for table in tables for page in table)
        assert all(references[page] == self._memory.pool.references(page) for page in range(self._config.num_pages))
        for seq in self._roster:
            assert seq.computed_tokens <= seq.scheduled_tokens <= len(seq.pages) * self._config.page_size
            assert seq.pages or seq.state is not State.RUNNING
            assert not seq.pages or seq.state not in (State.WAITING, State.GATED)
        self._roster.check_integrity()
        self._memory.check_integrity()
        self._reservations.check_integrity()
        self._speculation.check_integrity()


def _update(seq: Sequence) -> SequenceUpdate:
    assert seq.admitted_at is not None
    return SequenceUpdate(
        request_id=seq.request_id,
        computed_tokens=seq.computed_tokens,
        cached_tokens=seq.cached_tokens,
        queue_seconds=seq.admitted_at - seq.arrival,
    )


def _take_samples(
    update: SequenceUpdate, seq: Sequence, result: StepResult, position: int, token_ids: list[int]
) -> None:
    """`token_ids`: those at `position` of the result and after it that follow right guesses."""
    if (failure := result.failures.get(position)) is not None:
        update.finish_reason, update.error = "error", failure
        return
    for token_id in token_ids:
        update.finish_reason = seq.append_output(token_id)
        update.new_token_ids.append(token_id)
        if update.finish_reason is not None:
            break
    update.stop_token_id = update.new_token_ids[-1] if update.finish_reason == "stop" else None
    if seq.sampling.logprobs is not None:
        update.logprobs = [result.logprobs[position + i] for i in range(len(update.new_token_ids))]
    update.prompt_logprobs, seq.prompt_logprobs = seq.prompt_logprobs, None
