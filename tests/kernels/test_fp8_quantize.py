from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, assert_close, normal
from tandem_kernels.fp8_quantize import BLOCK_GROUPS, GROUP, fp8_quantize
from tandem_kernels.reference import fp8_quantize as reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (3, 192), (2, GROUP * BLOCK_GROUPS + 8), (0, 128)])
def test_every_group_fills_the_range(rows: int, columns: int, dtype: torch.dtype, device: str) -> None:
    x = normal(rows, columns, dtype=dtype, device=device) * torch.rand(columns, device=device).to(dtype)
    found, scale = fp8_quantize(x)
    expected, expected_scale = reference.fp8_quantize(x.double(), GROUP)
    assert_close(scale, expected_scale)
    assert_close(found, expected)


def test_zeros_stay_zeros(device: str) -> None:
    found, scale = fp8_quantize(torch.zeros(1, 128, device=device))
    assert not found.float().any()
    assert bool((scale > 0).all())
