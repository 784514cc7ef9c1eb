"""Paged attention in plain torch operations, for the CPU.

The layout makes a gather one `index_select` of whole tiles into [rows, kv heads, tokens, head_dim]: layers differ only
by where the view they select from begins, so one index table serves all layers of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tandem_runtime.execution.attention.backend import ChunkSpan, HeadNorms, StepBatch, StepIds
from tandem_runtime.execution.attention.grouping import group_by_length
from tandem_runtime.execution.fp8 import FP8, LARGEST
from tandem_runtime.execution.layers.rope import Rope, rotate_

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


@dataclass(slots=True)
class _DecodeGroup:
    rows_B: torch.Tensor | None
    """int64; None: all decode rows, in order."""
    tiles: torch.Tensor
    """int64 [rows * kv heads * pages]: each tile's index, counted from layer 0's K."""
    shape: tuple[int, int, int, int]
    """Of a gathered K or V: [rows, kv heads, tokens, head_dim]."""
    mask: torch.Tensor
    """[rows, kv heads, queries per kv head, tokens], 0 or -inf, broadcast by stride."""


@dataclass(slots=True)
class _Chunk:
    span: ChunkSpan
    prefix_tiles: torch.Tensor | None
    """int64 [kv heads * pages]; None: the chunk begins its sequence."""


class EagerAttention:
    def __init__(self, kv_PHLCSD: torch.Tensor, *, num_q_heads: int, rope: Rope) -> None:
        self.kv_PHLCSD = kv_PHLCSD
        _, heads, layers, _, size, dim = kv_PHLCSD.shape
        self._kv_heads, self._head_dim, self._page_size = heads, dim, size
        self._q_heads = num_q_heads
        self._group = num_q_heads // heads
        self._rope = rope
        self._fp8 = kv_PHLCSD.dtype == FP8
        self._dtype = rope.dtype
        # Indexing knows no fp8, and all about bytes.
        cache = kv_PHLCSD.view(torch.uint8) if self._fp8 else kv_PHLCSD
        rows, tiles = cache.view(-1, dim), cache.view(-1, size * dim)
        # Per layer: views that begin at that layer's first K tile, V tile, K row.
        self._k_tiles = [tiles[2 * i :] for i in range(layers)]
        self._v_tiles = [tiles[2 * i + 1 :] for i in range(layers)]
        self._rows = [rows[2 * i * size :] for i in range(layers)]
        self._tiles_per_head = 2 * layers
        self._tiles_per_page = heads * 2 * layers
        self._head_tiles_H = torch.arange(heads) * self._tiles_per_head
        # K rows of all heads, then V rows of all heads, as they lie in `qkv_TND`.
        self._head_rows_C = torch.cat((self._head_tiles_H, self._head_tiles_H + 1)) * size

    def begin(self, batch: StepBatch) -> StepIds:
        self._cos, self._sin = self._rope.tables(batch.positions_T)
        pages_T = batch.page_table_SP[batch.slots_T, batch.positions_T // self._page_size].long()
        row_T = pages_T * (self._tiles_per_page * self._page_size) + batch.positions_T % self._page_size
        self._write_rows_TC = row_T[:, None] + self._head_rows_C
        self._num_decodes = batch.num_decodes
        self._decodes = self._decode_groups(batch)
        self._chunks = [_Chunk(span, self._prefix_tiles(span, batch.page_table_SP)) for span in batch.chunks]
        return StepIds(batch.ids_T, batch.slots_T)

    def attend(self, layer: int, qkv_TND: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
        q_heads, kv_heads = self._q_heads, self._kv_heads
        q_TND, k_TND = qkv_TND[:, :q_heads], qkv_TND[:, q_heads : q_heads + kv_heads]
        if norms is not None:
            q_TND.copy_(norms.q(q_TND))
            k_TND.copy_(norms.k(k_TND))
        rotate_(qkv_TND[:, : q_heads + kv_heads], self._cos, self._sin)
        self._rows[layer].index_put_((self._write_rows_TC,), self._stored(qkv_TND[:, q_heads:]))

        if self._chunks or len(self._decodes) != 1:
            out_TND = torch.empty_like(q_TND, memory_format=torch.contiguous_format)
            for group in self._decodes:
                rows = slice(0, self._num_decodes) if group.rows_B is None else group.rows_B
                out_TND[rows] = self._decode(layer, q_TND[rows], group)
            for chunk in self._chunks:
                rows = slice(chunk.span.first_row, chunk.span.first_row + chunk.span.num_tokens)
                out_TND[rows] = self._prefill(layer, qkv_TND[rows], chunk)
        else:
            out_TND = self._decode(layer, q_TND, self._decodes[0])
        return out_TND.reshape(len(qkv_TND), q_heads * self._head_dim)

    def _decode(self, layer: int, q_BND: torch.Tensor, group: _DecodeGroup) -> torch.Tensor:
        k_BHTD = self._gathered(self._k_tiles[layer], group.tiles).view(group.shape)
        v_BHTD = self._gathered(self._v_tiles[layer], group.tiles).view(group.shape)
        # The queries that share a KV head are that head's query rows: no copy of K or V per query head.
        q_BHGD = q_BND.view(-1, self._kv_heads, self._group, self._head_dim)
        out_BHGD, _ = flash(q_BHGD, k_BHTD, v_BHTD, attn_mask=group.mask)
        return out_BHGD.flatten(1, 2)  # type: ignore[no-any-return]

    def _prefill(self, layer: int, qkv_nND: torch.Tensor, chunk: _Chunk) -> torch.Tensor:
        """The chunk's own tokens causally, its prefix wholly, merged by their log-sum-exp (arXiv:2205.14135, 3.1)."""
        heads, group = self._kv_heads, self._group
        q_HGnD = qkv_nND[:, : self._q_heads].view(-1, heads, group, self._head_dim).permute(1, 2, 0, 3)
        k_HnD, v_HnD = qkv_nND[:, self._q_heads :].transpose(0, 1).chunk(2)
        out_HGnD, weight_HGn = flash(q_HGnD, self._per_query_head(k_HnD), self._per_query_head(v_HnD), is_causal=True)
        if chunk.prefix_tiles is not None:
            shape = (heads, -1, self._head_dim)
            k_HPD = self._gathered(self._k_tiles[layer], chunk.prefix_tiles).view(shape)[:, : chunk.span.start]
            v_HPD = self._gathered(self._v_tiles[layer], chunk.prefix_tiles).view(shape)[:, : chunk.span.start]
            before_HGnD, before_HGn = flash(q_HGnD, self._per_query_head(k_HPD), self._per_query_head(v_HPD))
            share = torch.sigmoid(before_HGn - weight_HGn).unsqueeze(-1)
            out_HGnD = torch.lerp(out_HGnD.float(), before_HGnD.float(), share)
        return out_HGnD.permute(2, 0, 1, 3).flatten(1, 2)  # type: ignore[no-any-return]

    def _stored(self, kv_TCD: torch.Tensor) -> torch.Tensor:
        return kv_TCD.clamp(-LARGEST, LARGEST).to(FP8).view(torch.uint8) if self._fp8 else kv_TCD

    def _gathered(self, tiles: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        found = tiles.index_select(0, index)
        return found.view(FP8).to(self._dtype) if self._fp8 else found

    def _per_query_head(self, x_HTD: torch.Tensor) -> torch.Tensor:
        heads, tokens, dim = x_HTD.shape
        return x_HTD[:, None].expand(heads, self._group, tokens, dim)

    def _decode_groups(self, batch: StepBatch) -> list[_DecodeGroup]:
        lengths = (batch.positions_T[: batch.num_decodes] + 1).tolist()
        pages = [-(-length // self._page_size) for length in lengths]
        groups = group_by_length(pages)
        return [self._decode_group(rows, lengths, pages, batch, whole=len(groups) == 1) for rows in groups]

    def _decode_group(
        self, rows: list[int], lengths: list[int], pages: list[int], batch: StepBatch, *, whole: bool
    ) -> _DecodeGroup:
        width = max(pages[row] for row in rows)
        rows_B = torch.tensor(rows)
        lengths_B = torch.tensor([lengths[row] for row in rows])
        pages_B = torch.tensor([pages[row] for row in rows])
        table_BP = batch.page_table_SP[batch.slots_T[rows_B], :width].long()
        # Past its end a row reads its own first page again, masked: never another sequence's numbers.
        beyond_BP = torch.arange(width) >= pages_B[:, None]
        table_BP = torch.where(beyond_BP, table_BP[:, :1], table_BP)
        tiles_BHP = table_BP[:, None, :] * self._tiles_per_page + self._head_tiles_H[:, None]
        tokens = width * self._page_size
        mask_BT = torch.zeros(len(rows), tokens, dtype=self._dtype)
        mask_BT.masked_fill_(torch.arange(tokens) >= lengths_B[:, None], float("-inf"))
        return _DecodeGroup(
            rows_B=None if whole else rows_B,
            tiles=tiles_BHP.flatten(),
            shape=(len(rows), self._kv_heads, tokens, self._head_dim),
            mask=mask_BT[:, None, None].expand(len(rows), self._kv_heads, self._group, tokens),
        )

    def _prefix_tiles(self, span: ChunkSpan, page_table_SP: torch.Tensor) -> torch.Tensor | None:
        if span.start == 0:
            return None
        width = -(-span.start // self._page_size)
        pages_P = page_table_SP[span.slot, :width].long() * self._tiles_per_page
        return (self._head_tiles_H[:, None] + pages_P).flatten()
