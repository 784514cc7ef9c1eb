"""Decode steps as CUDA graphs: one for each of a few batch sizes, captured at start, replayed with new tables.

A step of a batch between two sizes runs in the larger one's graph; rows beyond the batch are padding that attends to
nothing and writes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from tandem_runtime.execution.attention.backend import AttentionBackend, PageRun, StepBatch, StepIds
from tandem_runtime.execution.attention.tables import StepShape, StepTables, pack
from tandem_runtime.execution.streams import step_stream
from tandem_runtime.execution.upload import to_device

logger = logging.getLogger(__name__)

CAPTURE_BUDGET_S = 30.0
"""A pod that is starting waits no longer than this; batches of sizes not reached by then run as larger ones."""

Forward = Callable[[StepTables, int], torch.Tensor | None]
"""Logits of every row, None on ranks without; of tables and attention splits."""


@runtime_checkable
class ReplayableAttention(AttentionBackend, Protocol):
    """A backend whose `attend` depends on nothing but tables on the device and numbers that a graph can hold."""

    def append_pages(self, runs: Sequence[PageRun]) -> None: ...
    def best_splits(self, num_decodes: int, max_tokens: int) -> int: ...
    def use(self, tables: StepTables, splits: int) -> StepIds: ...


class Graph(Protocol):
    def replay(self) -> None: ...


class Capture(Protocol):
    """Runs `work` once or more, to be replayed with the same memory."""

    def __call__(self, work: Callable[[], torch.Tensor | None]) -> tuple[Graph, torch.Tensor | None]: ...


@dataclass(frozen=True, slots=True)
class _Captured:
    tables: StepTables
    graph: Graph
    logits_RV: torch.Tensor | None
    """Where each replay leaves its result."""


class DecodeGraphs:
    def __init__(self, attention: ReplayableAttention, forward: Forward, capture: Capture, *, max_tokens: int) -> None:
        """`max_tokens`: of the longest sequence, which the split of the attention is chosen for."""
        self._attention = attention
        self._forward = forward
        self._capture = capture
        self._max_tokens = max_tokens
        self._captured: dict[int, _Captured] = {}

    def capture(
        self,
        max_num_seqs: int,
        progress: Callable[[int, int], None],
        *,
        agree: Callable[[bool], bool] = lambda in_time: in_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The largest batch first: the memory that it takes serves the smaller ones too.

        `agree`: whether every rank is in time; a rank that stopped alone would leave the others in a collective.
        """
        began = clock()
        sizes = buckets(max_num_seqs)
        for done, size in enumerate(reversed(sizes)):
            if not agree(clock() - began <= CAPTURE_BUDGET_S):
                logger.warning(
                    "%d of %d decode graphs were captured in %.0f s; smaller batches run in these. A start that finds"
                    " its kernels compiled ($TRITON_CACHE_DIR, or ~/.triton) captures more",
                    done, len(sizes), clock() - began,
                )  # fmt: skip
                return
            self._captured[size] = self._capture_one(size)
            progress(done + 1, len(sizes))

    def run(self, batch: StepBatch) -> tuple[bool, torch.Tensor | None]:
        """Whether a graph of the batch's size exists, and then the logits of its rows, valid until the next `run`."""
        size = min((size for size in self._captured if size >= batch.num_decodes), default=0)
        if not size or batch.chunks:
            return False, None
        captured = self._captured[size]
        self._attention.append_pages(batch.new_pages)
        buffer = captured.tables.buffer
        buffer.copy_(to_device(pack(batch, captured.tables.shape), buffer.device), non_blocking=True)
        captured.graph.replay()
        return True, None if captured.logits_RV is None else captured.logits_RV[: batch.num_decodes]

    def _capture_one(self, size: int) -> _Captured:
        shape = StepShape(num_tokens=size, num_decodes=size)
        padding = StepTables(shape, torch.zeros(shape.buffer_size, dtype=torch.int32))
        padding.slots_T.fill_(-1)
        tables = StepTables(shape, padding.buffer.to(self._attention.kv_PHLCSD.device))
        splits = self._attention.best_splits(size, self._max_tokens)
        graph, logits_RV = self._capture(lambda: self._forward(tables, splits))
        return _Captured(tables, graph, logits_RV)


def buckets(max_num_seqs: int) -> list[int]:
    """1, 2, 4, then steps of 8 to 64 and of an eighth beyond: a padded row costs far less than a row's weights."""
    sizes = [1, 2, 4]
    while sizes[-1] < max_num_seqs:
        step = max(8, 1 << (sizes[-1].bit_length() - 3))
        sizes.append((sizes[-1] // step + 1) * step)
    return sorted({min(size, max_num_seqs) for size in sizes})


class CudaCapture:
    """All graphs share one pool of memory, as they never run at the same time."""

    WARM_UPS = 2

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # Kernels keep in a graph the priority that they were captured with.
        self._stream = step_stream()

    def __call__(self, work: Callable[[], torch.Tensor | None]) -> tuple[Graph, torch.Tensor | None]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Kernels are compiled and libraries set up before: neither may happen while a stream is captured.
            for _ in range(self.WARM_UPS):
                work()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Thread-local: transports and NCCL's watchdog use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph, result
