from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, assert_close, normal
from tandem_kernels.fp8_gemm import BlockScales
from tandem_kernels.moe_gemm import Picks, down, gate_up, tiles
from tandem_kernels.reference import moe_gemm as reference
from tandem_kernels.reference.fp8_dequantize import fp8_dequantize


def chosen(tokens: int, top_k: int, experts: int, device: str, *, only: int | None = None) -> torch.Tensor:
    """Different experts for each token; with `only`, that many of the experts are ever chosen."""
    return torch.stack([torch.randperm(only or experts)[:top_k] for _ in range(tokens)]).int().to(device)


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "only", "dtype"),
    [
        *((9, 3, 5, None, dtype) for dtype in DTYPES),
        (1, 2, 6, None, torch.float32),
        (40, 1, 4, 1, torch.float16),
        (130, 2, 3, 2, torch.bfloat16),
    ],
    ids=str,
)
def test_both_products(
    tokens: int, top_k: int, experts: int, only: int | None, dtype: torch.dtype, device: str
) -> None:
    hidden, inner = 72, 41
    picked = chosen(tokens, top_k, experts, device, only=only)
    picks = Picks.of(picked, experts)
    x = normal(tokens, hidden, dtype=dtype, device=device)
    weight = (normal(experts, inner, hidden, dtype=torch.float32, device=device) / hidden**0.5).to(dtype)
    found = gate_up(x, weight, picks, top_k)
    assert_close(found, reference.gate_up(x.double(), weight.double(), picked)[picks.sorted_P])

    weights = torch.rand(tokens, top_k, device=device)
    back = (normal(experts, hidden, inner, dtype=torch.float32, device=device) / inner**0.5).to(dtype)
    inner_in_pick_order = torch.empty_like(found)
    inner_in_pick_order[picks.sorted_P] = found
    expected = reference.down(inner_in_pick_order.double(), back.double(), picked, weights.double())
    assert_close(down(found, back, picks, weights), expected)


@pytest.mark.parametrize(("tokens", "inner", "first_column"), [(5, 192, 64), (40, 128, 0)])
def test_fp8_weights_of_a_shard_that_begins_inside_a_block(
    tokens: int, inner: int, first_column: int, device: str
) -> None:
    experts, top_k, hidden = 3, 2, 136
    picked = chosen(tokens, top_k, experts, device)
    picks = Picks.of(picked, experts)

    def quantised(rows: int, columns: int, first_column: int) -> tuple[torch.Tensor, BlockScales, torch.Tensor]:
        weight = normal(experts, rows, columns, dtype=torch.float32, device=device).to(torch.float8_e4m3fn)
        blocks = (experts, -(-(64 + rows) // 128), -(-(first_column + columns) // 128))
        scale = (torch.rand(blocks).add(0.5) / columns**0.5).to(device)
        one = BlockScales.of(scale[0], rows, 64, first_column)
        plain = [
            fp8_dequantize(
                weight[x].double(), scale[x].double(), one.row_blocks_N, group=128, first_column=first_column
            )
            for x in range(experts)
        ]
        return weight, one._replace(scale_RC=scale), torch.stack(plain)

    x = normal(tokens, hidden, dtype=torch.bfloat16, device=device)
    weight, scales, plain = quantised(inner, hidden, 0)
    found = gate_up(x, weight, picks, top_k, scales)
    assert_close(found, reference.gate_up(x.double(), plain, picked)[picks.sorted_P])

    weights = torch.rand(tokens, top_k, device=device)
    weight, scales, plain = quantised(hidden, inner, first_column)
    in_pick_order = torch.empty_like(found)
    in_pick_order[picks.sorted_P] = found
    expected = reference.down(in_pick_order.double(), plain, picked, weights.double())
    assert_close(down(found, weight, picks, weights, scales), expected)


def test_picks_are_sorted_by_expert_and_keep_their_order(device: str) -> None:
    picks = Picks.of(torch.tensor([[2, 0], [0, 3], [2, 3]], dtype=torch.int32, device=device), 5)
    assert picks.sorted_P.tolist() == [1, 2, 0, 4, 3, 5]
    assert picks.ends_X.tolist() == [2, 2, 4, 6, 6]


def test_no_tokens(device: str) -> None:
    picks = Picks.of(torch.zeros(0, 2, dtype=torch.int32, device=device), 4)
    x, weight = torch.zeros(0, 16, device=device), torch.zeros(4, 8, 16, device=device)
    assert gate_up(x, weight, picks, 2).shape == (0, 8)


def test_tiles_follow_the_picks_of_an_expert() -> None:
    assert [tiles(n, 2, 90).rows for n in (0.5, 4, 16, 17, 64, 256)] == [16, 16, 16, 64, 64, 128]
    assert tiles(256, 2, 80).rows == 64
