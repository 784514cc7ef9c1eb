"""Block-wise fp8 weights to 16 bits: what a product of many tokens takes, for which reading the weights is little."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tandem_kernels.arithmetic import rounded
from tandem_kernels.fp8_gemm import BlockScales
from tandem_kernels.fp8_quantize import GROUP
from tandem_kernels.launch import Launch, ceil_div

BLOCK = 2048


def fp8_dequantize(weight_NK: torch.Tensor, scales: BlockScales, out_dtype: torch.dtype) -> torch.Tensor:
    """[N, K]: each entry times the scale of its block."""
    out_NK = torch.empty(weight_NK.shape, dtype=out_dtype, device=weight_NK.device)
    launch(weight_NK, scales, out_NK).run()
    return out_NK


def launch(weight_NK: torch.Tensor, scales: BlockScales, out_NK: torch.Tensor) -> Launch:
    rows, columns = weight_NK.shape
    assert weight_NK.is_contiguous()
    assert scales.scale_RC.is_contiguous()
    assert len(scales.row_blocks_N) == rows
    return Launch(
        fp8_dequantize_kernel,
        (rows, ceil_div(columns, BLOCK)),
        {
            "weight": weight_NK,
            "scales": scales.scale_RC,
            "row_blocks": scales.row_blocks_N,
            "out": out_NK,
            "first_column": scales.first_column,
        },
        {"COLUMNS": columns, "SCALE_COLUMNS": scales.scale_RC.shape[1], "GROUP": GROUP, "BLOCK": BLOCK},
        num_warps=4,
    )


@triton.jit
def fp8_dequantize_kernel(  # type: ignore[no-untyped-def]
    weight,
    scales,
    row_blocks,
    out,
    first_column,
    COLUMNS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = at < COLUMNS
    scales_of_row = scales + tl.load(row_blocks + row) * SCALE_COLUMNS
    scale = tl.load(scales_of_row + (first_column + at) // GROUP, mask=valid, other=0.0)
    value = tl.load(weight + row * COLUMNS + at, mask=valid, other=0.0).to(tl.float32) * scale
    tl.store(out + row * COLUMNS + at, rounded(value, out.dtype.element_ty), mask=valid)
