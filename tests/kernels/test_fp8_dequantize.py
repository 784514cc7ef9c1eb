from __future__ import annotations

import pytest
import torch
from support.kernels import assert_close, normal
from tandem_kernels.fp8_dequantize import fp8_dequantize
from tandem_kernels.fp8_gemm import BlockScales
from tandem_kernels.fp8_quantize import GROUP
from tandem_kernels.reference import fp8_dequantize as reference


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "first_row", "first_column"), [(3, 2304, 0, 0), (130, 192, 64, 64), (0, 128, 0, 0)]
)
def test_each_entry_times_its_blocks_scale(
    rows: int, columns: int, first_row: int, first_column: int, dtype: torch.dtype, device: str
) -> None:
    weight = normal(rows, columns, dtype=torch.float32, device=device).to(torch.float8_e4m3fn)
    blocks = (max(1, -(-(first_row + rows) // GROUP)), -(-(first_column + columns) // GROUP))
    scales = BlockScales.of(torch.rand(blocks).add(0.5).to(device), rows, first_row, first_column)
    expected = reference.fp8_dequantize(
        weight.double(), scales.scale_RC.double(), scales.row_blocks_N, group=GROUP, first_column=first_column
    )
    assert_close(fp8_dequantize(weight, scales, dtype), expected)
