"""Runs step plans on one rank: load once, then `launch` after `launch`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from itertools import accumulate

import torch

from tandem_runtime.core.host_memory import free_host_bytes
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan, StepResult
from tandem_runtime.core.sampling import MAX_LOGPROBS, SamplingParams, TokenLogprobs
from tandem_runtime.execution.attention.backend import AttentionBackend, StepBatch
from tandem_runtime.execution.attention.tables import StepTables
from tandem_runtime.execution.backends import Allocate, attention_of, ops_of, sampler_of, timer_of
from tandem_runtime.execution.constraints import Constraints
from tandem_runtime.execution.full_device import ReadUsage, cuda_usage, full_device
from tandem_runtime.execution.graphs import Capture, DecodeGraphs, ReplayableAttention
from tandem_runtime.execution.layers.context import BuildContext
from tandem_runtime.execution.layers.embedding import HEAD
from tandem_runtime.execution.memory import DeviceMemory, num_device_pages, num_pages
from tandem_runtime.execution.models.decoder import Decoder
from tandem_runtime.execution.parallel import TensorParallel
from tandem_runtime.execution.sampler import SampleRow
from tandem_runtime.execution.samplers import Logprobs
from tandem_runtime.execution.sampling_math import token_logprobs
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.execution.slots import SlotTables, StepInput
from tandem_runtime.execution.timing import Finish
from tandem_runtime.execution.upload import to_device, to_host
from tandem_runtime.execution.weights import CheckpointSource, DummySource, Progress, WeightSource

logger = logging.getLogger(__name__)

PROMPT_LOGPROB_ROWS = 64
"""Positions whose logits over the whole vocabulary are held at once."""


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that its device computes, or has computed."""

    step: int
    ids_R: torch.Tensor
    """On the host; to be read after `finish`."""
    logprobs: Logprobs
    prompt_logprobs: dict[int, list[TokenLogprobs]]
    failures: dict[int, str]
    finish: Finish

    @property
    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self.finish.done

    def result(self) -> StepResult:
        """Waits for the device; may be called on any thread."""
        seconds, gap_seconds = self.finish.wait()
        ids = self.ids_R.tolist()
        return StepResult(self.step, ids, self.logprobs(ids), self.prompt_logprobs, seconds, gap_seconds, self.failures)

    def token_ids(self) -> list[int]:
        """As `result`."""
        self.finish.wait()
        ids: list[int] = self.ids_R.tolist()
        return ids


