"""Causal attention of prompt chunks over paged KV: any number of chunks of any lengths, each after its own prefix.

FlashAttention-2 (arXiv:2307.08691). The chunk's own K and V are already in the pages, so prefix and chunk are one
loop: first the tiles that every query of the program sees, then the few that the diagonal crosses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from tandem_kernels.arithmetic import dot, rounded
from tandem_kernels.launch import HOPPER, Launch, capability, ceil_div, power_of_2


class Tiles(NamedTuple):
    queries: int
    tokens: int
    """Of K and V, per iteration."""
    num_warps: int
    num_stages: int


def paged_prefill(
    q_TND: torch.Tensor,
    k_PHSD: torch.Tensor,
    v_PHSD: torch.Tensor,
    page_table_SP: torch.Tensor,
    chunks_C4: torch.Tensor,
    *,
    max_chunk: int,
    scale: float,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    out_TND: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale q K^T) V, [T, N, D] in q's dtype; writes the chunks' rows of `out_TND` and no others.

    k_PHSD, v_PHSD: one layer's views of the cache, equally strided; 16 or 32 bit, or fp8 with a scale per tensor.
    page_table_SP: int32, page ids of every slot. chunks_C4: int32, each chunk's slot, first row in q, tokens before it
    in its sequence, and number of tokens (0: padding). max_chunk: bound of the last column, known on the host.
    """
    if out_TND is None:
        out_TND = torch.empty(q_TND.shape, dtype=q_TND.dtype, device=q_TND.device)
    launch(q_TND, k_PHSD, v_PHSD, page_table_SP, chunks_C4, out_TND, max_chunk, scale, k_scale, v_scale).run()
    return out_TND


def tiles(q_bytes: int, kv_bytes: int, max_chunk: int, capability: int) -> Tiles:
    """The tallest that spill no registers; short chunks would leave tall ones empty. Bytes are those of one element."""
    if q_bytes == 4:
        return Tiles(16, 16, 4, 2)
    if max_chunk <= 16:
        return Tiles(16, 64, 4, 3)
    if capability < HOPPER:
        return Tiles(64, 32, 4, 3) if max_chunk <= 64 else Tiles(128, 32, 8, 3)
    if max_chunk <= 64 or kv_bytes == 1:
        return Tiles(64, 64, 4, 3)
    return Tiles(128, 64, 8, 5)


def launch(
    q_TND: torch.Tensor,
    k_PHSD: torch.Tensor,
    v_PHSD: torch.Tensor,
    page_table_SP: torch.Tensor,
    chunks_C4: torch.Tensor,
    out_TND: torch.Tensor,
    max_chunk: int,
    scale: float,
    k_scale: float,
    v_scale: float,
    tile: Tiles | None = None,
) -> Launch:
    _, heads, dim = q_TND.shape
    _, kv_heads, page_size, _ = k_PHSD.shape
    assert k_PHSD.stride() == v_PHSD.stride()
    assert k_PHSD.stride()[2:] == (dim, 1), "a tile of [page_size, head_dim] must be contiguous"
    assert q_TND.stride(2) == out_TND.stride(2) == 1
    assert chunks_C4.is_contiguous()
    tile = tile or tiles(q_TND.element_size(), k_PHSD.element_size(), max_chunk, capability(q_TND.device))
    return Launch(
        paged_prefill_kernel,
        # Heads fastest: programs that run together read the same K and V, and the longest tiles start first.
        (heads, ceil_div(max_chunk, tile.queries), len(chunks_C4)),
        {
            "q": q_TND,
            "k": k_PHSD,
            "v": v_PHSD,
            "page_table": page_table_SP,
            "chunks": chunks_C4,
            "out": out_TND,
            "scale_log2": scale * k_scale * math.log2(math.e),
            "v_scale": v_scale,
            "q_row": q_TND.stride(0),
            "q_head": q_TND.stride(1),
            "out_row": out_TND.stride(0),
            "out_head": out_TND.stride(1),
            "kv_page": k_PHSD.stride(0),
            "kv_head_stride": k_PHSD.stride(1),
            "table_row": page_table_SP.stride(0),
        },
        {
            "GROUP": heads // kv_heads,
            "DIM": dim,
            "PAGE_SIZE": page_size,
            "BLOCK_Q": tile.queries,
            "BLOCK_D": max(16, power_of_2(dim)),
            "BLOCK_T": tile.tokens,
        },
        tile.num_warps,
        tile.num_stages,
    )


