from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, PagedKV, assert_close, normal
from tandem_kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from tandem_kernels.reference import qk_norm_rope_kv_write as reference


def check(
    *,
    q_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    page_size: int = 4,
    dtype: torch.dtype = torch.float16,
    kv_dtype: torch.dtype | None = None,
    norm: bool = True,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    device: str,
) -> None:
    """Two sequences' tokens and one of padding; everything else in the cache must stay bit for bit as it was."""
    slots = torch.tensor([0, 1, 1, -1, 0], dtype=torch.int32, device=device)
    positions = torch.tensor([0, 6, 3, 999, 7], dtype=torch.int32, device=device)
    cache = PagedKV(
        [8, 8], kv_heads=kv_heads, head_dim=head_dim, page_size=page_size, dtype=kv_dtype or dtype, device=device
    )
    qkv = normal(5, q_heads + 2 * kv_heads, head_dim, dtype=dtype, device=device)
    angles = torch.rand(5, head_dim // 2) * 100
    # As YaRN's factor would, the tables also scale.
    cos, sin = (1.1 * angles.cos()).to(device), (1.1 * angles.sin()).to(device)
    weights = [normal(head_dim, dtype=dtype, device=device) for _ in range(2)] if norm else [None, None]
    expected_qkv, expected_kv = qkv.double(), cache.kv_PHLCSD.double()
    reference.qk_norm_rope_kv_write(
        expected_qkv, expected_kv[:, :, 1, 0], expected_kv[:, :, 1, 1], cache.page_table_SP, slots, positions,
        cos.double(), sin.double(), q_weight_D=_double(weights[0]), k_weight_D=_double(weights[1]), eps=1e-6,
    )  # fmt: skip
    before = cache.kv_PHLCSD.clone()
    qk_norm_rope_kv_write(
        qkv, *cache.layer(1), cache.page_table_SP, slots, positions, cos, sin, q_weight_D=weights[0],
        k_weight_D=weights[1], eps=1e-6, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip
    assert_close(qkv, expected_qkv)
    written = torch.zeros(before.shape[:1] + before.shape[4:5], dtype=torch.bool, device=device)
    for slot, position in [(0, 0), (1, 6), (1, 3), (0, 7)]:
        written[cache.page_table_SP[slot, position // page_size].long(), position % page_size] = True
    after, changed = cache.kv_PHLCSD.permute(0, 4, 1, 2, 3, 5), before.permute(0, 4, 1, 2, 3, 5)
    assert torch.equal(_bits(after[~written]), _bits(changed[~written]))
    assert torch.equal(_bits(after[written][:, :, 0]), _bits(changed[written][:, :, 0])), "another layer"
    scales_C1 = torch.tensor([k_scale, v_scale], dtype=torch.float64, device=device)[:, None]
    assert_close(after[written][:, :, 1], expected_kv.permute(0, 4, 1, 2, 3, 5)[written][:, :, 1] / scales_C1)


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


def _double(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
def test_q_in_place_k_and_v_in_their_pages(norm: bool, dtype: torch.dtype, device: str) -> None:
    check(norm=norm, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim"), [(1, 1, 64), (7, 7, 96), (5, 1, 128), (64, 2, 16), (33, 11, 128)]
)
def test_heads_in_any_grouping(q_heads: int, kv_heads: int, head_dim: int, device: str) -> None:
    check(q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, device=device)


@pytest.mark.parametrize("page_size", [1, 7, 64])
def test_page_sizes(page_size: int, device: str) -> None:
    check(page_size=page_size, device=device)


def test_fp8_cache(device: str) -> None:
    check(kv_dtype=torch.float8_e4m3fn, k_scale=0.5, v_scale=2.0, device=device)
