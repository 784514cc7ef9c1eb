"""Runs step plans on one rank: load once, then `execute` after `execute`."""

from __future__ import annotations

import os
import time

import numpy as np
import torch

from tandem_runtime.core.kv import KVLayout
from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan, StepResult
from tandem_runtime.core.sampling import SamplingParams, TokenLogprobs
from tandem_runtime.execution.attention.backend import AttentionBackend
from tandem_runtime.execution.attention.eager import EagerAttention
from tandem_runtime.execution.layers.context import BuildContext
from tandem_runtime.execution.layers.embedding import HEAD
from tandem_runtime.execution.layers.rope import Rope
from tandem_runtime.execution.memory import free_host_bytes, num_pages
from tandem_runtime.execution.models.decoder import Decoder
from tandem_runtime.execution.parallel import TensorParallel
from tandem_runtime.execution.sampler import sample
from tandem_runtime.execution.sampling_math import token_logprobs
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.execution.slots import SlotTables, StepInput
from tandem_runtime.execution.weights import CheckpointSource, DummySource, Progress, WeightSource

PROMPT_LOGPROB_ROWS = 64
"""Positions whose logits over the whole vocabulary are held at once."""


class ModelRunner:
    """One tensor-parallel rank. With `world > 1` the caller has joined the process group (`parallel.init_group`).

    Every rank executes the same plans; only rank 0 samples, and only its results carry logprobs.
    """

    def __init__(self, config: ExecutionConfig, rank: int = 0, world: int = 1) -> None:
        assert world == config.tensor_parallel_size
        self.config = config
        self.layout: KVLayout = config.layout
        self.num_pages = 0
        """Set by `load`."""
        self._tp = TensorParallel(rank, world)
        self._tables = SlotTables(
            max_num_seqs=config.max_num_seqs,
            max_pages_per_seq=config.max_pages_per_seq,
            vocab_size=config.model.vocab_size,
            device=config.device,
        )
        self._idle_since = 0.0

    @torch.inference_mode()
    def load(self, progress: Progress = lambda done, total: None) -> None:
        """Reads the weights and allocates the KV pages; raises `StartupError`."""
        config = self.config
        torch.set_num_threads(config.cpu_threads or max(1, len(os.sched_getaffinity(0)) // self._tp.world))
        kv_heads = self.layout.heads_of_rank(self._tp.rank)
        source = _weight_source(config, progress)
        context = BuildContext(config.model, self._tp, source, kv_heads)
        self._model = Decoder(context)
        source.finish()
        self.num_pages = self._tp.minimum(num_pages(config, free_bytes=free_host_bytes()))
        self._attention: AttentionBackend = EagerAttention(
            _kv_cache(config, self.num_pages, len(kv_heads)),
            num_q_heads=len(context.q_heads),
            rope=Rope(config.model.rope, config.model.head_dim, dtype=config.torch_dtype, device=config.device),
        )

    def kv_bytes(self) -> torch.Tensor:
        """uint8 [num_pages, page_bytes]: this rank's KV cache itself, not a copy."""
        return self._attention.kv_PHLCSD.view(self.num_pages, -1).view(torch.uint8)

    def warm_up(self) -> None:
        """Runs a decode step and a chunk once, so that the first request does not pay for lazy initialisation.

        Overwrites slot 0 and page 0: call it before the first plan.
        """
        tokens = min(self.config.max_num_batched_tokens, self.config.page_size, self.config.max_model_len - 1)
        sampling = SamplingParams(max_tokens=1, temperature=0.0)
        start = SlotStart(0, [0] * tokens, [], [0, 1][: self.layout.pages_for(tokens + 1)], sampling)
        self.execute(StepPlan(-2, [start], [Chunk(0, 0, tokens, [0] * tokens, [], True)]))
        self.execute(StepPlan(-1, [], [Chunk(0, tokens, 1, None, [], True)]))

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        began = time.perf_counter()
        gap = began - self._idle_since if self._idle_since else 0.0
        step = self._tables.lay_out(plan)
        token_ids: list[int] = []
        logprobs: dict[int, TokenLogprobs] = {}
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        if plan.chunks:
            self._attention.begin(step.batch)
            hidden_TE = self._model.hidden(step.ids_T, self._attention)
            prompt_logprobs = self._prompt_logprobs(plan, step, hidden_TE)
            token_ids, logprobs = self._sample(plan, step, hidden_TE)
        self._idle_since = time.perf_counter()
        return StepResult(plan.step, token_ids, logprobs, prompt_logprobs, self._idle_since - began, gap)

    def _sample(
        self, plan: StepPlan, step: StepInput, hidden_TE: torch.Tensor
    ) -> tuple[list[int], dict[int, TokenLogprobs]]:
        sampled = [i for i, chunk in enumerate(plan.chunks) if chunk.sample]
        if not sampled:
            return [], {}
        last_rows = [step.chunks[i][1] - 1 for i in sampled]
        hidden_RE = hidden_TE if last_rows == list(range(len(hidden_TE))) else hidden_TE[last_rows]
        logits_RV = self._model.logits(hidden_RE)
        logprobs: dict[int, TokenLogprobs] = {}
        ids_R = torch.empty(len(sampled), dtype=torch.int64, device=self.config.device)
        if logits_RV is not None:
            ids_R, logprobs = sample(logits_RV, [self._tables.sample_row(plan.chunks[i]) for i in sampled])
        ids_R = self._tp.broadcast(ids_R)
        self._tables.last_ids_S[[plan.chunks[i].slot for i in sampled]] = ids_R
        return ids_R.tolist(), logprobs

    def _prompt_logprobs(
        self, plan: StepPlan, step: StepInput, hidden_TE: torch.Tensor
    ) -> dict[int, list[TokenLogprobs]]:
        found: dict[int, list[TokenLogprobs]] = {}
        for i, chunk in enumerate(plan.chunks):
            asked = self._tables.prompt_targets(chunk)
            if asked is None:
                continue
            targets, count = asked
            found[i] = []
            for offset in range(0, len(targets), PROMPT_LOGPROB_ROWS):
                block = targets[offset : offset + PROMPT_LOGPROB_ROWS]
                first = step.chunks[i][0] + offset
                logits_RV = self._model.logits(hidden_TE[first : first + len(block)])
                if logits_RV is not None:
                    found[i] += token_logprobs(logits_RV, block, [count] * len(block))
        return found


def _kv_cache(config: ExecutionConfig, num_pages: int, num_heads: int) -> torch.Tensor:
    model = config.model
    shape = (num_pages, num_heads, model.num_layers, 2, config.page_size, model.head_dim)
    # NumPy's zeros are the kernel's: no page costs memory, or time at start, before it is written.
    zeros = torch.from_numpy(np.zeros(num_pages * config.layout.page_bytes, dtype=np.uint8))
    return zeros.view(config.torch_dtype).view(shape)


def _weight_source(config: ExecutionConfig, progress: Progress) -> WeightSource:
    if config.load_format == "dummy":
        return DummySource(seed=config.seed, dtype=config.torch_dtype, device=config.device)
    # Some checkpoints store a tied head all the same.
    ignore = frozenset({HEAD}) if config.model.tie_word_embeddings else frozenset()
    return CheckpointSource(
        config.folder, dtype=config.torch_dtype, device=config.device, progress=progress, ignore=ignore
    )