@triton.jit
def paged_prefill_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    page_table,
    chunks,
    out,
    scale_log2,
    v_scale,
    q_row,
    q_head,
    out_row,
    out_head,
    kv_page,
    kv_head_stride,
    table_row,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    head = tl.program_id(0)
    chunk = chunks + tl.program_id(2) * 4
    slot = tl.load(chunk).to(tl.int64)
    first_row = tl.load(chunk + 1).to(tl.int64)
    start = tl.load(chunk + 2)
    count = tl.load(chunk + 3)
    # The last queries of a chunk see the most tokens: they go first.
    first = (tl.cdiv(count, BLOCK_Q) - 1 - tl.program_id(1)) * BLOCK_Q
    if first >= 0:
        m = first + tl.arange(0, BLOCK_Q)
        d = tl.arange(0, BLOCK_D)
        in_md = (m < count)[:, None] & (d < DIM)[None, :]
        row_M = first_row + m
        q_MD = tl.load(q + row_M[:, None] * q_row + head * q_head + d[None, :], mask=in_md, other=0.0)
        kv_head = (head // GROUP).to(tl.int64) * kv_head_stride
        pages = page_table + slot * table_row

        top_M = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
        sum_M = tl.zeros((BLOCK_Q,), tl.float32)
        acc_MD = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
        position_M = start + m
        # Tiles before `seen` lie wholly at or before the first query.
        seen = (start + first + 1) // BLOCK_T
        end = tl.minimum(start + first + BLOCK_Q, start + count)
        top_M, sum_M, acc_MD = attend(
            q_MD, k + kv_head, v + kv_head, pages, position_M, top_M, sum_M, acc_MD, 0, seen, end, scale_log2, kv_page,
            False, DIM, PAGE_SIZE, BLOCK_Q, BLOCK_D, BLOCK_T,
        )  # fmt: skip
        top_M, sum_M, acc_MD = attend(
            q_MD, k + kv_head, v + kv_head, pages, position_M, top_M, sum_M, acc_MD, seen, tl.cdiv(end, BLOCK_T), end,
            scale_log2, kv_page, True, DIM, PAGE_SIZE, BLOCK_Q, BLOCK_D, BLOCK_T,
        )  # fmt: skip
        out_MD = acc_MD * (v_scale / sum_M)[:, None]
        at_MD = row_M[:, None] * out_row + head * out_head + d[None, :]
        tl.store(out + at_MD, rounded(out_MD, out.dtype.element_ty), mask=in_md)


@triton.jit
def attend(  # type: ignore[no-untyped-def]
    q_MD,
    k,
    v,
    pages,
    position_M,
    top_M,
    sum_M,
    acc_MD,
    first_tile,
    end_tile,
    end,
    scale_log2,
    kv_page,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Tiles [first_tile, end_tile) of K and V into the running maximum, sum and product; `end`: tokens that exist."""
    d = tl.arange(0, BLOCK_D)
    in_d = (d < DIM)[None, :]
    for tile in range(first_tile, end_tile):
        t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        if MASKED:
            in_t = t < end
            page_T = tl.load(pages + t // PAGE_SIZE, mask=in_t, other=0).to(tl.int64)
            in_td = in_t[:, None] & in_d
        else:
            page_T = tl.load(pages + t // PAGE_SIZE).to(tl.int64)
            in_td = in_d
        at_TD = (page_T * kv_page + (t % PAGE_SIZE) * DIM)[:, None] + d[None, :]
        k_TD = tl.load(k + at_TD, mask=in_td, other=0.0)
        v_TD = tl.load(v + at_TD, mask=in_td, other=0.0)
        scores_MT = dot(q_MD, tl.trans(k_TD.to(q_MD.dtype)), tl.zeros((BLOCK_Q, BLOCK_T), tl.float32)) * scale_log2
        if MASKED:
            scores_MT = tl.where(t[None, :] <= position_M[:, None], scores_MT, float("-inf"))
        new_top_M = tl.maximum(top_M, tl.max(scores_MT, 1))
        weight_MT = tl.exp2(scores_MT - new_top_M[:, None])
        shrink_M = tl.exp2(top_M - new_top_M)
        sum_M = sum_M * shrink_M + tl.sum(weight_MT, 1)
        acc_MD = dot(rounded(weight_MT, q_MD.dtype), v_TD.to(q_MD.dtype), acc_MD * shrink_M[:, None])
        top_M = new_top_M
    return top_M, sum_M, acc_MD
