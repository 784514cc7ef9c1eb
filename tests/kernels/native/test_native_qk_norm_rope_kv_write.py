from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, assert_close, normal
from support.native_steps import LAYERS, Rig, Shape, positions, tables
from tandem_kernels.native import NativeOps
from tandem_kernels.reference.qk_norm_rope_kv_write import qk_norm_rope_kv_write

PARTS = [(0, 0, 1), (2, 15, 1), (3, 16, 1), (1, 0, 33), (4, 30, 5)]
EPS = 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("norms", [False, True])
def test_against_float64(dtype: torch.dtype, head_dim: int, norms: bool) -> None:
    shape = Shape(q_heads=3, kv_heads=3, head_dim=head_dim, page_size=7)
    rig = Rig([1, 33, 16, 17, 35], shape, dtype)
    rows = sum(count for _, _, count in PARTS)
    qkv = normal(rows, shape.heads, head_dim, dtype=dtype, device="cpu")
    weights = [1.0 + 0.1 * normal(head_dim, dtype=dtype, device="cpu") if norms else None for _ in range(2)]
    before, expected = rig.paged.kv_PHLCSD.clone(), rig.paged.kv_PHLCSD.double()
    found, expected_qkv = qkv.clone(), qkv.double()

    NativeOps(dtype).qk_norm_rope_kv_write(
        rig.cache, rig.step(PARTS), 1, found, q_weight_D=weights[0], k_weight_D=weights[1], eps=EPS
    )

    cos, sin = tables(positions(PARTS), head_dim)
    qk_norm_rope_kv_write(
        expected_qkv,
        expected[:, :, 1, 0],
        expected[:, :, 1, 1],
        rig.paged.page_table_SP,
        torch.cat([torch.full((count,), slot) for slot, _, count in PARTS]),
        positions(PARTS),
        cos.double(),
        sin.double(),
        q_weight_D=None if weights[0] is None else weights[0].double(),
        k_weight_D=None if weights[1] is None else weights[1].double(),
        eps=EPS,
    )
    assert_close(found[:, : shape.q_heads], expected_qkv[:, : shape.q_heads])
    written = rig.paged.kv_PHLCSD
    assert torch.equal(written[:, :, 0].nan_to_num(), before[:, :, 0].nan_to_num()), "another layer's tiles"
    assert LAYERS == 2
    torch.testing.assert_close(written.double(), expected, rtol=2e-2, atol=2e-2, equal_nan=True)
    tight = expected[:, :, 1].isfinite()
    assert_close(written[:, :, 1][tight], expected[:, :, 1][tight])


def test_a_token_has_the_same_bits_in_every_batch() -> None:
    shape = Shape(q_heads=6, kv_heads=2, head_dim=64)
    rig, ops = Rig([120], shape, torch.bfloat16), NativeOps(torch.bfloat16)
    qkv = normal(120, shape.heads, 64, dtype=torch.bfloat16, device="cpu")
    whole = qkv.clone()
    ops.qk_norm_rope_kv_write(rig.cache, rig.step([(0, 0, 120)]), 0, whole)
    pages = rig.paged.kv_PHLCSD.clone()
    for first in range(0, 120, 7):
        part = qkv[first : first + 7].clone()
        ops.qk_norm_rope_kv_write(rig.cache, rig.step([(0, first, len(part))]), 0, part)
        assert torch.equal(part[:, :6], whole[first : first + 7, :6])
    assert torch.equal(pages.nan_to_num(), rig.paged.kv_PHLCSD.nan_to_num())
