"""Attention of one new token per sequence over paged KV: split over the sequence, combined by log-sum-exp.

Flash-Decoding (https://pytorch.org/blog/flash-decoding/) with the queries of one KV head as the rows of a product, so
that each K and V is read once. The grid depends on the batch and never on the lengths: a CUDA graph captured at one
length serves every other; a sequence uses as many of its splits as it has work for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from tandem_kernels.arithmetic import dot, rounded
from tandem_kernels.launch import Launch, ceil_div, power_of_2

MAX_SPLITS = 64
MIN_SPLIT_TOKENS = 256
"""Fewer are not worth a program and a row to combine."""
PROGRAMS_PER_SM = 3
"""Resident at once on Hopper, by shared memory."""


class Tiles(NamedTuple):
    tokens: int
    """Of K and V, per iteration."""
    num_warps: int
    num_stages: int


def paged_decode(
    q_BND: torch.Tensor,
    k_PHSD: torch.Tensor,
    v_PHSD: torch.Tensor,
    page_table_SP: torch.Tensor,
    slots_B: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    scale: float,
    splits: int,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    out_BND: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale q K^T) V for each row, [B, N, D] in q's dtype; into `out_BND` (contiguous) where one is given.

    k_PHSD, v_PHSD: one layer's views of the cache, equally strided; 16 or 32 bit, or fp8 with a scale per tensor.
    page_table_SP: int32, page ids of every slot. slots_B: int32, each row's slot. lengths_B: int32, tokens to attend
    to, the row's own included; a row of length 0 is padding and yields zeros. splits: see `choose_splits`.
    """
    if out_BND is None:
        out_BND = torch.empty(q_BND.shape, dtype=q_BND.dtype, device=q_BND.device)
    for step in launches(
        q_BND, k_PHSD, v_PHSD, page_table_SP, slots_B, lengths_B, out_BND, scale, splits, k_scale, v_scale
    ):
        step.run()
    return out_BND


