"""How much memory there is for KV pages."""

from __future__ import annotations

from pathlib import Path

import psutil

from tandem_runtime.core.errors import StartupError
from tandem_runtime.execution.settings import ExecutionConfig

CPU_SHARE = 0.3
"""Of the host memory left free by the weights; other processes, such as a peer on the same machine, need theirs."""
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


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
    if pages < needed:
        raise StartupError(
            f"one sequence of {config.max_model_len} tokens needs {needed * page_bytes / 2**20:.0f} MiB of KV cache,"
            f" and {budget / 2**20:.0f} MiB are available for it; {remedy}"
        )
    return pages


def free_host_bytes() -> int:
    """What the machine and the process's cgroup both have left."""
    free = int(psutil.virtual_memory().available)
    for limit_path, usage_path in _CGROUPS:
        try:
            limit, usage = limit_path.read_text().strip(), int(usage_path.read_text())
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            free = min(free, max(0, int(limit) - usage))
    return free
