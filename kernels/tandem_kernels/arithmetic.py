"""Device functions that several kernels share."""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Under Triton's interpreter, which gets three things wrong: products of bf16, rounding to bf16 (it truncates) and
rounding to fp8 (it loses a carry)."""


@triton.jit
def dot(a, b, acc):  # type: ignore[no-untyped-def]
    """acc + a b, accumulated in fp32; fp32 operands are not rounded to TF32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 to `dtype`, to nearest even."""
    if INTERPRETED and (dtype == tl.bfloat16 or dtype == tl.float8e4nv):
        DROPPED: tl.constexpr = 16 if dtype == tl.bfloat16 else 20
        bits = x.to(tl.uint32, bitcast=True)
        bits += (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)
        x = ((bits >> DROPPED) << DROPPED).to(tl.float32, bitcast=True)
    return x.to(dtype)
