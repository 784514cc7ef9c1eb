from __future__ import annotations

import pytest
import torch
from tandem_runtime.execution.layers.linear_cpu import OneDnnLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    """oneDNN's product of a single row sums in another order than every other: seen in a tenth of a percent of bf16."""
    torch.manual_seed(0)
    linear = OneDnnLinear(torch.randn(576, 4096).to(dtype) * 0.02, torch.randn(576).to(dtype))
    x, residual = torch.randn(100, 4096).to(dtype), torch.randn(100, 576).to(dtype)
    with torch.inference_mode():
        whole, added = linear(x), linear.add_to(residual.clone(), x)
        for first, count in [*((row, 1) for row in range(20)), (20, 2), (22, 3), (25, 40)]:
            rows = slice(first, first + count)
            assert torch.equal(linear(x[rows]), whole[rows])
            assert torch.equal(linear.add_to(residual[rows].clone(), x[rows]), added[rows])
