"""The sum of each token's experts, and of the residual stream."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tandem_kernels.arithmetic import rounded
from tandem_kernels.launch import Launch, ceil_div

BLOCK = 1024


def moe_combine(y_PH: torch.Tensor, top_k: int, residual_TH: torch.Tensor | None = None) -> torch.Tensor:
    """[T, H]: rows t * top_k .. of `y_PH` added up in fp32, and the residual; in y's dtype."""
    out_TH = y_PH.new_empty(len(y_PH) // top_k, y_PH.shape[1])
    launch(y_PH, residual_TH, out_TH, top_k).run()
    return out_TH


def launch(y_PH: torch.Tensor, residual_TH: torch.Tensor | None, out_TH: torch.Tensor, top_k: int) -> Launch:
    tokens, size = out_TH.shape
    assert y_PH.is_contiguous()
    assert residual_TH is None or residual_TH.is_contiguous()
    return Launch(
        moe_combine_kernel,
        (tokens, ceil_div(size, BLOCK)),
        {"y": y_PH, "residual": y_PH if residual_TH is None else residual_TH, "out": out_TH},
        {"SIZE": size, "TOP_K": top_k, "ADD": residual_TH is not None, "BLOCK": BLOCK},
        num_warps=4,
    )


@triton.jit
def moe_combine_kernel(  # type: ignore[no-untyped-def]
    y, residual, out, SIZE: tl.constexpr, TOP_K: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sum_H = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TOP_K):
        sum_H += tl.load(y + (token * TOP_K + i) * SIZE + at, mask=at < SIZE, other=0.0).to(tl.float32)
    if ADD:
        sum_H += tl.load(residual + token * SIZE + at, mask=at < SIZE, other=0.0).to(tl.float32)
    tl.store(out + token * SIZE + at, rounded(sum_H, out.dtype.element_ty), mask=at < SIZE)
