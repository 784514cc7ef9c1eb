"""What the scheduler is told once, and what it tells about itself."""

from __future__ import annotations

import msgspec


class SpeculationConfig(msgspec.Struct, frozen=True, kw_only=True):
    num_tokens: int
    """Most guesses for one sequence in one step."""
    lookup_min: int
    lookup_max: int
    """Tokens at the end of a sequence that must have occurred before (at least, and as far as they are compared)."""
    max_batch: int
    """Running sequences above which none is speculated on: a step then has no arithmetic to spare."""


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    page_size: int
    """Tokens per page."""
    num_pages: int
    max_num_seqs: int
    """Slots: most sequences in one step."""
    max_num_batched_tokens: int
    """Most tokens in one step; at least `max_num_seqs`, else decodes alone could keep prefills out of every step."""
    max_prefill_tokens_with_decodes: int
    """Most prompt tokens in a step that also decodes: how long one decode step may take while prompts wait."""
    max_model_len: int
    max_waiting: int
    enable_prefix_caching: bool
    cache_root: bytes
    """Digest of everything besides the tokens that shapes KV."""
    speculation: SpeculationConfig | None = None
    """None: no guesses."""

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs})"
            )

    @property
    def context(self) -> int:
        """Most tokens of one sequence, prompt and answer together."""
        return min(self.max_model_len, self.num_pages * self.page_size)


class Tally(msgspec.Struct, kw_only=True):
    """Counters since start."""

    prompt_tokens: int = 0
    """Of admitted sequences."""
    generation_tokens: int = 0
    prefix_query_tokens: int = 0
    """Prompt tokens looked up in the prefix cache when a sequence was first admitted, or held its prefix."""
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    drafts: int = 0
    """Times that guesses were verified for a sequence."""
    draft_tokens: int = 0
    accepted_tokens: int = 0
    """Draft tokens that were what the sampler chose."""


class SchedulerCounters(Tally, kw_only=True):
    """A snapshot: the counters, and gauges."""

    running: int
    waiting: int
    """Sequences that neither run nor only keep their pages for sending."""
    waiting_tokens: int
    """Tokens that this pod has yet to prefill."""
    pages_total: int
    pages_used: int
    pages_quarantined: int
