"""Plans between `schedule` and `commit`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Tokens
from typing import NamedTuple

from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan
from tandem_runtime.scheduling.pages import PagePool
from tandem_runtime.scheduling.sequence import Sequence


class Row(NamedTuple):
    seq: Sequence
    chunk: Chunk
    tenure: int
    """The sequence's when the row was planned."""


class Step:
    """One plan in the making, then in flight."""

    def __init__(self, number: int, budget: int) -> None:
        self.number = number
        self.budget = budget
        """Tokens that still fit."""
        self.starts: list[SlotStart] = []
        self.rows: list[Row] = []
        self.releases: list[list[int]] = []
        """Page tables given up while the step may still touch them."""

    def start(self, seq: Sequence) -> None:
        self.starts.append(
            SlotStart(
                slot=seq.slot,
                prompt_token_ids=seq.prompt_token_ids,
                output_token_ids=list(seq.output_token_ids),
                page_ids=list(seq.pages),
                sampling=seq.sampling,
            )
        )
        self.advance(seq, [])

    def advance(self, seq: Sequence, append_page_ids: list[int], drafts: Tokens[int] = ()) -> None:
        """A row with as many of the sequence's next tokens as fit, and `drafts`, which must fit, after the newest."""
        missing = seq.tokens_to_compute
        start = seq.scheduled_tokens
        stop = start + min(missing, self.budget)
        chunk = Chunk(
            slot=seq.slot,
            start=start,
            num_tokens=stop - start + len(drafts),
            token_ids=None if stop > seq.num_tokens else [*seq.token_range(start, stop), *drafts],
            append_page_ids=append_page_ids,
            sample=seq.mode != "prefill_only" and stop - start == missing,
            num_drafts=len(drafts),
        )
        seq.scheduled_tokens = stop + len(drafts)
        seq.in_flight_drafts = len(drafts)
        seq.in_flight_samples += chunk.sample
        seq.last_step = self.number
        self.budget -= chunk.num_tokens
        self.rows.append(Row(seq, chunk, seq.tenure))

    def plan(self) -> StepPlan:
        # The executor wants single-token rows first, whichever way they came about.
        self.rows.sort(key=lambda row: row.chunk.num_tokens > 1)
        return StepPlan(self.number, self.starts, [row.chunk for row in self.rows])


class StepsInFlight:
    """Uncommitted steps, oldest first. Pages that one of them touches are free only after its commit."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._steps: deque[Step] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Step) -> None:
        self._steps.append(step)

    def pop(self, number: int) -> Step:
        """Takes out the oldest step; the caller calls `finish` once it has read the results."""
        step = self._steps.popleft()
        assert step.number == number, f"result of step {number}, expected {step.number}"
        return step

    def finish(self, step: Step) -> None:
        for pages in step.releases:
            self._pool.release(pages)

    def release(self, seq: Sequence) -> None:
        """Takes the page table from `seq`; its tokens count as not computed."""
        touching = next((step for step in self._steps if step.number == seq.last_step), None)
        if touching is None:
            self._pool.release(seq.pages)
        elif seq.pages:
            touching.releases.append(seq.pages)
        seq.drop_pages()

    @property
    def releases(self) -> list[list[int]]:
        return [pages for step in self._steps for pages in step.releases]
