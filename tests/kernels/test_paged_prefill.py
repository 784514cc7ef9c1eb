from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, PagedKV, assert_close, normal
from tandem_kernels.paged_prefill import paged_prefill, tiles
from tandem_kernels.reference import paged_prefill as reference

FIRST_ROW = 3
"""Rows before the chunks belong to decodes: they must stay as they are."""


def check(
    spans: list[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    page_size: int = 16,
    dtype: torch.dtype = torch.float16,
    kv_dtype: torch.dtype | None = None,
    device: str,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    magnify: float = 1.0,
) -> None:
    """`spans`: each chunk's (tokens before it, tokens)."""
    cache = PagedKV(
        [start + count for start, count in spans],
        kv_heads=kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        dtype=kv_dtype or dtype,
        device=device,
    )
    rows = FIRST_ROW + sum(count for _, count in spans)
    q = magnify * normal(rows, heads + 1, head_dim, dtype=dtype, device=device)[:, :heads]
    out = torch.full((rows, heads, head_dim), 7.0, dtype=dtype, device=device)
    chunks, row = [], FIRST_ROW
    for slot, (start, count) in enumerate(spans):
        chunks.append([slot, row, start, count])
        row += count
    order = torch.randperm(len(chunks))
    chunks_C4 = torch.tensor(chunks, dtype=torch.int32)[order]
    k, v = cache.layer(1)
    scale = head_dim**-0.5
    paged_prefill(
        q, k, v, cache.page_table_SP, chunks_C4.to(device), max_chunk=max(count for _, count in spans), scale=scale,
        k_scale=k_scale, v_scale=v_scale, out_TND=out,
    )  # fmt: skip
    expected = reference.paged_prefill(
        q.double(), k.double() * k_scale, v.double() * v_scale, cache.page_table_SP, chunks_C4, scale=scale
    )
    assert_close(out[FIRST_ROW:], expected[FIRST_ROW:])
    assert bool((out[:FIRST_ROW] == 7.0).all())


@pytest.mark.parametrize("spans", [[(0, 1)], [(0, 70)], [(130, 35), (0, 0), (0, 3)]], ids=str)
def test_chunks_after_prefixes_of_any_length(spans: list[tuple[int, int]], device: str) -> None:
    check(spans, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_around_the_borders_of_tiles(dtype: torch.dtype, device: str) -> None:
    check([(0, 20), (64, 1), (63, 2), (62, 3), (7, 9)], dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(1, 1, 64), (7, 7, 96), (5, 1, 128), (32, 2, 16), (9, 3, 80)]
)
def test_heads_in_any_grouping(heads: int, kv_heads: int, head_dim: int, device: str) -> None:
    check([(5, 18), (0, 2)], heads=heads, kv_heads=kv_heads, head_dim=head_dim, device=device)


@pytest.mark.parametrize("page_size", [1, 4, 41, 256])
def test_page_sizes(page_size: int, device: str) -> None:
    check([(60, 10), (0, 81)], page_size=page_size, device=device)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_tallest_tiles(head_dim: int, device: str) -> None:
    check([(37, 300), (0, 129)], heads=2, kv_heads=1, head_dim=head_dim, device=device)


def test_fp8_cache(device: str) -> None:
    check([(20, 30)], kv_dtype=torch.float8_e4m3fn, k_scale=0.5, v_scale=1.25, device=device)


def test_large_scores_do_not_overflow(device: str) -> None:
    check([(3, 40)], magnify=200.0, device=device)


def test_tiles_follow_the_longest_chunk() -> None:
    assert [tiles(2, 2, longest, 90).queries for longest in (1, 16, 17, 64, 65, 4096)] == [16, 16, 64, 64, 128, 128]
    assert [tiles(2, 2, longest, 80).queries for longest in (1, 16, 17, 64, 65, 4096)] == [16, 16, 64, 64, 128, 128]


def test_fp32_takes_small_tiles() -> None:
    assert tiles(4, 4, 4096, 90)[:2] == (16, 16)
