from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, assert_close, normal
from tandem_kernels import silu_and_mul as op
from tandem_kernels.reference import silu_and_mul as reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (9, 287), (3, op.BLOCK), (2, 2 * op.BLOCK + 1), (0, 8)])
def test_silu_and_mul(rows: int, size: int, dtype: torch.dtype, device: str) -> None:
    gate_up = normal(rows, 2 * size, dtype=dtype, device=device) * 3
    assert_close(op.silu_and_mul(gate_up), reference.silu_and_mul(gate_up.double()))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, under the interpreter
def test_extreme_gates_stay_finite(device: str) -> None:
    gate_up = torch.tensor([[-1e4, 1e4, -80.0, 0.0, 1.0, 1.0, 1.0, 5.0]], device=device)
    assert_close(op.silu_and_mul(gate_up), reference.silu_and_mul(gate_up.double()))
