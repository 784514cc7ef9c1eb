from __future__ import annotations

from collections.abc import Iterator

import torch
from measuring import Case, bf16, nbytes
from tandem_kernels.fp8_dequantize import launch
from tandem_kernels.fp8_gemm import BlockScales

SHAPES = {"qkv": (10240, 5120), "gate, up": (51200, 5120), "down": (5120, 25600)}
"""Of Qwen3-32B."""


def cases() -> Iterator[Case]:
    for name, (rows, columns) in SHAPES.items():
        weight = bf16(rows, columns).to(torch.float8_e4m3fn)
        scale = torch.rand(rows // 128, columns // 128, device="cuda")
        out = bf16(rows, columns)
        yield Case(name, launch(weight, BlockScales.of(scale, rows), out).run, nbytes(weight, scale, out))
