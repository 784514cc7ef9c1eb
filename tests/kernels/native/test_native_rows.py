"""RMSNorm and SiLU-and-mul: every row by itself."""

from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, assert_close, normal
from tandem_kernels.native import NativeOps
from tandem_kernels.reference import rms_norm as norm_reference
from tandem_kernels.reference import silu_and_mul as silu_reference

SIZES = [1, 15, 16, 33, 72, 576, 1000]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm(dtype: torch.dtype, size: int) -> None:
    wide = normal(41, size + 3, dtype=dtype, device="cpu")
    x, weight = wide[:, :size], normal(size, dtype=dtype, device="cpu")
    found = NativeOps(dtype).rms_norm(x, weight, 1e-5)
    assert_close(found, norm_reference.rms_norm(x.double(), weight.double(), 1e-5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_silu_and_mul(dtype: torch.dtype, size: int) -> None:
    gate_up = 4 * normal(41, 2 * size, dtype=dtype, device="cpu")
    assert_close(NativeOps(dtype).silu_and_mul(gate_up), silu_reference.silu_and_mul(gate_up.double()))


def test_silu_at_the_ends_of_its_range() -> None:
    gates = torch.tensor([0.0, -0.0, 1e-30, -86.9, -87.1, -1e4, 87.9, 88.1, 1e4, float("inf"), float("nan"), 1.0])
    found = NativeOps(torch.float32).silu_and_mul(torch.cat((gates, torch.ones(12)))[None])[0]
    torch.testing.assert_close(found, torch.nn.functional.silu(gates), rtol=1e-5, atol=1e-30, equal_nan=True)


def test_rounding_to_bfloat16_is_torchs() -> None:
    """To nearest, ties to even, NaN stays NaN, what is too large becomes infinite."""
    bits = torch.randint(-(2**31), 2**31 - 1, (4096,), dtype=torch.int32)
    numbers = torch.cat((bits.view(torch.float32), torch.tensor([3.4e38, -3.4e38, float("inf"), float("nan")])))
    ups = numbers.bfloat16()
    # silu(x) is x itself for large x: the product's rounding is what is left to see.
    gates = torch.full_like(ups, 128.0)
    found = NativeOps(torch.bfloat16).silu_and_mul(torch.cat((gates, ups))[None])[0]
    torch.testing.assert_close(found, (gates.float() * ups.float()).bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    ops = NativeOps(dtype)
    x, weight = normal(200, 576, dtype=dtype, device="cpu"), normal(576, dtype=dtype, device="cpu")
    torch.set_num_threads(2)
    normed, gated = ops.rms_norm(x, weight, 1e-5), ops.silu_and_mul(x)
    for first, count in ((0, 1), (3, 2), (50, 150)):
        rows = x[first : first + count]
        assert torch.equal(ops.rms_norm(rows, weight, 1e-5), normed[first : first + count])
        assert torch.equal(ops.silu_and_mul(rows), gated[first : first + count])
