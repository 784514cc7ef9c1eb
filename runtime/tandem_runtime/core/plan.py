"""What the scheduler tells the executor each step, and what comes back.

A sequence lives in a `slot`: a row of the runner's per-sequence tables (page table, token counts, last sampled id)
that it keeps from `SlotStart` until it is preempted, finished or aborted. The plan carries only what changed, so that
it stays small at 128K context and cheap to broadcast to tensor-parallel ranks.
"""

from __future__ import annotations

import msgspec

from tandem_runtime.core.sampling import SamplingParams, TokenLogprobs


class SlotStart(msgspec.Struct, frozen=True, array_like=True):
    """A sequence (or a preempted one that resumes) takes a slot; the slot's tables are reset to this."""

    slot: int
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    """Sampled before a preemption; counted by penalties and by the sampler's output index."""
    page_ids: list[int]
    """The page table so far: prefix hits, pages filled by a handoff, pages for the first chunk."""
    sampling: SamplingParams


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Tokens [start, start + num_tokens) of one slot's sequence, to be computed in this step."""

    slot: int
    start: int
    """Tokens of the sequence whose KV is already in its pages."""
    num_tokens: int
    token_ids: list[int] | None
    """None: the single input is the id the previous step sampled for this slot, still on the device."""
    append_page_ids: list[int]
    """Pages that grow the slot's table, before this step runs."""
    sample: bool
    """Whether the last position's logits are sampled (the chunk ends at the sequence's newest token)."""
    num_drafts: int = 0
    """The last so many of `token_ids` are guesses of what will be sampled (speculative decoding): their positions and
    the one before them are sampled, each as if the guesses up to it were the sequence's."""

    @property
    def drafts(self) -> list[int]:
        return self.token_ids[-self.num_drafts :] if self.num_drafts and self.token_ids else []

    @property
    def num_samples(self) -> int:
        """Positions whose logits are sampled: the last ones."""
        return self.num_drafts + 1 if self.sample else 0


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    step: int
    starts: list[SlotStart]
    chunks: list[Chunk]
    """Decode rows (num_tokens == 1) first, then prefill chunks and rows with drafts; every slot at most once."""

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    step: int
    token_ids: list[int]
    """As many for each chunk of the plan as it has samples, in order. A token sampled after a guess that was wrong
    means nothing."""
    logprobs: dict[int, TokenLogprobs]
    """By position in `token_ids`; only for sequences that asked."""
    prompt_logprobs: dict[int, list[TokenLogprobs]]
    """By index of the chunk in the plan: logprobs of tokens start+1 .. start+num_tokens (as far as the prompt goes)."""
    seconds: float
    """Time the device was busy with this step."""
    gap_seconds: float
    """Time the device idled before it."""
    failures: dict[int, str] = {}
    """By position in `token_ids`: why no token could be chosen, and the sequence ends."""
