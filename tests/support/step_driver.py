"""Drives a `ModelRunner` without a scheduler: plans made by hand, pages handed out one after another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tandem_contract.flags import ServeFlags
from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan, StepResult
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.settings import Backend, ExecutionConfig

GREEDY = SamplingParams(max_tokens=1 << 20, temperature=0.0)


def tiny_execution_config(folder: Path, **flags: object) -> ExecutionConfig:
    defaults: dict[str, object] = {
        "page_size": 4,
        "max_num_seqs": 8,
        "kv_cache_memory": "8MiB",
        "cpu_threads": 1,
        "device": "cpu",
    }
    return ExecutionConfig.from_flags(ServeFlags(model=str(folder), **(defaults | flags)))  # type: ignore[arg-type]


def load_runner(folder: Path, *, backend: Backend | None = None, **flags: object) -> ModelRunner:
    """`backend`: instead of the device's own."""
    config = tiny_execution_config(folder, **flags)
    runner = ModelRunner(replace(config, backend=backend or config.backend))
    runner.load()
    return runner


class StepDriver:
    """Sequences by slot. Pages are never reused unless a test hands them over itself."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.pages: dict[int, list[int]] = {}
        self._next_page = 0
        self._step = 0
        self._starts: list[SlotStart] = []

    def start(
        self,
        slot: int,
        prompt: Sequence[int],
        sampling: SamplingParams = GREEDY,
        *,
        output: Sequence[int] = (),
        pages: Sequence[int] = (),
    ) -> None:
        """Queues a start for the next step; `pages` already hold KV (a prefix hit)."""
        self.pages[slot] = list(pages)
        self._starts.append(SlotStart(slot, list(prompt), list(output), list(pages), sampling))

    def chunk(self, slot: int, start: int, token_ids: Sequence[int] | None, *, sample: bool = False) -> Chunk:
        count = 1 if token_ids is None else len(token_ids)
        missing = self.runner.layout.pages_for(start + count) - len(self.pages[slot])
        new = list(range(self._next_page, self._next_page + max(0, missing)))
        self._next_page += len(new)
        self.pages[slot] += new
        return Chunk(slot, start, count, None if token_ids is None else list(token_ids), new, sample)

    def step(self, *chunks: Chunk) -> StepResult:
        self._step += 1
        return self.runner.execute(StepPlan(self._step, self.take_starts(), list(chunks)))

    def take_starts(self) -> list[SlotStart]:
        """Those queued for the next step."""
        starts, self._starts = self._starts, []
        return starts

    def prefill(self, slot: int, token_ids: Sequence[int], *, start: int = 0, splits: Sequence[int] = ()) -> int:
        """Computes `token_ids` from position `start`, cut at `splits` (relative); returns the sampled id."""
        borders = [0, *sorted(set(splits)), len(token_ids)]
        result = None
        for begin, end in itertools.pairwise(borders):
            last = end == len(token_ids)
            result = self.step(self.chunk(slot, start + begin, token_ids[begin:end], sample=last))
        assert result is not None
        return result.token_ids[0]

    def decode(self, lengths: dict[int, int], steps: int) -> dict[int, list[int]]:
        """Decodes all slots together; `lengths`: tokens whose KV each slot holds, the newest sampled id not yet."""
        found: dict[int, list[int]] = {slot: [] for slot in lengths}
        for i in range(steps):
            result = self.step(*(self.chunk(slot, n + i, None, sample=True) for slot, n in lengths.items()))
            for slot, token in zip(lengths, result.token_ids, strict=True):
                found[slot].append(token)
        return found


def full_logprobs(runner: ModelRunner) -> SamplingParams:
    """Greedy, reporting every token's log-probability: the whole distribution can be compared."""
    vocab = runner.config.model.vocab_size
    return SamplingParams(max_tokens=1 << 20, temperature=0.0, logprobs=vocab)


def distribution(result: StepResult, index: int = 0) -> torch.Tensor:
    """[vocab] log-probabilities of one sampled position of a sequence started with `full_logprobs`."""
    top = result.logprobs[index].top
    logprobs = torch.empty(len(top))
    logprobs[[token for token, _ in top]] = torch.tensor([value for _, value in top])
    return logprobs
