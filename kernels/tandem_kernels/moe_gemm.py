"""The experts' products: rows sorted by expert, each tile of rows with its own expert's weights.

A *pick* is one (token, expert) pair, numbered token * top_k + rank. The grid is as large as the picks could make it,
whichever experts they fell on, so that a CUDA graph can hold it; which expert a tile belongs to, the tile finds itself.
Weights may be block-wise fp8: they are widened on their way to the product, so that activations keep their 16 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from tandem_kernels.arithmetic import dot, rounded
from tandem_kernels.fp8_gemm import BlockScales
from tandem_kernels.fp8_quantize import GROUP
from tandem_kernels.launch import HOPPER, Launch, capability, ceil_div, power_of_2


class Tiles(NamedTuple):
    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


class Picks(NamedTuple):
    """The picks in order of their experts."""

    sorted_P: torch.Tensor
    """int64: pick numbers."""
    ends_X: torch.Tensor
    """int32: where each expert's picks end in `sorted_P`."""

    @classmethod
    def of(cls, experts_TK: torch.Tensor, num_experts: int) -> Picks:
        """Nothing here waits for the device."""
        flat_P = experts_TK.flatten().long()
        counts_X = torch.zeros(num_experts, dtype=torch.int32, device=flat_P.device)
        counts_X.scatter_add_(0, flat_P, torch.ones_like(flat_P, dtype=torch.int32))
        return cls(flat_P.argsort(stable=True), counts_X.cumsum(0, dtype=torch.int32))


def gate_up(
    x_TH: torch.Tensor,
    weight_XNH: torch.Tensor,
    picks: Picks,
    top_k: int,
    scales: BlockScales | None = None,
    *,
    out_PN: torch.Tensor | None = None,
) -> torch.Tensor:
    """[P, N], in the order of `picks.sorted_P`: each pick's token times its expert's weight, transposed.

    `scales`: of float8_e4m3fn weights, those of all experts [X, R, C]; the rows of every expert are of the same blocks.
    Into `out_PN` (contiguous) where one is given; rows beyond the last expert's end are not written.
    """
    if out_PN is None:
        out_PN = x_TH.new_empty(len(picks.sorted_P), weight_XNH.shape[1])
    launch(x_TH, weight_XNH, picks, out_PN, top_k=top_k, weights_P=None, scales=scales).run()
    return out_PN


def down(
    x_PI: torch.Tensor,
    weight_XHI: torch.Tensor,
    picks: Picks,
    weights_TK: torch.Tensor,
    scales: BlockScales | None = None,
    *,
    out_PH: torch.Tensor | None = None,
) -> torch.Tensor:
    """[P, H], in the order of pick numbers: each row of `x_PI` (sorted as the picks are) times its expert's weight,
    transposed, times the pick's own weight (fp32). `scales` as for `gate_up`. Into `out_PH` (contiguous) where one is
    given; rows of picks beyond the last expert's end are not written."""
    if out_PH is None:
        out_PH = x_PI.new_empty(len(picks.sorted_P), weight_XHI.shape[1])
    launch(x_PI, weight_XHI, picks, out_PH, top_k=1, weights_P=weights_TK, scales=scales).run()
    return out_PH


def tiles(picks_per_expert: float, element_bytes: int, capability: int, *, fp8: bool = False) -> Tiles:
    """As few rows as an expert has on average: more would multiply zeros, fewer would read the weights again.

    `element_bytes`: of activations. `fp8`: of weights, whose widening takes registers."""
    if element_bytes == 4:
        return Tiles(16, 32, 32, 4, 2)
    if fp8:
        return Tiles(16, 64, 64, 4, 5) if picks_per_expert <= 16 else Tiles(64, 128, 64, 8, 4)
    if picks_per_expert <= 16:
        return Tiles(16, 64, 128, 4, 4) if capability >= HOPPER else Tiles(16, 64, 128, 4, 3)
    if picks_per_expert <= 64 or capability < HOPPER:
        return Tiles(64, 128, 64, 4, 4)
    return Tiles(128, 128, 64, 8, 4)


