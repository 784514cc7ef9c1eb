"""Sampling parameters of one sequence, validated by the server before they reach the engine."""

from __future__ import annotations

import msgspec

MAX_LOGPROBS = 20
"""Alternatives that a request may ask for, as OpenAI has it."""


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """How a thought shows in the token ids of an answer, and how long it may be."""

    open_id: int
    """Of `<think>`."""
    close_id: int
    """Of `</think>`."""
    break_ids: tuple[int, ...] = ()
    """Line breaks that a model writes after a thought."""
    begun: bool = False
    """Whether the prompt has opened the thought; else the answer's first token may."""
    budget: int | None = None
    """Tokens between the tags, after which the thought is closed by force; None: as many as it likes."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the sampler needs to know. Stop strings are the text layer's, not the sampler's."""

    max_tokens: int
    min_tokens: int = 0
    """EOS and stop tokens are masked until this many tokens were sampled, or a grammar lets nothing else come."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output (CTRL, arXiv:1909.05858)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    """Both over the output only, as OpenAI defines them."""
    logit_bias: dict[int, float] = {}
    seed: int = 0
    """The uniform number of a position depends on (seed, output index) alone, never on the batch."""
    stop_token_ids: tuple[int, ...] = ()
    """Including the model's EOS ids unless the request ignores EOS."""
    logprobs: int | None = None
    """Number of alternatives per sampled token; 0: only the sampled token's own."""
    prompt_logprobs: int | None = None
    """As `logprobs`, for prompt tokens (echo). Such a prompt skips the prefix cache and the handoff."""

    grammar: str = ""
    """In llguidance's form (JSON): what the answer, after its thought if it has one, must follow; empty: nothing."""
    grammar_param: str | None = None
    """The API's field that the grammar came from."""
    thinking: Thinking | None = None
    """Where an answer that is constrained in any way may begin with a thought."""

    @property
    def constrained(self) -> bool:
        """Whether some tokens may be forbidden, depending on those before."""
        return bool(self.grammar) or (self.thinking is not None and self.thinking.budget is not None)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def needs_history(self) -> bool:
        """Whether the sampler must know which tokens came before."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities of one position: natural log, after penalties and bias, before temperature and truncation."""

    token_id: int
    logprob: float
    rank: int
    """1 is the most likely token."""
    top: list[tuple[int, float]]
    """(token id, logprob), most likely first."""
