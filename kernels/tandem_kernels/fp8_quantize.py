"""Activations to fp8 (e4m3), each 128 columns of a token with a scale of their own, as block-wise fp8 products want.

DeepSeek-V3 (arXiv:2412.19437), 3.3.2; the recipe of Qwen3's official FP8 checkpoints.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from tandem_kernels.arithmetic import rounded
from tandem_kernels.launch import Launch, ceil_div

GROUP = 128
BLOCK_GROUPS = 8
PADDING = 16
"""Rows that `fp8_quantize_padded` rounds up to: libraries ask for 4, and 16 make all launches alike."""


class Quantized(NamedTuple):
    x_TK: torch.Tensor
    """float8_e4m3fn."""
    scale_TG: torch.Tensor
    """fp32 [T, ceil(K / 128)]: what a group was divided by; strided."""


def fp8_quantize(x_TK: torch.Tensor) -> Quantized:
    """x / scale, the largest entry of each group becoming 448; a group of zeros stays zeros."""
    rows, columns = x_TK.shape
    found = Quantized(
        torch.empty((rows, columns), dtype=torch.float8_e4m3fn, device=x_TK.device),
        torch.empty((rows, ceil_div(columns, GROUP)), dtype=torch.float32, device=x_TK.device),
    )
    launch(x_TK, found).run()
    return found


def fp8_quantize_padded(x_TK: torch.Tensor) -> Quantized:
    """The same for `fp8_scaled_mm`: scales of all rows for one group after the other, and rows rounded up to `PADDING`,
    of which those beyond x's hold anything."""
    rows, columns = ceil_div(len(x_TK), PADDING) * PADDING, x_TK.shape[1]
    found = Quantized(
        torch.empty((rows, columns), dtype=torch.float8_e4m3fn, device=x_TK.device),
        torch.empty((ceil_div(columns, GROUP), rows), dtype=torch.float32, device=x_TK.device).t(),
    )
    launch(x_TK, found).run()
    return found


def launch(x_TK: torch.Tensor, found: Quantized) -> Launch:
    rows, columns = x_TK.shape
    assert x_TK.stride(1) == 1
    return Launch(
        fp8_quantize_kernel,
        (rows, ceil_div(columns, GROUP * BLOCK_GROUPS)),
        {
            "x": x_TK,
            "out": found.x_TK,
            "scales": found.scale_TG,
            "x_row": x_TK.stride(0),
            "scale_row": found.scale_TG.stride(0),
            "scale_group": found.scale_TG.stride(1),
        },
        {"COLUMNS": columns, "GROUPS": ceil_div(columns, GROUP), "GROUP": GROUP, "BLOCK_G": BLOCK_GROUPS},
        num_warps=4,
    )


@triton.jit
def fp8_quantize_kernel(  # type: ignore[no-untyped-def]
    x,
    out,
    scales,
    x_row,
    scale_row,
    scale_group,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    at_GC = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    value_GC = tl.load(x + row * x_row + at_GC, mask=at_GC < COLUMNS, other=0.0).to(tl.float32)
    scale_G = tl.maximum(tl.max(tl.abs(value_GC), 1), 1e-10) / 448.0
    tl.store(scales + row * scale_row + g * scale_group, scale_G, mask=g < GROUPS)
    quantized_GC = rounded(value_GC / scale_G[:, None], out.dtype.element_ty)
    tl.store(out + row * COLUMNS + at_GC, quantized_GC, mask=at_GC < COLUMNS)
