"""Speculative decoding: which running sequences are guessed ahead, how far, and in which pages.

A step verifies guesses by sampling at each of them, as if those before it were right; what it samples after the last
right one is what a step without guesses would have sampled. So only the number of steps changes.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Tokens
from typing import NamedTuple, Protocol

from tandem_runtime.scheduling.config import SpeculationConfig
from tandem_runtime.scheduling.memory import KVMemory
from tandem_runtime.scheduling.prompt_lookup import PromptLookup
from tandem_runtime.scheduling.roster import Roster
from tandem_runtime.scheduling.sequence import Sequence

MAX_TAKEN = 8192
"""Tokens that a proposer is given at once: of a long prompt it learns while answers go on."""


class Proposer(Protocol):
    """Guesses how one sequence goes on. Wrong guesses cost time and nothing else."""

    def __len__(self) -> int:
        """Tokens taken so far."""

    def extend(self, token_ids: Tokens[int]) -> None: ...

    def propose(self, count: int) -> list[int]:
        """At most `count` tokens."""


NewProposer = Callable[[Sequence], Proposer]


class Drafts(NamedTuple):
    token_ids: list[int]
    page_ids: list[int]
    """Pages the sequence was given for them."""


NO_DRAFTS = Drafts([], [])


class Speculation:
    def __init__(
        self,
        config: SpeculationConfig | None,
        roster: Roster,
        memory: KVMemory,
        new_proposer: NewProposer | None = None,
    ) -> None:
        """`config`: None turns it off; `new_proposer`: instead of prompt lookup."""
        self._config = config
        self._roster = roster
        self._memory = memory
        self._new_proposer = new_proposer or self._prompt_lookup
        self._proposers: dict[str, Proposer] = {}

    @property
    def awaits_commit(self) -> bool:
        """Whether the next step cannot be planned before the one in flight is committed.

        Guesses need the newest token. And they need all sequences to wait for it: were one planned ahead and the
        next not, they would take turns from then on, each step with a part of the batch.
        """
        if self._config is None:
            return False
        running = self._roster.running
        if any(seq.in_flight_drafts for seq in running):
            return True
        return self._few_enough and any(seq.in_flight_samples and _speculable(seq) for seq in running)

    def draft(self, seq: Sequence, room: int) -> Drafts:
        """Guesses for the tokens after the newest one, which the next step computes; at most `room`."""
        if self._config is None or not self._few_enough or not _speculable(seq) or seq.in_flight_samples:
            return NO_DRAFTS
        # The step samples one token more than it verifies.
        count = min(self._config.num_tokens, room, seq.max_outputs - len(seq.output_token_ids) - 1)
        if count <= 0:
            return NO_DRAFTS
        proposer = self._proposers.get(seq.request_id)
        if proposer is None:
            proposer = self._proposers[seq.request_id] = self._new_proposer(seq)
        taken = len(proposer)
        proposer.extend(seq.token_range(taken, min(seq.num_tokens, taken + MAX_TAKEN)))
        if len(proposer) < seq.num_tokens:
            return NO_DRAFTS
        token_ids = proposer.propose(count)
        # A page for each running sequence to grow into stays free: no sequence is preempted for a guess.
        spare = self._memory.pool.available - len(self._roster.running)
        page_ids = self._memory.grow_to(seq, seq.scheduled_tokens + 1 + len(token_ids), at_most=spare)
        fitting = self._memory.capacity(seq) - seq.scheduled_tokens - 1
        return Drafts(token_ids[:fitting], page_ids)

    def forget(self, seq: Sequence) -> None:
        """It has ended."""
        self._proposers.pop(seq.request_id, None)

    @property
    def _few_enough(self) -> bool:
        assert self._config is not None
        return len(self._roster.running) <= self._config.max_batch

    def _prompt_lookup(self, seq: Sequence) -> PromptLookup:
        assert self._config is not None
        return PromptLookup(shortest=self._config.lookup_min, longest=self._config.lookup_max)

    def check_integrity(self) -> None:
        assert self._proposers.keys() <= {seq.request_id for seq in self._roster}, "a proposer outlives its sequence"


def _speculable(seq: Sequence) -> bool:
    """A mask is made for one position of a sequence at a time, so constrained ones go token by token."""
    return seq.mode != "prefill_only" and not seq.sampling.constrained


def num_accepted(drafts: Tokens[int], sampled: Tokens[int]) -> int:
    """How many leading drafts were sampled; `sampled` has one token more than there are drafts."""
    return next((i for i, token_id in enumerate(drafts) if sampled[i] != token_id), len(drafts))
