"""Sampling by the `sample` kernel: one launch for all rows, and nothing that waits for the device.

What the kernel does not know, biases and masked tokens, is applied to the logits before it, by torch.
"""

from __future__ import annotations

import torch
from tandem_kernels.sample import SamplingTable
from tandem_kernels.sample import sample as sample_kernel

from tandem_runtime.core.plan import SlotStart
from tandem_runtime.core.sampling import TokenLogprobs
from tandem_runtime.execution.constraints import forbid_
from tandem_runtime.execution.sampler import SampleRow, shape_
from tandem_runtime.execution.samplers import Sampled
from tandem_runtime.execution.sampling_math import LogprobTensors, describe, logprob_tensors
from tandem_runtime.execution.upload import to_device, to_host

_UNPENALISED = (1.0, 0.0, 0.0)


class SlotHistory:
    """A row of the kernel's table: 2 * occurrences in the output + 1 if in the prompt."""

    def __init__(self, slot: int, row_V: torch.Tensor) -> None:
        self.slot = slot
        self._row_V = row_V

    @property
    def prompt_V(self) -> torch.Tensor:
        return (self._row_V & 1).bool()

    @property
    def counts_V(self) -> torch.Tensor:
        return self._row_V >> 1

    def add(self, token_1: torch.Tensor, times_1: torch.Tensor | None = None) -> None:
        once_1 = torch.full_like(token_1, 2, dtype=torch.int32)
        self._row_V.index_add_(0, token_1, once_1 if times_1 is None else once_1 * times_1)


class TritonSampler:
    def __init__(self, *, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._history_SV = torch.zeros((max_num_seqs, vocab_size), dtype=torch.int32, device=device)

    def history(self, start: SlotStart) -> SlotHistory:
        row_V = self._history_SV[start.slot]
        seen_V = torch.bincount(torch.tensor(start.output_token_ids, dtype=torch.int64), minlength=len(row_V)) * 2
        seen_V[start.prompt_token_ids] += 1
        row_V.copy_(to_device(seen_V.int(), self._device), non_blocking=True)
        return SlotHistory(start.slot, row_V)

    def sample(self, logits_RV: torch.Tensor, rows: list[SampleRow]) -> Sampled:
        forbid_(logits_RV, [row.allowed for row in rows])
        if all(row.plain for row in rows):
            return Sampled(logits_RV.max(-1).indices, lambda ids: {})
        shaped_before = [_beyond_the_kernel(row) for row in rows]
        if any(shaped_before):
            logits_RV = logits_RV.float()
            for r, row in enumerate(rows):
                if shaped_before[r]:
                    shape_(logits_RV[r], row)
        found = sample_kernel(logits_RV, self._table(rows, shaped_before), self._history_SV)
        for r, row in enumerate(rows):
            if shaped_before[r] and row.history is not None:
                row.history.add(found.ids_R[r : r + 1])
        return Sampled(found.ids_R, self._logprobs(found.shaped_RV, found.ids_R, rows))

    def _table(self, rows: list[SampleRow], shaped_before: list[bool]) -> SamplingTable:
        numbers, integers = [], []
        for row, shaped in zip(rows, shaped_before, strict=True):
            s = row.sampling
            penalties, slot = _UNPENALISED, -1
            if isinstance(row.history, SlotHistory) and not shaped:
                penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
                slot = row.history.slot
            numbers.append((s.temperature, s.top_p, s.min_p, *penalties))
            integers.append((s.top_k, _signed(s.seed), row.output_index, slot))
        return SamplingTable(
            to_device(torch.tensor(numbers, dtype=torch.float32), self._device),
            to_device(torch.tensor(integers, dtype=torch.int64), self._device),
        )

    def _logprobs(self, shaped_RV: torch.Tensor, ids_R: torch.Tensor, rows: list[SampleRow]) -> _Logprobs:
        counts = {r: row.sampling.logprobs for r, row in enumerate(rows) if row.sampling.logprobs is not None}
        if not counts:
            return _Logprobs({}, None)
        chosen = to_device(torch.tensor(list(counts)), self._device)
        found = logprob_tensors(shaped_RV[chosen], ids_R[chosen], max(counts.values()))
        return _Logprobs(counts, LogprobTensors(*(to_host(x) for x in found)))


def _beyond_the_kernel(row: SampleRow) -> bool:
    """Its table knows what sequences have seen, not what they will have if guesses are right."""
    guessed = row.history is not None and not isinstance(row.history, SlotHistory)
    return guessed or bool(row.sampling.logit_bias) or row.masks_stops


class _Logprobs:
    def __init__(self, counts: dict[int, int], found: LogprobTensors | None) -> None:
        self._counts = counts
        self._found = found

    def __call__(self, ids: list[int]) -> dict[int, TokenLogprobs]:
        if self._found is None:
            return {}
        described = describe(self._found, [ids[r] for r in self._counts], list(self._counts.values()))
        return dict(zip(self._counts, described, strict=True))


def _signed(seed: int) -> int:
    """The low 64 bits as int64."""
    return ((seed + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)
