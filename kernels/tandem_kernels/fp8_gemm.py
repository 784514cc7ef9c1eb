"""Block-wise fp8 product for few tokens: activations scaled by 128 columns, weights by blocks of 128 x 128.

For decode, where reading the weights is all that costs. A tensor-parallel shard need not begin at a block's border
(1536 / 8 = 192), and a weight may be several shards below one another: it brings the scales of all blocks that it
touches, says which block each row is of, and how far into its first block of columns it begins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from tandem_kernels.arithmetic import dot, rounded
from tandem_kernels.fp8_quantize import GROUP, Quantized
from tandem_kernels.launch import Launch, ceil_div

MIN_DEPTH = 64
"""Columns of one product: what a shard's first column must be a multiple of, so that one scale holds for all."""


class BlockScales(NamedTuple):
    scale_RC: torch.Tensor
    """fp32: of the blocks of 128 x 128 that the weight touches."""
    row_blocks_N: torch.Tensor
    """int32: the row of `scale_RC` that each row of the weight belongs to."""
    first_column: int = 0
    """Of the weight's first column in its first block; a multiple of `MIN_DEPTH`."""
    rows_in_blocks: bool = False
    """Whether every 128 rows, from the first on, are of one block: what a product by blocks can count on."""

    @classmethod
    def of(cls, scale_RC: torch.Tensor, rows: int, first_row: int = 0, first_column: int = 0) -> BlockScales:
        """Of one shard that begins `first_row` rows and `first_column` columns into its first block."""
        at_N = torch.arange(first_row, first_row + rows, device=scale_RC.device)
        return cls(scale_RC, (at_N // GROUP).int(), first_column, first_row == 0)

    @property
    def depth(self) -> int:
        """Columns that one product can take, as one scale must hold for all of them."""
        return GROUP if self.first_column % GROUP == 0 else MIN_DEPTH


class Tiles(NamedTuple):
    rows: int
    columns: int
    num_warps: int
    num_stages: int


def fp8_gemm(x: Quantized, weight_NK: torch.Tensor, scales: BlockScales, out_dtype: torch.dtype) -> torch.Tensor:
    """[T, N]: x W^T of the dequantised numbers, accumulated in fp32. weight_NK: float8_e4m3fn."""
    out_TN = torch.empty((len(x.x_TK), len(weight_NK)), dtype=out_dtype, device=weight_NK.device)
    launch(x, weight_NK, scales, out_TN).run()
    return out_TN


def tiles(rows: int) -> Tiles:
    """Narrow tiles at few rows, so that enough programs read the weights at once."""
    if rows <= 16:
        return Tiles(16, 32, 4, 5)
    if rows <= 32:
        return Tiles(32, 64, 4, 4)
    return Tiles(64, 64, 4, 4)


def launch(
    x: Quantized, weight_NK: torch.Tensor, scales: BlockScales, out_TN: torch.Tensor, tile: Tiles | None = None
) -> Launch:
    rows, depth = x.x_TK.shape
    columns = len(weight_NK)
    assert weight_NK.shape[1] == depth
    assert weight_NK.is_contiguous()
    assert x.scale_TG.is_contiguous()
    assert scales.first_column % MIN_DEPTH == 0
    assert scales.scale_RC.is_contiguous()
    assert len(scales.row_blocks_N) == columns
    assert scales.scale_RC.shape[1] * GROUP >= scales.first_column + depth
    tile = tile or tiles(rows)
    return Launch(
        fp8_gemm_kernel,
        # Rows fastest: the tiles that read the same weights run together.
        (ceil_div(rows, tile.rows), ceil_div(columns, tile.columns)),
        {
            "x": x.x_TK,
            "x_scales": x.scale_TG,
            "weight": weight_NK,
            "weight_scales": scales.scale_RC,
            "out": out_TN,
            "row_blocks": scales.row_blocks_N,
            "rows": rows,
            "first_column": scales.first_column,
        },
        {
            "COLUMNS": columns,
            "DEPTH": depth,
            "GROUPS": x.scale_TG.shape[1],
            "SCALE_COLUMNS": scales.scale_RC.shape[1],
            "GROUP": GROUP,
            "BLOCK_M": tile.rows,
            "BLOCK_N": tile.columns,
            "BLOCK_K": scales.depth,
        },
        tile.num_warps,
        tile.num_stages,
    )


@triton.jit
def fp8_gemm_kernel(  # type: ignore[no-untyped-def]
    x,
    x_scales,
    weight,
    weight_scales,
    out,
    row_blocks,
    rows,
    first_column,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUPS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    in_m = m < rows
    in_n = n < COLUMNS
    row_M = m.to(tl.int64)
    column_N = n.to(tl.int64)
    scales_M = x_scales + row_M * GROUPS
    scales_N = weight_scales + tl.load(row_blocks + n, mask=in_n, other=0) * SCALE_COLUMNS
    acc_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for depth in range(0, DEPTH, BLOCK_K):
        in_k = (depth + k < DEPTH)[None, :]
        x_MK = tl.load(x + row_M[:, None] * DEPTH + (depth + k)[None, :], mask=in_m[:, None] & in_k, other=0.0)
        weight_NK = tl.load(
            weight + column_N[:, None] * DEPTH + (depth + k)[None, :], mask=in_n[:, None] & in_k, other=0.0
        )
        scale_M = tl.load(scales_M + depth // GROUP, mask=in_m, other=0.0)
        scale_N = tl.load(scales_N + (first_column + depth) // GROUP, mask=in_n, other=0.0)
        product_MN = dot(x_MK, tl.trans(weight_NK), tl.zeros((BLOCK_M, BLOCK_N), tl.float32))
        acc_MN += product_MN * scale_M[:, None] * scale_N[None, :]
    at_MN = row_M[:, None] * COLUMNS + n[None, :]
    tl.store(out + at_MN, rounded(acc_MN, out.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])
