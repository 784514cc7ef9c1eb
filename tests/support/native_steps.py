"""Steps over random paged caches for the C kernels: which tokens of which sequences are computed together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from support.kernels import PagedKV
from tandem_kernels.native import PagedCache
from tandem_kernels.native.ops import PagedStep, Span

LAYERS = 2


@dataclass(frozen=True)
class Shape:
    q_heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 16

    @property
    def heads(self) -> int:
        return self.q_heads + 2 * self.kv_heads


class Rig:
    """One cache, and steps over parts of its sequences."""

    def __init__(self, lengths: list[int], shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.paged = PagedKV(
            lengths,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            page_size=shape.page_size,
            dtype=dtype,
            device="cpu",
            layers=LAYERS,
        )
        self.cache = PagedCache(self.paged.kv_PHLCSD)

    def step(self, parts: list[tuple[int, int, int]]) -> PagedStep:
        """`parts`: (slot, first position, number of tokens) each, in the order of the step's rows."""
        spans, first = [], 0
        for slot, position, count in parts:
            spans.append(Span(first, count, position, self.paged.page_table_SP[slot].contiguous()))
            first += count
        cos_TR, sin_TR = tables(positions(parts), self.shape.head_dim)
        return PagedStep(spans, cos_TR, sin_TR, self.shape.q_heads)


def positions(parts: list[tuple[int, int, int]]) -> torch.Tensor:
    return torch.cat([torch.arange(position, position + count) for _, position, count in parts])


def tables(positions_T: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [T, head_dim / 2]."""
    frequencies_R = 1000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles_TR = positions_T.float()[:, None] * frequencies_R
    return angles_TR.cos(), angles_TR.sin()