def launch(
    x_RK: torch.Tensor,
    weight_XNK: torch.Tensor,
    picks: Picks,
    out_PN: torch.Tensor,
    *,
    top_k: int,
    weights_P: torch.Tensor | None,
    scales: BlockScales | None = None,
    tile: Tiles | None = None,
) -> Launch:
    """With `weights_P`, x is sorted and the result is put where the pick's number says; else the other way round."""
    experts, columns, depth = weight_XNK.shape
    rows = len(picks.sorted_P)
    assert x_RK.stride(1) == 1
    assert weight_XNK.is_contiguous()
    assert out_PN.is_contiguous()
    tile = tile or tiles(rows / experts, x_RK.element_size(), capability(x_RK.device), fp8=scales is not None)
    if scales is not None:
        assert scales.scale_RC.is_contiguous()
        assert len(scales.row_blocks_N) == columns
    # Full tiles, and one of each expert that is not full.
    most_tiles = rows // tile.rows + min(experts, rows)
    return Launch(
        moe_gemm_kernel,
        (ceil_div(columns, tile.columns), most_tiles),
        {
            "x": x_RK,
            "weight": weight_XNK,
            "sorted_picks": picks.sorted_P,
            "ends": picks.ends_X,
            "pick_weights": x_RK if weights_P is None else weights_P,
            "out": out_PN,
            "weight_scales": x_RK if scales is None else scales.scale_RC,
            "row_blocks": picks.ends_X if scales is None else scales.row_blocks_N,
            "x_row": x_RK.stride(0),
            "first_column": 0 if scales is None else scales.first_column,
        },
        {
            "EXPERTS": experts,
            "COLUMNS": columns,
            "DEPTH": depth,
            "TOP_K": top_k,
            "WEIGHTED": weights_P is not None,
            "SCALED": scales is not None,
            "SCALE_ROWS": 0 if scales is None else scales.scale_RC.shape[1],
            "SCALE_COLUMNS": 0 if scales is None else scales.scale_RC.shape[2],
            "GROUP": GROUP,
            "BLOCK_X": power_of_2(experts),
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
            "BLOCK_K": tile.depth if scales is None else min(tile.depth, scales.depth),
        },
        tile.num_warps,
        tile.num_stages,
    )


@triton.jit
def moe_gemm_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    sorted_picks,
    ends,
    pick_weights,
    out,
    weight_scales,
    row_blocks,
    x_row,
    first_column,
    EXPERTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TOP_K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tl.program_id(1)
    e = tl.arange(0, BLOCK_X)
    end_X = tl.load(ends + e, mask=e < EXPERTS, other=0)
    start_X = tl.load(ends + e - 1, mask=(e > 0) & (e < EXPERTS), other=0)
    tiles_X = tl.cdiv(end_X - start_X, BLOCK_M)
    before_X = tl.cumsum(tl.where(e < EXPERTS, tiles_X, 0), 0) - tiles_X
    mine_X = (e < EXPERTS) & (before_X <= tile) & (tile < before_X + tiles_X)
    expert = tl.max(tl.where(mine_X, e, -1))
    if expert >= 0:
        end = tl.max(tl.where(mine_X, end_X, 0))
        first = tl.max(tl.where(mine_X, start_X + (tile - before_X) * BLOCK_M, 0))
        m = first + tl.arange(0, BLOCK_M)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.arange(0, BLOCK_K)
        in_m = m < end
        in_n = n < COLUMNS
        pick_M = tl.load(sorted_picks + m, mask=in_m, other=0)
        row_M = m.to(tl.int64) if WEIGHTED else pick_M // TOP_K
        x_at = x + row_M[:, None] * x_row + k[None, :]
        weight_at = weight + expert.to(tl.int64) * COLUMNS * DEPTH + n.to(tl.int64)[:, None] * DEPTH + k[None, :]
        if SCALED:
            expert_rows = expert.to(tl.int64) * SCALE_ROWS
            scales_N = weight_scales + (expert_rows + tl.load(row_blocks + n, mask=in_n, other=0)) * SCALE_COLUMNS
        acc_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for depth in range(0, DEPTH, BLOCK_K):
            in_k = (depth + k < DEPTH)[None, :]
            x_MK = tl.load(x_at + depth, mask=in_m[:, None] & in_k, other=0.0)
            weight_NK = tl.load(weight_at + depth, mask=in_n[:, None] & in_k, other=0.0)
            if SCALED:
                scale_N = tl.load(scales_N + (first_column + depth) // GROUP, mask=in_n, other=0.0)
                weight_NK = weight_NK.to(x.dtype.element_ty)
                product_MN = dot(x_MK, tl.trans(weight_NK), tl.zeros((BLOCK_M, BLOCK_N), tl.float32))
                acc_MN += product_MN * scale_N[None, :]
            else:
                acc_MN = dot(x_MK, tl.trans(weight_NK), acc_MN)
        if WEIGHTED:
            acc_MN = acc_MN * tl.load(pick_weights + pick_M, mask=in_m, other=0.0)[:, None]
            out_M = pick_M
        else:
            out_M = m.to(tl.int64)
        at_MN = out_M[:, None] * COLUMNS + n[None, :]
        tl.store(out + at_MN, rounded(acc_MN, out.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])
