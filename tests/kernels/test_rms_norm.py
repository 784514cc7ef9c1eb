from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, assert_close, normal
from tandem_kernels.reference import rms_norm as reference
from tandem_kernels.rms_norm import add_rms_norm, rms_norm, warps

SHAPES = [(1, 64), (3, 41), (2, 5120), (9, 7), (0, 64)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "size"), SHAPES)
def test_norm(rows: int, size: int, dtype: torch.dtype, device: str) -> None:
    x, weight = normal(rows, size, dtype=dtype, device=device), normal(size, dtype=dtype, device=device)
    assert_close(rms_norm(x, weight, 1e-6), reference.rms_norm(x.double(), weight.double(), 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "size"), SHAPES)
def test_norm_of_a_sum_that_becomes_the_residual(rows: int, size: int, dtype: torch.dtype, device: str) -> None:
    x, weight = normal(rows, size, dtype=dtype, device=device), normal(size, dtype=dtype, device=device)
    residual = normal(rows, size, dtype=dtype, device=device)
    norm_64, sum_64 = reference.add_rms_norm(x.double(), residual.double(), weight.double(), 1e-6)
    norm = add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, sum_64.to(dtype))
    assert_close(norm, norm_64)


def test_rows_may_be_strided(device: str) -> None:
    wide, weight = normal(3, 100, dtype=torch.float32, device=device), torch.ones(40, device=device)
    x = wide[:, 20:60]
    assert_close(rms_norm(x, weight, 1e-6), reference.rms_norm(x.double(), weight.double(), 1e-6))


def test_a_row_of_zeros_stays_finite(device: str) -> None:
    assert torch.equal(
        rms_norm(torch.zeros(1, 64, device=device), torch.ones(64, device=device), 1e-6).cpu(), torch.zeros(1, 64)
    )


def test_warps_follow_the_bytes_of_a_row() -> None:
    assert [warps(size, 2) for size in (64, 1024, 4096, 5120, 8192, 1 << 20)] == [1, 1, 4, 8, 8, 16]
    assert warps(4096, 4) == 8
