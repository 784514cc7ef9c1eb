from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, normal
from tandem_kernels.moe_route import moe_route
from tandem_kernels.reference import moe_route as reference


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 128, 8), (9, 60, 4), (3, 6, 2), (2, 5, 5), (0, 8, 1)])
def test_routes_to_the_most_likely(tokens: int, experts: int, top_k: int, normalise: bool, device: str) -> None:
    logits = normal(tokens, experts, dtype=torch.float32, device=device)
    weights, chosen = moe_route(logits, top_k, normalise=normalise)
    expected_weights, expected = reference.moe_route(logits.double(), top_k, normalise=normalise)
    assert torch.equal(chosen.long(), expected)
    torch.testing.assert_close(weights.double(), expected_weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_smaller_index(dtype: torch.dtype, device: str) -> None:
    logits = torch.zeros(1, 8, dtype=dtype, device=device)
    weights, chosen = moe_route(logits, 3, normalise=False)
    assert chosen.tolist() == [[0, 1, 2]]
    assert weights.tolist() == [[0.125] * 3]


def test_a_token_of_nan_goes_to_experts_that_exist(device: str) -> None:
    """Symptom: index 8 of 8 experts, which is an assertion on the device and the end of the engine."""
    logits = torch.full((2, 6), float("nan"), device=device)
    logits[1] = torch.arange(6.0)
    chosen = moe_route(logits, 2, normalise=True).experts_TK
    assert chosen[1].tolist() == [5, 4]
    assert bool(((chosen >= 0) & (chosen < 6)).all())
