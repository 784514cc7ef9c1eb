from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, assert_close, normal
from tandem_kernels.moe_combine import BLOCK, moe_combine
from tandem_kernels.reference import moe_combine as reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize(("tokens", "top_k", "size"), [(1, 1, 7), (3, 8, BLOCK + 1), (0, 2, 8)])
def test_sums(tokens: int, top_k: int, size: int, add: bool, dtype: torch.dtype, device: str) -> None:
    y = normal(tokens * top_k, size, dtype=dtype, device=device)
    residual = normal(tokens, size, dtype=dtype, device=device) if add else None
    expected = reference.moe_combine(y.double(), top_k, None if residual is None else residual.double())
    assert_close(moe_combine(y, top_k, residual), expected)
