"""RMSNorm (arXiv:1910.07467), alone or after adding the residual stream in the same pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tandem_kernels.arithmetic import rounded
from tandem_kernels.launch import Launch, power_of_2

BYTES_PER_THREAD = 64
"""Four 16-byte loads in flight per thread and operand."""


def rms_norm(x_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension, in fp32, returned in x's dtype. Rows may be strided."""
    out_TE = torch.empty(x_TE.shape, dtype=x_TE.dtype, device=x_TE.device)
    launch(x_TE, None, weight_E, out_TE, eps).run()
    return out_TE


def add_rms_norm(x_TE: torch.Tensor, residual_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
    """Overwrites `residual_TE` with residual + x (rounded to its dtype) and returns the RMSNorm of that sum."""
    out_TE = torch.empty(x_TE.shape, dtype=x_TE.dtype, device=x_TE.device)
    launch(x_TE, residual_TE, weight_E, out_TE, eps).run()
    return out_TE


def launch(
    x_TE: torch.Tensor, residual_TE: torch.Tensor | None, weight_E: torch.Tensor, out_TE: torch.Tensor, eps: float
) -> Launch:
    rows, size = x_TE.shape
    assert x_TE.stride(1) == 1
    residual = x_TE if residual_TE is None else residual_TE
    assert residual.stride(1) == 1
    return Launch(
        rms_norm_kernel,
        (rows,),
        {
            "x": x_TE,
            "residual": residual,
            "weight": weight_E,
            "out": out_TE,
            "eps": eps,
            "x_stride": x_TE.stride(0),
            "residual_stride": residual.stride(0),
        },
        {"SIZE": size, "BLOCK": power_of_2(size), "ADD": residual_TE is not None},
        num_warps=warps(size, x_TE.element_size()),
    )


def warps(size: int, element_bytes: int) -> int:
    return min(16, max(1, power_of_2(size) * element_bytes // (32 * BYTES_PER_THREAD)))


@triton.jit
def rms_norm_kernel(  # type: ignore[no-untyped-def]
    x,
    residual,
    weight,
    out,
    eps,
    x_stride,
    residual_stride,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    valid = at < SIZE
    value = tl.load(x + row * x_stride + at, mask=valid, other=0.0).to(tl.float32)
    if ADD:
        sums = residual + row * residual_stride + at
        value += tl.load(sums, mask=valid, other=0.0).to(tl.float32)
        stored = rounded(value, residual.dtype.element_ty)
        tl.store(sums, stored, mask=valid)
        # The norm is of what later layers will read.
        value = stored.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / SIZE + eps)
    value = value * scale * tl.load(weight + at, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + at, rounded(value, out.dtype.element_ty), mask=valid)
