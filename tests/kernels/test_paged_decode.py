from __future__ import annotations

import math

import pytest
import torch
from support.kernels import DTYPES, PagedKV, assert_close, normal
from tandem_kernels.paged_decode import (
    MAX_SPLITS,
    MIN_SPLIT_TOKENS,
    PROGRAMS_PER_SM,
    choose_splits,
    launches,
    paged_decode,
    tiles,
)
from tandem_kernels.reference import paged_decode as reference


def check(
    cache: PagedKV,
    lengths: list[int],
    heads: int,
    *,
    splits: int,
    dtype: torch.dtype,
    device: str,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Rows in another order than their slots, q a strided part of a wider tensor."""
    k, v = cache.layer(1)
    dim = k.shape[3]
    slots = torch.randperm(len(lengths)).int()
    lengths_B = torch.tensor(lengths, dtype=torch.int32)[slots.long()]
    q = normal(len(lengths), heads + 3, dim, dtype=dtype, device=device)[:, :heads]
    scale = dim**-0.5
    found = paged_decode(
        q,
        k,
        v,
        cache.page_table_SP,
        slots.to(device),
        lengths_B.to(device),
        scale=scale,
        splits=splits,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    k_64, v_64 = k.double() * k_scale, v.double() * v_scale
    expected = reference.paged_decode(q.double(), k_64, v_64, cache.page_table_SP, slots, lengths_B, scale=scale)
    assert_close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("splits", [1, 3])
def test_lengths_around_page_borders(splits: int, dtype: torch.dtype, device: str) -> None:
    lengths = [1, 3, 4, 5, 64, 65, 0]
    cache = PagedKV(lengths, kv_heads=2, head_dim=64, page_size=4, dtype=dtype, device=device)
    check(cache, lengths, 6, splits=splits, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(1, 1, 64), (7, 7, 96), (5, 1, 128), (64, 2, 16), (9, 3, 64), (40, 8, 96)]
)
def test_heads_in_any_grouping(heads: int, kv_heads: int, head_dim: int, device: str) -> None:
    lengths = [19, 33]
    cache = PagedKV(lengths, kv_heads=kv_heads, head_dim=head_dim, page_size=16, dtype=torch.float16, device=device)
    check(cache, lengths, heads, splits=2, dtype=torch.float16, device=device)


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_long_sequences_use_all_splits_and_short_ones_few(splits: int, device: str) -> None:
    lengths = [5 * MIN_SPLIT_TOKENS + 1, 2 * MIN_SPLIT_TOKENS, 7]
    cache = PagedKV(lengths, kv_heads=1, head_dim=64, page_size=16, dtype=torch.float16, device=device)
    check(cache, lengths, 2, splits=splits, dtype=torch.float16, device=device)


def test_page_sizes_that_divide_no_tile(device: str) -> None:
    lengths = [41, 82]
    cache = PagedKV(lengths, kv_heads=1, head_dim=64, page_size=41, dtype=torch.float32, device=device)
    check(cache, lengths, 3, splits=1, dtype=torch.float32, device=device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_fp8_cache(dtype: torch.dtype, device: str) -> None:
    lengths = [1, 37]
    cache = PagedKV(lengths, kv_heads=2, head_dim=64, page_size=16, dtype=torch.float8_e4m3fn, device=device)
    check(cache, lengths, 4, splits=1, dtype=dtype, device=device, k_scale=0.5, v_scale=1.25)


def test_large_scores_do_not_overflow(device: str) -> None:
    cache = PagedKV([40], kv_heads=1, head_dim=64, page_size=16, dtype=torch.float16, device=device)
    cache.kv_PHLCSD[:, :, :, 0] *= 200
    check(cache, [40], 2, splits=2, dtype=torch.float16, device=device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_captured_at_one_length_serves_every_other() -> None:
    longest = [900, 3]
    cache = PagedKV(longest, kv_heads=2, head_dim=128, page_size=16, dtype=torch.bfloat16, device="cuda")
    q = normal(2, 8, 128, dtype=torch.bfloat16, device="cuda")
    slots = torch.arange(2, dtype=torch.int32, device="cuda")
    lengths = torch.ones(2, dtype=torch.int32, device="cuda")
    layer = cache.layer(0)

    def attend() -> torch.Tensor:
        return paged_decode(q, *layer, cache.page_table_SP, slots, lengths, scale=0.1, splits=3)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    k_64, v_64 = layer[0].double(), layer[1].double()
    for now in (longest, [257, 0], [1, 1]):
        lengths.copy_(torch.tensor(now, dtype=torch.int32))
        graph.replay()
        expected = reference.paged_decode(q.double(), k_64, v_64, cache.page_table_SP, slots, lengths, scale=0.1)
        assert_close(out, expected)


def test_nothing_to_decode(device: str) -> None:
    cache = PagedKV([4], kv_heads=1, head_dim=64, page_size=4, dtype=torch.float16, device=device)
    none = torch.zeros(0, dtype=torch.int32, device=device)
    q = torch.empty(0, 2, 64, dtype=torch.float16, device=device)
    assert paged_decode(q, *cache.layer(0), cache.page_table_SP, none, none, scale=1.0, splits=2).shape == q.shape


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 32, 64, 256])
def test_splits_fill_the_device(rows: int) -> None:
    """No cliff at small batches: as far as 256 tokens per program allow, most of 132 SMs have work."""
    splits = choose_splits(rows, 8, 4096, 132)
    waves = rows * 8 * splits / (132 * PROGRAMS_PER_SM)
    best = min(1.0, rows * 8 * 16 / (132 * PROGRAMS_PER_SM))
    assert 1 <= splits <= MAX_SPLITS
    assert waves / math.ceil(waves) >= 0.8 * best


def test_short_contexts_are_not_split() -> None:
    assert choose_splits(1, 1, 2 * MIN_SPLIT_TOKENS - 1, 132) == 1


def test_tiles_shrink_with_the_row() -> None:
    assert [tiles(dim, size).tokens for dim, size in [(128, 2), (96, 2), (64, 2), (128, 1), (128, 4)]] == [
        64, 64, 128, 64, 16,
    ]  # fmt: skip


def test_the_grid_knows_nothing_of_lengths() -> None:
    q = torch.empty(5, 16, 128, device="meta")
    kv = torch.empty(9, 2, 16, 128, device="meta")
    table, row = torch.empty(8, 4, device="meta"), torch.empty(5, device="meta")
    attend, combine = launches(q, kv, kv, table, row, row, torch.empty_like(q), 1.0, 3, 1.0, 1.0)
    assert (attend.grid, combine.grid) == ((5, 2, 3), (5, 16))
