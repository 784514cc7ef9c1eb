from __future__ import annotations

import pytest
import torch
from support.kernels import assert_close, normal
from tandem_kernels.fp8_gemm import BlockScales, fp8_gemm, tiles
from tandem_kernels.fp8_quantize import GROUP, fp8_quantize
from tandem_kernels.reference import fp8_gemm as reference


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "depth", "first_row", "first_column"),
    [(1, 256, 256, 0, 0), (20, 41, 192, 64, 64), (70, 192, 320, 32, 0), (0, 128, 128, 0, 0)],
)
def test_equals_the_dequantised_product(
    rows: int, columns: int, depth: int, first_row: int, first_column: int, dtype: torch.dtype, device: str
) -> None:
    """Shards of a larger weight, also such as begin inside a block."""
    x = fp8_quantize(normal(rows, depth, dtype=torch.float32, device=device))
    weight = (100 * normal(columns, depth, dtype=torch.float32, device=device)).to(torch.float8_e4m3fn)
    blocks = (-(-(first_row + columns) // GROUP), -(-(first_column + depth) // GROUP))
    scale = (torch.rand(blocks).add(0.5) / (100 * depth**0.5)).to(device)
    found = fp8_gemm(x, weight, BlockScales.of(scale, columns, first_row, first_column), dtype)
    expected = reference.fp8_gemm(
        x.x_TK.double(), x.scale_TG.double(), weight.double(), scale.double(), group=GROUP, first_row=first_row,
        first_column=first_column,
    )  # fmt: skip
    # Hopper's tensor cores keep 14 bits of a sum of fp8 products (arXiv:2412.19437, 3.3.2).
    assert_close(found, expected, scale=100 if dtype == torch.float32 else 1)


def test_tiles_grow_with_the_rows() -> None:
    assert [tiles(rows).rows for rows in (1, 16, 17, 33, 500)] == [16, 16, 32, 64, 64]