class ModelRunner:
    """One tensor-parallel rank. With `world > 1` the caller has joined the process group (`parallel.init_group`).

    Every rank executes the same plans; only rank 0 samples, and only its results carry logprobs.
    """

    def __init__(
        self,
        config: ExecutionConfig,
        rank: int = 0,
        world: int = 1,
        *,
        tp: TensorParallel | None = None,
        constraints: Constraints | None = None,
        allocate: Allocate | None = None,
        usage: ReadUsage = cuda_usage,
    ) -> None:
        """`tp`: instead of `world` ranks' collectives; `constraints`: on rank 0, to serve sequences that have any;
        `allocate`: where the KV cache is to be, instead of memory of this process alone; `usage`: of a card that is
        full."""
        assert world == config.tensor_parallel_size
        self.config = config
        self.layout: KVLayout = config.layout
        self.num_pages = 0
        """Set by `load`."""
        self._allocate = allocate
        self._usage = usage
        self._tp = tp or TensorParallel(rank, world)
        self._device = torch.device(config.device)
        self._sampler = sampler_of(config)
        self._timer = timer_of(config)
        self._tables = SlotTables(
            max_num_seqs=config.max_num_seqs,
            max_pages_per_seq=config.max_pages_per_seq,
            device=config.device,
            history=self._sampler.history,
            constraints=constraints,
        )
        self._graphs: DecodeGraphs | None = None

    @torch.inference_mode()
    def load(self, progress: Progress = lambda done, total: None) -> None:
        """Reads the weights and allocates the KV pages; raises `StartupError`."""
        config = self.config
        torch.set_num_threads(config.cpu_threads or max(1, len(os.sched_getaffinity(0)) // self._tp.world))
        remedy = (
            "use more GPUs (--tensor-parallel-size), --quantization fp8, or fewer tokens per step"
            " (--max-num-batched-tokens)"
        )
        with full_device("the model does not fit the GPU", remedy, self._usage):
            self._load(progress)

    def _load(self, progress: Progress) -> None:
        config = self.config
        kv_heads = self.layout.heads_of_rank(self._tp.rank)
        source = _weight_source(config, progress)
        context = BuildContext(config.model, self._tp, source, ops_of(config), kv_heads, config.expert_parallel)
        self._model = Decoder(context)
        source.finish()

        def attention(pages: int, allocate: Allocate | None = None) -> AttentionBackend:
            return attention_of(
                config, num_pages=pages, q_heads=len(context.q_heads), kv_heads=len(kv_heads), allocate=allocate
            )

        if config.device == "cuda":
            self._attention = attention(1)
            pages = num_device_pages(config, self._try_largest_step())
            del self._attention
        else:
            pages = num_pages(config, free_bytes=free_host_bytes())
        self.num_pages = self._tp.minimum(pages)
        self._attention = attention(self.num_pages, self._allocate)

    def _try_largest_step(self) -> DeviceMemory:
        """Computes as many tokens and samples as many rows as a step can have, all in page 0."""
        config = self.config
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        sampling = SamplingParams(max_tokens=1)
        starts: list[SlotStart] = []
        chunks: list[Chunk] = []
        left = config.max_num_batched_tokens
        while left and len(chunks) < config.max_num_seqs:
            count = min(left, config.max_model_len)
            left -= count
            pages = [0] * self.layout.pages_for(count)
            starts.append(SlotStart(len(starts), [0] * count, [], pages, sampling))
            chunks.append(Chunk(len(chunks), 0, count, [0] * count, [], False))
        hidden_TE = self._hidden(self._tables.lay_out(StepPlan(-3, starts, chunks)).batch)
        logits_RV = self._model.logits(hidden_TE[:1].repeat(config.max_num_samples, 1))
        if logits_RV is not None:
            widest = SamplingParams(max_tokens=1, logprobs=MAX_LOGPROBS)
            self._sampler.sample(logits_RV, [SampleRow(widest, 0, None)] * config.max_num_samples)
        torch.cuda.synchronize()
        activations = torch.cuda.max_memory_allocated() - held
        del hidden_TE, logits_RV
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return DeviceMemory(total=total, free=free, held=torch.cuda.memory_reserved(), activations=activations)

    def kv_bytes(self) -> torch.Tensor:
        """uint8 [num_pages, page_bytes]: this rank's KV cache itself, not a copy."""
        return self._attention.kv_PHLCSD.view(self.num_pages, -1).view(torch.uint8)

    def warm_up(self) -> None:
        """Runs steps of every kind once, so that no request pays for lazy initialisation or compilation.

        Overwrites slot 0 and page 0: call it before the first plan. Raises `StartupError`.
        """
        remedy = "lower --gpu-memory-utilization or --max-num-batched-tokens, or end what else uses the GPU"
        with full_device("the GPU is full before the first step has run", remedy, self._usage):
            self._warm_up()

    def _warm_up(self) -> None:
        sampling = SamplingParams(max_tokens=1, temperature=0.0)
        most = min(self.config.max_num_batched_tokens, self.config.max_model_len - 1)
        prompts = [min(most, self.config.page_size)]
        if self._device.type == "cuda":
            prompts = warm_up_sizes(self.config.max_model_len - 1)
        for tokens in prompts:
            start = SlotStart(0, [0] * tokens, [], [0] * self.layout.pages_for(tokens + 1), sampling)
            count = min(tokens, most)
            self.execute(StepPlan(-2, [start], [Chunk(0, tokens - count, count, [0] * count, [], True)]))
            self.execute(StepPlan(-1, [], [Chunk(0, tokens, 1, None, [], True)]))

    @torch.inference_mode()
    def capture_graphs(self, capture: Capture) -> None:
        """Decode steps run as graphs from now on; for the `triton` backend. Raises `StartupError`."""
        attention = self._attention
        assert isinstance(attention, ReplayableAttention)

        def forward(tables: StepTables, splits: int) -> torch.Tensor | None:
            ids_T = self._tables.input_ids(attention.use(tables, splits))
            return self._model.logits(self._model.hidden(ids_T, attention))

        self._graphs = DecodeGraphs(attention, forward, capture, max_tokens=self.config.max_model_len)
        remedy = "lower --gpu-memory-utilization or --max-num-seqs, or do without graphs (--no-cuda-graphs)"
        with full_device("the GPU is full while decode steps are captured as graphs", remedy, self._usage):
            self._graphs.capture(
                self.config.max_num_seqs,
                lambda done, total: logger.info("captured decode graph %d of %d", done, total),
                agree=lambda in_time: self._tp.minimum(int(in_time)) == 1,
            )

    def execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Returns when the device has been told what to do; steps run in the order of their launches."""
        step = self._tables.lay_out(plan)
        self._timer.start()
        ids_R = torch.empty(0, dtype=torch.int64)
        logprobs: Logprobs = _no_logprobs
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        sampled = [i for i, chunk in enumerate(plan.chunks) if chunk.sample]
        sampling = [plan.chunks[i] for i in sampled]
        failures: dict[int, str] = {}
        if plan.chunks:
            replayed, logits_RV = self._replay(plan, step)
            if not replayed:
                hidden_TE = self._hidden(step.batch)
                prompt_logprobs = self._prompt_logprobs(plan, step, hidden_TE)
                logits_RV = self._logits(plan, step, sampled, hidden_TE)
            if sampled:
                ids_R, logprobs = self._sample(sampling, logits_RV)
                failures = self._tables.failures(sampling)
        launched = LaunchedStep(plan.step, to_host(ids_R), logprobs, prompt_logprobs, failures, self._timer.stop())
        self._tables.follow(sampling, launched.token_ids)
        return launched

    def _replay(self, plan: StepPlan, step: StepInput) -> tuple[bool, torch.Tensor | None]:
        """A pure decode step in a captured graph, where there is one that fits."""
        if self._graphs is None or not all(chunk.sample for chunk in plan.chunks):
            return False, None
        if any(self._tables.prompt_targets(chunk) for chunk in plan.chunks):
            return False, None
        return self._graphs.run(step.batch)

    def _hidden(self, batch: StepBatch) -> torch.Tensor:
        ids_T = self._tables.input_ids(self._attention.begin(batch))
        return self._model.hidden(ids_T, self._attention)

    def _logits(
        self, plan: StepPlan, step: StepInput, sampled: list[int], hidden_TE: torch.Tensor
    ) -> torch.Tensor | None:
        """Of the last rows of each sampled chunk; None on every rank but 0."""
        ends = [(step.chunks[i][1], plan.chunks[i].num_samples) for i in sampled]
        rows = [row for end, count in ends for row in range(end - count, end)]
        if not rows:
            return None
        if rows != list(range(len(hidden_TE))):
            hidden_TE = hidden_TE[to_device(torch.tensor(rows), self._device)]
        return self._model.logits(hidden_TE)

    def _sample(self, chunks: list[Chunk], logits_RV: torch.Tensor | None) -> tuple[torch.Tensor, Logprobs]:
        """The sampled ids, on the device."""
        ends = list(accumulate(chunk.num_samples for chunk in chunks))
        ids_R = torch.empty(ends[-1], dtype=torch.int64, device=self._device)
        logprobs: Logprobs = _no_logprobs
        if logits_RV is not None:
            rows = [row for chunk in chunks for row in self._tables.sample_rows(chunk)]
            ids_R, logprobs = self._sampler.sample(logits_RV, rows)
        ids_R = self._tp.broadcast(ids_R)
        slots_C = to_device(torch.tensor([chunk.slot for chunk in chunks]), self._device)
        # Which of a chunk's samples counts, only the scheduler finds out if there were drafts: it then tells the id.
        last_C = ids_R if len(ids_R) == len(chunks) else ids_R[to_device(torch.tensor(ends) - 1, self._device)]
        self._tables.last_ids_S.index_copy_(0, slots_C, last_C)
        return ids_R, logprobs

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


def warm_up_sizes(most: int) -> list[int]:
    """Numbers of tokens on both sides of every power of two: where the launches of kernels change."""
    powers = [1 << i for i in range(most.bit_length())]
    return sorted({min(size, most) for power in powers for size in (power, power + 1)})


def _no_logprobs(ids: list[int]) -> dict[int, TokenLogprobs]:
    return {}


def _weight_source(config: ExecutionConfig, progress: Progress) -> WeightSource:
    if config.load_format == "dummy":
        return DummySource(seed=config.seed, dtype=config.torch_dtype, device=config.device)
    # Some checkpoints store a tied head all the same.
    ignore = frozenset({HEAD}) if config.model.tie_word_embeddings else frozenset()
    return CheckpointSource(
        config.folder, dtype=config.torch_dtype, device=config.device, progress=progress, ignore=ignore
    )
