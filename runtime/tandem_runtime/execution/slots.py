"""The runner's per-sequence tables: pages, last sampled ids, sampling state. Kept from `SlotStart` to the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch

from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.attention.backend import ChunkSpan, PageRun, StepBatch, StepIds
from tandem_runtime.execution.constraints import Constraints, Mask
from tandem_runtime.execution.sampler import Counts, SampleRow, follow_drafts


@dataclass(slots=True)
class _Slot:
    sampling: SamplingParams
    prompt_token_ids: list[int]
    num_pages: int
    history: Counts | None


@dataclass(frozen=True, slots=True)
class StepInput:
    """A plan laid out for the model: one-token chunks first, whatever the plan's order was."""

    batch: StepBatch
    chunks: list[tuple[int, int]]
    """For each chunk of the plan, in the plan's order: [first row, end row) of its tokens."""


class SlotTables:
    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_pages_per_seq: int,
        device: str,
        history: Callable[[SlotStart], Counts],
        constraints: Constraints | None = None,
    ) -> None:
        """`history`: what a sequence that starts has seen so far, for those that need to know it; `constraints`: on
        the rank that samples."""
        self._page_table_SP = torch.zeros(max_num_seqs, max_pages_per_seq, dtype=torch.int32)
        self.last_ids_S = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        """The id each slot sampled last, on the device; read by chunks whose token the host has not seen yet."""
        self._slots: dict[int, _Slot] = {}
        self._new_pages: list[PageRun] = []
        self._history = history
        self._constraints = constraints

    def lay_out(self, plan: StepPlan) -> StepInput:
        """Applies the plan's starts and page growth, and builds the step's input."""
        for start in plan.starts:
            self._start(start)
        order = sorted(range(len(plan.chunks)), key=lambda i: plan.chunks[i].num_tokens > 1)
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        spans: list[ChunkSpan] = []
        rows: list[tuple[int, int]] = [(0, 0)] * len(plan.chunks)
        for i in order:
            chunk = plan.chunks[i]
            self._grow(chunk)
            first = len(ids)
            rows[i] = (first, first + chunk.num_tokens)
            ids += [-1] if chunk.token_ids is None else chunk.token_ids
            positions += range(chunk.start, chunk.start + chunk.num_tokens)
            slots += [chunk.slot] * chunk.num_tokens
            if chunk.num_tokens > 1:
                spans.append(ChunkSpan(chunk.slot, first, chunk.start, chunk.num_tokens))
        batch = StepBatch(
            ids_T=torch.tensor(ids, dtype=torch.int64),
            slots_T=torch.tensor(slots, dtype=torch.int64),
            positions_T=torch.tensor(positions, dtype=torch.int64),
            num_decodes=sum(chunk.num_tokens == 1 for chunk in plan.chunks),
            chunks=tuple(spans),
            page_table_SP=self._page_table_SP,
            new_pages=tuple(self._new_pages),
        )
        if plan.chunks:
            self._new_pages = []
        return StepInput(batch, rows)

    def input_ids(self, step: StepIds) -> torch.Tensor:
        """[T]: the step's ids with those filled in that only the device knows."""
        return torch.where(step.ids_T < 0, self.last_ids_S[step.slots_T], step.ids_T)

    def sample_rows(self, chunk: Chunk) -> list[SampleRow]:
        """One for each of its samples: those after a draft as if the draft were the sequence's."""
        slot = self._slots[chunk.slot]
        first = chunk.start + chunk.num_tokens - chunk.num_drafts - len(slot.prompt_token_ids)
        if chunk.num_drafts == 0:
            return [SampleRow(slot.sampling, first, slot.history, self._allowed(chunk.slot))]
        assert not slot.sampling.constrained, "what may come after a guess is not known"
        if slot.history is None:
            return [SampleRow(slot.sampling, first + i, None) for i in range(chunk.num_samples)]
        return [
            SampleRow(slot.sampling, first + i, seen)
            for i, seen in enumerate(follow_drafts(slot.history, chunk.drafts))
        ]

    def failures(self, chunks: list[Chunk]) -> dict[int, str]:
        """Why no token can be sampled for some of `chunks`, by position of the token in the step's result."""
        constraints = self._constraints
        if constraints is None:
            return {}
        why = {position: constraints.failure(slot) for position, slot in self._constrained_samples(chunks)}
        return {position: failure for position, failure in why.items() if failure is not None}

    def follow(self, chunks: list[Chunk], token_ids: Callable[[], list[int]]) -> None:
        """`token_ids`: those sampled for `chunks`; waits for the device."""
        constrained = self._constrained_samples(chunks)
        if self._constraints is None or not constrained:
            return  # on the other ranks, and nearly always

        def ids() -> list[int]:
            sampled = token_ids()
            return [sampled[position] for position, _ in constrained]

        self._constraints.advance([slot for _, slot in constrained], ids)

    def prompt_targets(self, chunk: Chunk) -> tuple[list[int], int] | None:
        """The prompt's tokens start+1 .. start+num_tokens and the number of alternatives, where they were asked for."""
        slot = self._slots[chunk.slot]
        if slot.sampling.prompt_logprobs is None:
            return None
        targets = slot.prompt_token_ids[chunk.start + 1 : chunk.start + chunk.num_tokens + 1]
        return (targets, slot.sampling.prompt_logprobs) if targets else None

    def _start(self, start: SlotStart) -> None:
        history = None
        if start.sampling.needs_history:
            history = self._history(start)
        if self._constraints is not None and start.sampling.constrained:
            self._constraints.start(start.slot, start.sampling, start.output_token_ids)
        self._slots[start.slot] = _Slot(start.sampling, start.prompt_token_ids, 0, history)
        self._append_pages(start.slot, start.page_ids)

    def _constrained_samples(self, chunks: list[Chunk]) -> list[tuple[int, int]]:
        """Position in the step's result and slot of those that are constrained, which have one sample each."""
        positions = accumulate((chunk.num_samples for chunk in chunks), initial=0)
        slots = [chunk.slot for chunk in chunks]
        return [(position, slot) for position, slot in zip(positions, slots, strict=False) if self._constrained(slot)]

    def _constrained(self, slot: int) -> bool:
        return self._slots[slot].sampling.constrained

    def _allowed(self, slot: int) -> Mask | None:
        if self._constraints is None or not self._constrained(slot):
            return None
        return self._constraints.allowed(slot)

    def _grow(self, chunk: Chunk) -> None:
        assert chunk.slot in self._slots, f"slot {chunk.slot} runs before it starts"
        if chunk.append_page_ids:
            self._append_pages(chunk.slot, chunk.append_page_ids)

    def _append_pages(self, slot: int, page_ids: list[int]) -> None:
        first = self._slots[slot].num_pages
        self._slots[slot].num_pages += len(page_ids)
        self._new_pages.append(PageRun(slot, first, page_ids))
        self._page_table_SP[slot, first : first + len(page_ids)] = torch.tensor(page_ids, dtype=torch.int32)
