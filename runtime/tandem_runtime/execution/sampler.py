"""Logits to token ids, row by row as each sequence's `SamplingParams` say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from tandem_runtime.core.sampling import SamplingParams, TokenLogprobs
from tandem_runtime.execution.constraints import Mask, allows_any_but, forbid_
from tandem_runtime.execution.sampling_math import draw, penalise_, token_logprobs, truncate_, uniform
from tandem_runtime.execution.upload import to_device


class Seen(Protocol):
    """Which tokens a sequence has seen."""

    @property
    def prompt_V(self) -> torch.Tensor:
        """bool: whether a token occurs in the prompt."""

    @property
    def counts_V(self) -> torch.Tensor:
        """int32: how often it occurs in the output."""

    def add(self, token_1: torch.Tensor) -> None:
        """`token_1`: int64 [1], still on the device."""


class Counts(Seen, Protocol):
    """What a slot keeps."""

    def add(self, token_1: torch.Tensor, times_1: torch.Tensor | None = None) -> None:
        """`times_1`: int32 [1]; once by default."""


class History:
    """Which tokens a sequence has seen; kept only for sequences whose penalties need it."""

    def __init__(self, prompt: list[int], output: list[int], vocab_size: int, device: str) -> None:
        self.prompt_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.prompt_V[torch.tensor(prompt, dtype=torch.int64, device=device)] = True
        self.counts_V = torch.zeros(vocab_size, dtype=torch.int32, device=device)
        self.counts_V += torch.bincount(torch.tensor(output, dtype=torch.int64, device=device), minlength=vocab_size)

    def add(self, token_1: torch.Tensor, times_1: torch.Tensor | None = None) -> None:
        self.counts_V.index_add_(
            0, token_1, torch.ones_like(token_1, dtype=torch.int32) if times_1 is None else times_1
        )


class _AfterDrafts:
    """What a sequence has seen if its first drafts are right; itself learns only what is sampled after right ones."""

    def __init__(self, history: Counts, drafts_K: torch.Tensor, count: int, right_K: torch.Tensor) -> None:
        """`right_K`: int32, shared by all of a chunk's: whether a draft was sampled, filled in from the first on."""
        self._history = history
        self._drafts_K = drafts_K
        self._count = count
        self._right_K = right_K

    @property
    def prompt_V(self) -> torch.Tensor:
        return self._history.prompt_V

    @property
    def counts_V(self) -> torch.Tensor:
        counts_V = self._history.counts_V
        drafts_K = self._drafts_K[: self._count]
        return counts_V.index_add(0, drafts_K, torch.ones_like(drafts_K, dtype=counts_V.dtype))

    def add(self, token_1: torch.Tensor) -> None:
        self._history.add(token_1, self._right_K[: self._count].prod(0, keepdim=True, dtype=torch.int32))
        if self._count < len(self._drafts_K):
            self._right_K[self._count] = (token_1 == self._drafts_K[self._count])[0]


def follow_drafts(history: Counts, drafts: list[int]) -> list[Seen]:
    """Histories for the rows at and after the newest token, to be shaped with before the first of them is added to."""
    drafts_K = to_device(torch.tensor(drafts, dtype=torch.int64), history.counts_V.device)
    right_K = torch.zeros_like(drafts_K, dtype=torch.int32)
    return [_AfterDrafts(history, drafts_K, count, right_K) for count in range(len(drafts) + 1)]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row of logits to sample from."""

    sampling: SamplingParams
    output_index: int
    """How many tokens the sequence has sampled before."""
    history: Seen | None
    allowed: Mask | None = None

    @property
    def masks_stops(self) -> bool:
        stops = self.sampling.stop_token_ids
        if self.output_index >= self.sampling.min_tokens or not stops:
            return False
        # A grammar that has ended is stronger than min_tokens.
        return self.allowed is None or allows_any_but(self.allowed, stops)

    @property
    def plain(self) -> bool:
        """Whether the answer is the argmax of the logits as they are."""
        s = self.sampling
        return s.greedy and self.history is None and not s.logit_bias and s.logprobs is None and not self.masks_stops


def sample(logits_RV: torch.Tensor, rows: list[SampleRow]) -> tuple[torch.Tensor, dict[int, TokenLogprobs]]:
    """int64 [R] on the logits' device, and the logprobs of rows that ask for them, by row."""
    forbid_(logits_RV, [row.allowed for row in rows])
    if all(row.plain for row in rows):
        return _most_likely(logits_RV), {}
    logits_RV = logits_RV.float()
    for logits_V, row in zip(logits_RV, rows, strict=True):
        shape_(logits_V, row)
    ids_R = _most_likely(logits_RV)
    drawn = [r for r, row in enumerate(rows) if not row.sampling.greedy]
    if drawn:
        ids_R[drawn] = _draw_rows(logits_RV[drawn], [rows[r] for r in drawn])
    for r, row in enumerate(rows):
        if row.history is not None:
            row.history.add(ids_R[r : r + 1])
    return ids_R, _logprobs(logits_RV, ids_R, rows)


def _most_likely(logits_RV: torch.Tensor) -> torch.Tensor:
    # On the CPU `max` is vectorised for 16-bit floats and `argmax` is not: 0.2 ms against 9 ms for 8 x 49,152.
    return logits_RV.max(-1).indices


def shape_(logits_V: torch.Tensor, row: SampleRow) -> None:
    """Penalties, bias and masked stop tokens, in place."""
    s = row.sampling
    if row.history is not None:
        penalise_(
            logits_V,
            row.history.prompt_V,
            row.history.counts_V,
            repetition=s.repetition_penalty,
            presence=s.presence_penalty,
            frequency=s.frequency_penalty,
        )
    if s.logit_bias:
        biased = to_device(torch.tensor(list(s.logit_bias)), logits_V.device)
        logits_V[biased] += to_device(torch.tensor(list(s.logit_bias.values())), logits_V.device)
    if row.masks_stops:
        logits_V.index_fill_(0, to_device(torch.tensor(s.stop_token_ids), logits_V.device), -torch.inf)


def _draw_rows(logits_RV: torch.Tensor, rows: list[SampleRow]) -> torch.Tensor:
    sampling = [row.sampling for row in rows]
    device = logits_RV.device
    logits_RV /= torch.tensor([s.temperature for s in sampling], device=device)[:, None]
    truncate_(
        logits_RV,
        top_k=[s.top_k for s in sampling],
        top_p=[s.top_p for s in sampling],
        min_p=[s.min_p for s in sampling],
    )
    uniforms = [uniform(row.sampling.seed, row.output_index) for row in rows]
    return draw(logits_RV, torch.tensor(uniforms, dtype=torch.float64, device=device))


def _logprobs(logits_RV: torch.Tensor, ids_R: torch.Tensor, rows: list[SampleRow]) -> dict[int, TokenLogprobs]:
    asking = {r: row.sampling.logprobs for r, row in enumerate(rows) if row.sampling.logprobs is not None}
    if not asking:
        return {}
    chosen = list(asking)
    found = token_logprobs(logits_RV[chosen], ids_R[chosen].tolist(), list(asking.values()))
    return dict(zip(chosen, found, strict=True))
