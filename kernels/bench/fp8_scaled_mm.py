"""Many tokens in fp8 by the library, by `fp8_gemm`, and widened to 16 bits: the choice of `most_rows_for_kernel`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from fp8_gemm import SHAPES
from measuring import Case, bf16, nbytes
from tandem_kernels.fp8_dequantize import fp8_dequantize
from tandem_kernels.fp8_gemm import BlockScales, fp8_gemm
from tandem_kernels.fp8_quantize import fp8_quantize
from tandem_kernels.fp8_scaled_mm import fp8_scaled_mm, library_weight, supported


def cases() -> Iterator[Case]:
    """Rounding of the activations included; floors are those of 16-bit arithmetic."""
    for name in ("gate, up", "out"):
        columns, depth = SHAPES[name]
        weight = bf16(columns, depth).to(torch.float8_e4m3fn)
        scales = BlockScales.of(torch.rand(columns // 128, depth // 128, device="cuda"), columns)
        library = library_weight(weight, scales)
        assert library is not None
        for rows in (64, 128, 192, 256, 512, 3500):
            x = bf16(rows, depth)
            moved, flops = nbytes(x, weight) + 2 * rows * columns, 2.0 * rows * columns * depth
            if supported(torch.device("cuda"), torch.bfloat16):
                yield Case(f"{name} {rows} library", lambda: fp8_scaled_mm(x, library), moved, flops)  # noqa: B023
            yield Case(
                f"{name} {rows} kernel",
                lambda: fp8_gemm(fp8_quantize(x), weight, scales, torch.bfloat16),  # noqa: B023
                moved,
                flops,
            )
            yield Case(
                f"{name} {rows} widened",
                lambda: x @ fp8_dequantize(weight, scales, torch.bfloat16).t(),  # noqa: B023
                moved,
                flops,
            )
