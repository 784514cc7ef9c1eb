"""Which sequences hold pages and a slot: admission and preemption."""

from __future__ import annotations

from typing import Literal

from tandem_runtime.scheduling.config import Tally
from tandem_runtime.scheduling.memory import KVMemory
from tandem_runtime.scheduling.reservations import Reservations
from tandem_runtime.scheduling.roster import Roster
from tandem_runtime.scheduling.sequence import Sequence, State
from tandem_runtime.scheduling.sharing import find_shared_prefill
from tandem_runtime.scheduling.steps import Step, StepsInFlight

MAX_PASSED_OVER = 32
"""Sequences at the head of the queue that may wait for a shared prefill in one step, so that a step stays short."""


class Residency:
    """A sequence is admitted with pages for all its known tokens, so only decodes run out of pages.

    Only the most urgent waiting sequence may take pages, and a sequence is preempted for none but more urgent ones: so
    the most urgent always advances and nobody starves.
    """

    def __init__(
        self, roster: Roster, memory: KVMemory, reservations: Reservations, in_flight: StepsInFlight, tally: Tally
    ) -> None:
        self._roster = roster
        self._memory = memory
        self._pool = memory.pool
        self._reservations = reservations
        self._in_flight = in_flight
        self._tally = tally

    def admit(self, step: Step, now: float) -> list[Sequence]:
        """Starts sequences while slots, tokens and pages last; returns those that start."""
        admitted: list[Sequence] = []
        waiting_blocked = filled_blocked = False
        passed_over = 0
        while self._roster.num_free_slots > 0 and step.budget > 0:
            filled = None if filled_blocked else self._roster.filled.head
            waiting = None if waiting_blocked else self._roster.waiting.at(passed_over)
            if filled is not None and (waiting is None or filled.rank < waiting.rank):
                seq = filled
                filled_blocked = not self._admit_filled(filled)
                if filled_blocked:
                    continue
            elif waiting is not None:
                seq = waiting
                answer = self._admit_waiting(waiting, now)
                if answer == "shares":
                    passed_over += 1
                    waiting_blocked = passed_over == MAX_PASSED_OVER
                    continue
                if answer == "blocked":
                    waiting_blocked = True
                    continue
            else:
                break
            self._start(step, seq, now)
            admitted.append(seq)
        return admitted

    def _admit_filled(self, seq: Sequence) -> bool:
        if self._memory.lacks_page(seq):
            if self._pool.available == 0:
                # While others run, or a step is in flight, pages will come free by themselves.
                if not self._roster.running and not self._in_flight and self._roster.filled.last is not None:
                    self.preempt(self._roster.filled.last)
                return False
            self._memory.grow(seq)
        return True

    def _admit_waiting(self, seq: Sequence, now: float) -> Literal["admitted", "shares", "blocked"]:
        if seq.shared_prefill is not None and seq.shared_prefill.pending:
            return "shares"
        if seq.in_flight_samples > 0:
            return "blocked"  # preempted just now: its newest token is not known before the next commit
        # A page for each running sequence to grow into, lest the newcomer is preempted at once.
        room = self._pool.available - len(self._roster.running) - self._reservations.set_aside(seq, now)
        if seq.pages_wanted > room:
            return "blocked"  # spares matching a long prompt again in each step
        prefix = self._memory.find_prefix(seq)
        seq.shared_prefill = find_shared_prefill(seq, len(prefix), self._roster.running, self._memory)
        if seq.shared_prefill is not None:
            return "shares"
        cost = self._memory.cost(prefix, seq.resident_tokens)
        if cost > room:
            seq.pages_wanted = cost
            return "blocked"
        self._memory.take(seq, prefix, seq.resident_tokens)
        if seq.admitted_at is None:
            seq.cached_tokens = seq.computed_tokens
            if self._memory.uses_cache(seq):
                self._tally.prefix_query_tokens += len(seq.prompt_token_ids)
                self._tally.prefix_hit_tokens += seq.cached_tokens
        return "admitted"

    def _start(self, step: Step, seq: Sequence, now: float) -> None:
        if seq.admitted_at is None:
            seq.admitted_at = now
            self._tally.prompt_tokens += len(seq.prompt_token_ids)
        if seq.tokens_to_compute == 0:
            self._roster.move(seq, State.HELD)  # prefill_only, and all of it was cached
        else:
            self._roster.move(seq, State.RUNNING)
            step.start(seq)

    def make_room(self, seq: Sequence) -> bool:
        """Preempts until a page is free; False when `seq` must wait for a step in flight, or was preempted itself."""
        while self._pool.available == 0:
            if self._in_flight.releases:
                return False
            victim = self._victim()
            self.preempt(victim)
            if victim is seq:
                return False
        return True

    def _victim(self) -> Sequence:
        """The least urgent sequence whose pages may be taken. Pages of a `prefill_only` one may be on the wire."""
        running = next(seq for seq in reversed(self._roster.running) if seq.mode != "prefill_only")
        filled = self._roster.filled.last
        return filled if filled is not None and filled.rank > running.rank else running

    def preempt(self, seq: Sequence) -> None:
        """Back to the waiting queue; its tokens, outputs included, will be computed again."""
        self._tally.preemptions += 1
        self._in_flight.release(seq)
        seq.mode = "local"
        seq.tenure += 1
        seq.pages_wanted = 0
        self._roster.move(seq, State.WAITING)
