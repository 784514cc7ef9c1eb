"""Paged attention by the C kernels, for the CPU: no gathers, and a token's numbers do not depend on its batch."""

from __future__ import annotations

import torch
from tandem_kernels.native import NativeOps, PagedCache
from tandem_kernels.native.ops import MAX_GROUP, MAX_HEAD_DIM, PagedStep, Span

from tandem_runtime.execution.attention.backend import HeadNorms, StepBatch, StepIds
from tandem_runtime.execution.layers.rope import Rope


def supports(*, head_dim: int, q_heads: int, kv_heads: int) -> bool:
    """Whether the kernels know heads of this shape."""
    return head_dim % 16 == 0 and head_dim <= MAX_HEAD_DIM and q_heads // kv_heads <= MAX_GROUP


class NativeAttention:
    def __init__(self, kv_PHLCSD: torch.Tensor, ops: NativeOps, *, num_q_heads: int, rope: Rope) -> None:
        self.kv_PHLCSD = kv_PHLCSD
        self._cache = PagedCache(kv_PHLCSD)
        self._ops = ops
        self._q_heads = num_q_heads
        self._rope = rope

    def begin(self, batch: StepBatch) -> StepIds:
        positions = batch.positions_T[: batch.num_decodes].tolist()
        slots = batch.slots_T[: batch.num_decodes].tolist()
        pages_SP = batch.page_table_SP
        spans = [Span(row, 1, position, pages_SP[slots[row]]) for row, position in enumerate(positions)]
        spans += [Span(c.first_row, c.num_tokens, c.start, pages_SP[c.slot]) for c in batch.chunks]
        self._step = PagedStep(spans, *self._rope.half_tables(batch.positions_T), self._q_heads)
        return StepIds(batch.ids_T, batch.slots_T)

    def attend(self, layer: int, qkv_TND: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
        self._ops.qk_norm_rope_kv_write(
            self._cache,
            self._step,
            layer,
            qkv_TND,
            q_weight_D=norms.q.weight if norms else None,
            k_weight_D=norms.k.weight if norms else None,
            eps=norms.q.eps if norms else 0.0,
        )
        return self._ops.paged_attention(self._cache, self._step, layer, qkv_TND).flatten(1)
