"""How much memory there is for KV pages."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_runtime.core.errors import StartupError
from tandem_runtime.execution.graphs import buckets
from tandem_runtime.execution.settings import ExecutionConfig

CPU_SHARE = 0.3
"""Of the host memory left free by the weights; other processes, such as a peer on the same machine, need theirs."""
DEVICE_OVERHEAD = 1 << 30
"""Bytes of a card that a process takes beside its tensors: context, libraries' workspaces, captured graphs."""


def num_pages(config: ExecutionConfig, *, free_bytes: int) -> int:
    """Pages each rank allocates; raises `StartupError` when not even one sequence of full length would fit.

    `free_bytes`: host memory that may be used, with the weights loaded; the ranks share it.
    """
    page_bytes = config.layout.page_bytes
    needed = config.max_pages_per_seq
    if config.kv_cache_memory is not None:
        pages, budget = config.kv_cache_memory // page_bytes, config.kv_cache_memory
        remedy = "raise --kv-cache-memory or lower --max-model-len"
        if budget * config.tensor_parallel_size > free_bytes:
            raise StartupError(
                f"--kv-cache-memory is {budget / 2**30:.1f} GiB on each of {config.tensor_parallel_size} ranks,"
                f" more than the {free_bytes / 2**30:.1f} GiB that are free; lower it"
            )
    else:
        budget = int(free_bytes * CPU_SHARE) // config.tensor_parallel_size
        pages = min(budget // page_bytes, config.max_num_seqs * needed)
        remedy = "lower --max-model-len, give the process more memory, or set --kv-cache-memory"
    return _enough(config, pages, budget, remedy)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A card with the weights loaded and the largest step tried; bytes."""

    total: int
    free: int
    """Now, other processes considered."""
    held: int
    """By this process: its weights and tables."""
    activations: int
    """What the largest step took beside them, and gave back."""


def num_device_pages(config: ExecutionConfig, memory: DeviceMemory) -> int:
    """As `num_pages`, of a card: what this process's share of it leaves, or what is free where that is less."""
    reserve = memory.activations + graphs_bytes(config) + DEVICE_OVERHEAD
    share = int(memory.total * config.gpu_memory_utilization)
    free = memory.free - reserve
    budget = min(share - memory.held - reserve, free)
    remedy = "raise --gpu-memory-utilization, lower --max-model-len, or share the model among more GPUs"
    if config.kv_cache_memory is not None:
        if config.kv_cache_memory > free:
            raise StartupError(
                f"--kv-cache-memory is {config.kv_cache_memory / 2**30:.1f} GiB, more than the {_gib(free)} that the"
                f" model and a step's {_gib(reserve)} leave free of the GPU's {_gib(memory.total)}; lower it"
            )
        budget, remedy = config.kv_cache_memory, "raise --kv-cache-memory or lower --max-model-len"
    elif budget < config.layout.page_bytes:
        raise StartupError(
            f"no memory is left for KV pages: of the GPU's {_gib(memory.total)} this process may use {_gib(share)} and"
            f" {_gib(memory.free)} are free; the model holds {_gib(memory.held)} and a step needs {_gib(reserve)};"
            f" {remedy}"
        )
    return _enough(config, max(0, budget) // config.layout.page_bytes, budget, remedy)


def graphs_bytes(config: ExecutionConfig) -> int:
    """What captured graphs keep: each one's logits. All else they share, and it is less than a large step's."""
    rows = sum(buckets(config.max_num_seqs)) if config.cuda_graphs else 0
    return rows * config.model.vocab_size * config.torch_dtype.itemsize


def _enough(config: ExecutionConfig, pages: int, budget: int, remedy: str) -> int:
    needed = config.max_pages_per_seq
    if pages < needed:
        raise StartupError(
            f"one sequence of {config.max_model_len} tokens needs {needed * config.layout.page_bytes / 2**20:.0f} MiB"
            f" of KV cache, and {budget / 2**20:.0f} MiB are available for it; {remedy}"
        )
    return pages


def _gib(size: int) -> str:
    return f"{max(0, size) / 2**30:.1f} GiB"