def choose_splits(rows: int, kv_heads: int, max_tokens: int, sm_count: int) -> int:
    """Programs per (row, KV head): the fewest that fill the device's waves at least 85 % as well as the best choice."""
    at_once = sm_count * PROGRAMS_PER_SM
    most = max(1, min(MAX_SPLITS, max_tokens // MIN_SPLIT_TOKENS))

    def filled(splits: int) -> float:
        waves = rows * kv_heads * splits / at_once
        return waves / math.ceil(waves)

    wanted = 0.85 * max(filled(splits) for splits in range(1, most + 1))
    return next(splits for splits in range(1, most + 1) if filled(splits) >= wanted)


def tiles(head_dim: int, kv_bytes: int) -> Tiles:
    """`kv_bytes`: of one element. Two tiles of K and V in flight; the page ids are fetched two stages before them."""
    tokens = {1: 8192, 2: 8192, 4: 2048}[kv_bytes] // power_of_2(head_dim)
    return Tiles(tokens=max(16, min(128, tokens)), num_warps=4, num_stages=5)


def launches(
    q_BND: torch.Tensor,
    k_PHSD: torch.Tensor,
    v_PHSD: torch.Tensor,
    page_table_SP: torch.Tensor,
    slots_B: torch.Tensor,
    lengths_B: torch.Tensor,
    out_BND: torch.Tensor,
    scale: float,
    splits: int,
    k_scale: float,
    v_scale: float,
    tile: Tiles | None = None,
) -> list[Launch]:
    rows, heads, dim = q_BND.shape
    _, kv_heads, page_size, _ = k_PHSD.shape
    group = heads // kv_heads
    assert k_PHSD.stride() == v_PHSD.stride()
    assert k_PHSD.stride()[2:] == (dim, 1), "a tile of [page_size, head_dim] must be contiguous"
    assert q_BND.stride(2) == 1
    assert out_BND.is_contiguous()
    assert 1 <= splits <= MAX_SPLITS
    tile = tile or tiles(dim, k_PHSD.element_size())
    partial = out_BND.new_empty((rows, heads, splits, dim) if splits > 1 else (1,), dtype=torch.float32)
    lse = out_BND.new_empty((rows, heads, splits) if splits > 1 else (1,), dtype=torch.float32)
    attend = Launch(
        paged_decode_kernel,
        (rows, kv_heads, splits),
        {
            "q": q_BND,
            "k": k_PHSD,
            "v": v_PHSD,
            "page_table": page_table_SP,
            "slots": slots_B,
            "lengths": lengths_B,
            "out": out_BND,
            "partial": partial,
            "lse": lse,
            "scale_log2": scale * k_scale * math.log2(math.e),
            "v_scale": v_scale,
            "q_row": q_BND.stride(0),
            "q_head": q_BND.stride(1),
            "kv_page": k_PHSD.stride(0),
            "kv_head_stride": k_PHSD.stride(1),
            "table_row": page_table_SP.stride(0),
        },
        {
            "HEADS": heads,
            "GROUP": group,
            "DIM": dim,
            "PAGE_SIZE": page_size,
            "SPLITS": splits,
            "MIN_BLOCKS": ceil_div(MIN_SPLIT_TOKENS, tile.tokens),
            "BLOCK_G": max(16, power_of_2(group)),
            "BLOCK_D": max(16, power_of_2(dim)),
            "BLOCK_T": tile.tokens,
        },
        tile.num_warps,
        tile.num_stages,
    )
    if splits == 1:
        return [attend]
    combine = Launch(
        combine_kernel,
        (rows, heads),
        {"partial": partial, "lse": lse, "out": out_BND, "v_scale": v_scale},
        {"DIM": dim, "SPLITS": splits, "BLOCK_X": power_of_2(splits), "BLOCK_D": power_of_2(dim)},
        num_warps=4,
    )
    return [attend, combine]


@triton.jit
def paged_decode_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    page_table,
    slots,
    lengths,
    out,
    partial,
    lse,
    scale_log2,
    v_scale,
    q_row,
    q_head,
    kv_page,
    kv_head_stride,
    table_row,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    MIN_BLOCKS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + row)
    blocks = tl.cdiv(length, BLOCK_T)
    per_split = tl.maximum(tl.cdiv(blocks, SPLITS), MIN_BLOCKS)
    first = split * per_split
    last = tl.minimum(first + per_split, blocks)

    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    head = kv_head * GROUP + g
    in_d = d < DIM
    in_gd = (g < GROUP)[:, None] & in_d[None, :]
    q_GD = tl.load(q + row * q_row + head[:, None] * q_head + d[None, :], mask=in_gd, other=0.0)
    pages_of_row = page_table + tl.load(slots + row).to(tl.int64) * table_row
    k_head = k + kv_head.to(tl.int64) * kv_head_stride
    v_head = v + kv_head.to(tl.int64) * kv_head_stride

    top_G = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    sum_G = tl.zeros((BLOCK_G,), tl.float32)
    acc_GD = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    for block in range(first, last):
        t = block * BLOCK_T + tl.arange(0, BLOCK_T)
        in_t = t < length
        page_T = tl.load(pages_of_row + t // PAGE_SIZE, mask=in_t, other=0).to(tl.int64)
        at_TD = (page_T * kv_page + (t % PAGE_SIZE) * DIM)[:, None] + d[None, :]
        in_td = in_t[:, None] & in_d[None, :]
        k_TD = tl.load(k_head + at_TD, mask=in_td, other=0.0)
        v_TD = tl.load(v_head + at_TD, mask=in_td, other=0.0)
        scores_GT = dot(q_GD, tl.trans(k_TD.to(q.dtype.element_ty)), tl.zeros((BLOCK_G, BLOCK_T), tl.float32))
        scores_GT = tl.where(in_t[None, :], scores_GT * scale_log2, float("-inf"))
        new_top_G = tl.maximum(top_G, tl.max(scores_GT, 1))
        weight_GT = tl.exp2(scores_GT - new_top_G[:, None])
        shrink_G = tl.exp2(top_G - new_top_G)
        sum_G = sum_G * shrink_G + tl.sum(weight_GT, 1)
        weight_GT = rounded(weight_GT, q.dtype.element_ty)
        acc_GD = dot(weight_GT, v_TD.to(q.dtype.element_ty), acc_GD * shrink_G[:, None])
        top_G = new_top_G

    # Splits without work, and rows that are padding, have a sum of 0.
    worked_G = sum_G > 0
    sum_G = tl.where(worked_G, sum_G, 1.0)
    share_GD = acc_GD / sum_G[:, None]
    if SPLITS == 1:
        at_GD = (row * HEADS + head)[:, None] * DIM + d[None, :]
        tl.store(out + at_GD, rounded(share_GD * v_scale, out.dtype.element_ty), mask=in_gd)
    else:
        at_G = (row * HEADS + head) * SPLITS + split
        tl.store(lse + at_G, tl.where(worked_G, top_G + tl.log2(sum_G), float("-inf")), mask=g < GROUP)
        if first < last:
            tl.store(partial + at_G[:, None] * DIM + d[None, :], share_GD, mask=in_gd)


@triton.jit
def combine_kernel(  # type: ignore[no-untyped-def]
    partial,
    lse,
    out,
    v_scale,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row_head = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    x = tl.arange(0, BLOCK_X)
    d = tl.arange(0, BLOCK_D)
    lse_X = tl.load(lse + row_head * SPLITS + x, mask=x < SPLITS, other=float("-inf"))
    worked_X = lse_X > float("-inf")
    top = tl.maximum(tl.max(lse_X), -1e38)  # Finite where no split worked.
    weight_X = tl.exp2(lse_X - top)
    total = tl.sum(weight_X)
    part_XD = tl.load(
        partial + (row_head * SPLITS + x)[:, None] * DIM + d[None, :],
        mask=worked_X[:, None] & (d < DIM)[None, :],
        other=0.0,
    )
    out_D = tl.sum(part_XD * weight_X[:, None], 0) / tl.where(total > 0, total, 1.0) * v_scale
    tl.store(out + row_head * DIM + d, rounded(out_D, out.dtype.element_ty), mask=d < DIM)
