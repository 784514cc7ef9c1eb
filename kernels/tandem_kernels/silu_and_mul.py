"""SiLU of the gate times the up projection (arXiv:2002.05202), in one pass over the fused projection's output."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tandem_kernels.arithmetic import rounded
from tandem_kernels.launch import Launch, ceil_div

BLOCK = 1024


def silu_and_mul(gate_up_TI: torch.Tensor) -> torch.Tensor:
    """[T, 2 I] (gate, then up) -> [T, I]: silu(gate) * up, in fp32, returned in the argument's dtype."""
    rows, columns = gate_up_TI.shape
    out_TI = torch.empty((rows, columns // 2), dtype=gate_up_TI.dtype, device=gate_up_TI.device)
    launch(gate_up_TI, out_TI).run()
    return out_TI


def launch(gate_up_TI: torch.Tensor, out_TI: torch.Tensor) -> Launch:
    rows, size = out_TI.shape
    assert gate_up_TI.stride(1) == 1
    return Launch(
        silu_and_mul_kernel,
        (rows, ceil_div(size, BLOCK)),
        {"gate_up": gate_up_TI, "out": out_TI, "stride": gate_up_TI.stride(0)},
        {"SIZE": size, "BLOCK": BLOCK},
        num_warps=4,
    )


@triton.jit
def silu_and_mul_kernel(gate_up, out, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = at < SIZE
    gate = tl.load(gate_up + row * stride + at, mask=valid, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + SIZE + at, mask=valid, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    tl.store(out + row * SIZE + at, rounded(value, out.dtype.element_ty), mask=valid)
