"""The product on packed weights: right, and every row by itself."""

from __future__ import annotations

import pytest
import torch
from support.kernels import assert_close, normal
from tandem_kernels.native import PackedWeight, has_packed_linear

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(not has_packed_linear(BF16), reason="needs avx512_bf16, and oneDNN serves AMX")
SHAPES = [(1, 1), (15, 2), (16, 3), (17, 64), (41, 7), (48, 576), (97, 33), (960, 576)]


def packed(weight_NK: torch.Tensor, step: int = 1000) -> PackedWeight:
    weight = PackedWeight(*weight_NK.shape)
    for first in range(0, len(weight_NK), step):
        weight.write(first, weight_NK[first : first + step])
    return weight


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 9, 65, 130])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape: tuple[int, int], rows: int) -> None:
    n, k = shape
    weight, x = normal(n, k, dtype=BF16, device="cpu"), normal(rows, k, dtype=BF16, device="cpu")
    bias, residual = normal(n, dtype=BF16, device="cpu"), normal(rows, n, dtype=BF16, device="cpu")
    before = residual.clone()
    product, exact = packed(weight), x.double() @ weight.double().T
    assert_close(product.product(x), exact)
    assert_close(product.product(x, bias), exact + bias.double())
    assert_close(product.product(x, bias, residual), exact + bias.double() + residual.double())
    assert torch.equal(residual, before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_a_batch(shape: tuple[int, int]) -> None:
    n, k = shape
    weight, x = packed(normal(n, k, dtype=BF16, device="cpu")), normal(150, k, dtype=BF16, device="cpu")
    whole = weight.product(x)
    for first, count in [*((row, 1) for row in range(20)), (20, 2), (22, 3), (25, 40), (3, 147)]:
        rows = slice(first, first + count)
        assert torch.equal(weight.product(x[rows]), whole[rows])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("step", [1, 5, 16, 1000])
def test_rows_come_back_as_they_were_written(shape: tuple[int, int], step: int) -> None:
    n, k = shape
    weight = normal(n, k, dtype=BF16, device="cpu")
    ids = torch.randint(n, (37,))
    assert torch.equal(packed(weight, step).rows(ids), weight[ids])


def test_what_is_not_finite_stays_in_its_row_and_column() -> None:
    """Padding is never multiplied with what it should not see."""
    weight, x = torch.ones(17, 3, dtype=BF16), torch.ones(2, 3, dtype=BF16)
    weight[16, 2], x[1, 2] = float("inf"), float("nan")
    found = packed(weight).product(x)
    assert torch.equal(found[0, :16], torch.full((16,), 3.0, dtype=BF16))
    assert found[0, 16] == float("inf")
    assert found[1].isnan().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"x_TK": torch.zeros(4, 8)},
        {"x_TK": torch.zeros(4, 7, dtype=BF16)},
        {"x_TK": torch.zeros(8, 4, dtype=BF16).T},
        {"residual_TN": torch.zeros(3, 20, dtype=BF16)},
        {"residual_TN": torch.zeros(4, 20)},
        {"residual_TN": torch.zeros(20, 4, dtype=BF16).T},
    ],
)
def test_what_the_kernel_would_read_wrongly_never_reaches_it(changes: dict[str, torch.Tensor]) -> None:
    fits = {"x_TK": torch.zeros(4, 8, dtype=BF16), "residual_TN": torch.zeros(4, 20, dtype=BF16)}
    weight = PackedWeight(20, 8)
    assert weight.product(**fits).shape == (4, 20)
    with pytest.raises(AssertionError):
        weight.product(**(fits | changes))
