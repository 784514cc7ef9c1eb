"""The attention seam: one step's batch, described once, and what a backend does with it in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from tandem_runtime.execution.layers.norm import RMSNorm


class HeadNorms(NamedTuple):
    """Qwen3's norms over each query and key head, before the rotation."""

    q: RMSNorm
    k: RMSNorm


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """One prefill chunk among the step's tokens."""

    slot: int
    first_row: int
    """Of the chunk's tokens in the step's token dimension."""
    start: int
    """Tokens of the sequence before the chunk; their KV is in its pages."""
    num_tokens: int


class PageRun(NamedTuple):
    """Pages `page_ids` at [first, first + len) of a slot's page table."""

    slot: int
    first: int
    page_ids: list[int]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """A step as the model sees it: decode rows first (one token each), then the chunks' tokens. Tensors on the host."""

    ids_T: torch.Tensor
    """int64 [T]; -1: what the token's slot sampled last, which only the device knows."""
    slots_T: torch.Tensor
    """int64 [T]: the slot of each token."""
    positions_T: torch.Tensor
    """int64 [T]: the position of each token in its sequence."""
    num_decodes: int
    chunks: tuple[ChunkSpan, ...]
    page_table_SP: torch.Tensor
    """int32 [max_num_seqs, max_pages_per_seq]: the page ids of every slot."""
    new_pages: tuple[PageRun, ...]
    """How the page tables differ from those of the step before."""


class StepIds(NamedTuple):
    """A step's input on its device."""

    ids_T: torch.Tensor
    """-1: what the slot sampled last."""
    slots_T: torch.Tensor


class AttentionBackend(Protocol):
    """Owns the KV cache and everything between the QKV projection and the output projection."""

    kv_PHLCSD: torch.Tensor
    """[num_pages, kv_heads_of_rank, num_layers, 2, page_size, head_dim], see `core.kv`."""

    def begin(self, batch: StepBatch) -> StepIds:
        """Prepares the step's index tables, shared by all layers."""
        ...

    def attend(self, layer: int, qkv_TND: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
        """Norms and rotates q and k, writes k and v into the pages, attends causally.

        `qkv_TND` holds [q heads, k heads, v heads] in its second dimension and is overwritten.
        Returns [T, q heads * head_dim].
        """
        ...
