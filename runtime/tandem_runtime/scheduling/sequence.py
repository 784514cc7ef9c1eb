"""One sequence: its tokens, where it stands, and which pages it holds."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from enum import Enum
from typing import Literal, NamedTuple

import msgspec

from tandem_runtime.core.sampling import SamplingParams, TokenLogprobs
from tandem_runtime.scheduling.prefix_cache import PageChain

Mode = Literal["local", "remote", "prefill_only"]

PRIORITY_SECONDS = 10.0
"""One step of priority is worth this much earlier an arrival; finite, so that nobody starves."""
MAX_PRIORITY = 32


class State(Enum):
    GATED = "gated"
    """prefill_only: the decode pod has not reserved pages yet."""
    REMOTE = "remote"
    """A prefill pod computes the prompt."""
    FILLED = "filled"
    """Its prompt's pages arrived; waits for a slot."""
    WAITING = "waiting"
    """Holds no pages; new or preempted."""
    RUNNING = "running"
    """Holds a slot and pages for all its known tokens."""
    HELD = "held"
    """prefill_only: computed, its pages are being sent."""
    ENDED = "ended"


class SequenceUpdate(msgspec.Struct, kw_only=True):
    """What one step (or an admission) changed for one sequence."""

    request_id: str
    new_token_ids: list[int] = []
    finish_reason: Literal["stop", "length", "error"] | None = None
    """Never set for `prefill_only`, which is done when `computed_tokens` reaches its prompt's length - 1."""
    stop_token_id: int | None = None
    error: str | None = None
    """With finish_reason `error`: why no token could be sampled."""
    logprobs: list[TokenLogprobs] | None = None
    """One for each of `new_token_ids`, if asked for."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """With the first token: one for each prompt token but the first, if asked for."""
    draft_tokens: int = 0
    """Guesses that the step verified."""
    accepted_tokens: int = 0
    """Those of them that are among `new_token_ids`."""
    computed_tokens: int = 0
    """Tokens whose KV is in the sequence's pages."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache when the sequence was first admitted."""
    queue_seconds: float = 0.0
    """From arrival to first admission."""


class Sequence:
    """Owned by the scheduler once added; others read `request_id` and the tokens."""

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        sampling: SamplingParams,
        *,
        output_token_ids: Tokens[int] = (),
        arrival: float,
        deadline: float | None = None,
        priority: int = 0,
        cache_salt: str = "",
        mode: Mode = "local",
    ) -> None:
        """`output_token_ids`: sampled before, elsewhere; they count as this sequence's own."""
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.output_token_ids: list[int] = list(output_token_ids)
        self.sampling = sampling
        self.arrival = arrival
        self.deadline = deadline
        self.cache_salt = cache_salt
        self.mode: Mode = mode

        urgency = arrival + PRIORITY_SECONDS * max(-MAX_PRIORITY, min(MAX_PRIORITY, priority))
        self.rank = (urgency, 0)
        """Place in every queue, smallest first; the scheduler sets the second part, which breaks ties by arrival."""
        self.state = State.WAITING
        self.max_outputs: int
        """Set when added: by max_tokens, the context and the pool."""
        self.slot = -1
        self.pages: list[int] = []
        self.chain: PageChain
        """Set when added."""
        self.pages_registered = 0
        """Leading pages that were offered to the prefix cache."""
        self.pages_wanted = 0
        """Free pages that the last attempt to admit it lacked; 0: not tried."""
        self.shared_prefill: SharedPrefill | None = None
        """While it waits for another sequence to compute their common prefix."""
        self.scheduled_tokens = 0
        """Tokens whose KV is computed once every plan so far has run, if all guesses are right."""
        self.computed_tokens = 0
        """The same for committed plans only."""
        self.in_flight_samples = 0
        """Tokens that uncommitted plans sample for sure."""
        self.in_flight_drafts = 0
        """Guesses that an uncommitted plan verifies: how many more it samples is not known before its commit."""
        self.last_step = 0
        """The last plan that touches its pages."""
        self.tenure = 0
        """Counts preemptions: a row planned in an earlier tenure computed KV that is gone."""
        self.admitted_at: float | None = None
        self.cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs] | None = None if sampling.prompt_logprobs is None else []

    @property
    def num_tokens(self) -> int:
        """Tokens whose ids are known."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def tokens_to_compute(self) -> int:
        """Tokens that the next plan may compute, guesses not counted; 0 when the sequence is known to end with what is
        in flight, or what is in flight must be known first."""
        if self.mode == "prefill_only":
            return len(self.prompt_token_ids) - 1 - self.scheduled_tokens
        if self.in_flight_drafts or len(self.output_token_ids) + self.in_flight_samples >= self.max_outputs:
            return 0
        return self.num_tokens + self.in_flight_samples - self.scheduled_tokens

    @property
    def resident_tokens(self) -> int:
        """Tokens that need pages when the sequence is admitted."""
        return len(self.prompt_token_ids) - 1 if self.mode == "prefill_only" else self.num_tokens

    def token_range(self, start: int, stop: int) -> list[int]:
        num_prompt = len(self.prompt_token_ids)
        if stop <= num_prompt:
            return self.prompt_token_ids[start:stop]
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        return self.prompt_token_ids[start:] + self.output_token_ids[: stop - num_prompt]

    def drop_pages(self) -> None:
        """Forgets the page table, which someone else releases, and with it what was computed."""
        self.pages = []
        self.pages_registered = self.scheduled_tokens = self.computed_tokens = 0

    def append_output(self, token_id: int) -> Literal["stop", "length"] | None:
        """Takes a sampled id; returns why the sequence ends with it, if it does.

        Before `min_tokens` the sampler lets a stop token through only where a grammar has ended.
        """
        self.output_token_ids.append(token_id)
        if token_id in self.sampling.stop_token_ids:
            return "stop"
        return "length" if len(self.output_token_ids) >= self.max_outputs else None


class SharedPrefill(NamedTuple):
    """Someone else's prefill that is worth waiting for."""

    leader: Sequence
    tenure: int
    tokens: int
    """Leading tokens in common, a multiple of the page size."""

    @property
    def pending(self) -> bool:
        """Whether the leader is still about to compute them."""
        leader = self.leader
        return leader.state is State.RUNNING and leader.tenure == self.tenure and leader.computed_tokens < self.tokens
