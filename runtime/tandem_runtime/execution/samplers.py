"""The sampling seam: what turns the logits of a step's rows into ids that stay on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from tandem_runtime.core.plan import SlotStart
from tandem_runtime.core.sampling import TokenLogprobs
from tandem_runtime.execution.sampler import Counts, History, SampleRow, sample

Logprobs = Callable[[list[int]], dict[int, TokenLogprobs]]
"""Given the rows' ids, the logprobs of rows that asked for them, by row."""


class Sampled(NamedTuple):
    ids_R: torch.Tensor
    """int64, on the device."""
    logprobs: Logprobs
    """To be called once the device has computed the step."""


class Sampler(Protocol):
    def history(self, start: SlotStart) -> Counts: ...

    def sample(self, logits_RV: torch.Tensor, rows: list[SampleRow]) -> Sampled: ...


class EagerSampler:
    def __init__(self, *, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def history(self, start: SlotStart) -> History:
        return History(start.prompt_token_ids, start.output_token_ids, self._vocab_size, "cpu")

    def sample(self, logits_RV: torch.Tensor, rows: list[SampleRow]) -> Sampled:
        ids_R, found = sample(logits_RV, rows)
        return Sampled(ids_R, lambda ids: found)
