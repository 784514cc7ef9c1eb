"""Times work on the device and sets it beside its floor: bytes over copy bandwidth, or FLOPs over the matmul rate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton.testing
from triton.runtime.errors import OutOfResources

CEILINGS = {"H200": (4.3e12, 790e12), "H100": (2.9e12, 790e12)}
"""Measured on the cards: bytes/s of a large copy (read and write counted), bf16 FLOP/s of a large product."""


class Ceilings(NamedTuple):
    bytes_per_second: float
    flops_per_second: float


class Case(NamedTuple):
    name: str
    run: Callable[[], object]
    num_bytes: float
    """That must cross device memory: every operand once."""
    flops: float = 0.0


def ceilings(device_name: str) -> Ceilings:
    """Raises `KeyError` for a card whose ceilings nobody has measured."""
    known = next(card for card in CEILINGS if card in device_name)
    return Ceilings(*CEILINGS[known])


def seconds(run: Callable[[], object]) -> float:
    """Median over replays of a CUDA graph, the cache flushed before each: no host time, no warm L2."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            run()
    times = triton.testing.do_bench(graph.replay, warmup=20, rep=100, return_mode="all")
    return float(statistics.median(times)) * 1e-3


def measure(cases: Iterator[Case]) -> None:
    top = ceilings(torch.cuda.get_device_name())
    print(f"{'case':58} {'us':>9} {'floor us':>9} {'of floor':>8} {'GB/s':>7} {'TFLOP/s':>8}")
    for case in cases:
        try:
            time = seconds(case.run)
        except OutOfResources as error:
            print(f"{case.name:58} {error}")
            continue
        floor = max(case.num_bytes / top.bytes_per_second, case.flops / top.flops_per_second)
        print(
            f"{case.name:58} {time * 1e6:9.1f} {floor * 1e6:9.1f} {floor / time:8.0%}"
            f" {case.num_bytes / time * 1e-9:7.0f} {case.flops / time * 1e-12:8.1f}",
            flush=True,
        )


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def bf16(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")


class Cache(NamedTuple):
    """One layer's share of a cache in the serving layout, two layers in all, pages in random order."""

    k_PHSD: torch.Tensor
    v_PHSD: torch.Tensor
    page_table_SP: torch.Tensor

    @classmethod
    def of(
        cls, rows: int, tokens: int, *, kv_heads: int, head_dim: int, page_size: int = 16, dtype: torch.dtype
    ) -> Cache:
        pages = -(-tokens // page_size)
        kv = torch.randn((rows * pages, kv_heads, 2, 2, page_size, head_dim), dtype=torch.bfloat16, device="cuda").to(
            dtype
        )
        table = torch.randperm(rows * pages, device="cuda").int().view(rows, pages)
        return cls(kv[:, :, 1, 0], kv[:, :, 1, 1], table)
