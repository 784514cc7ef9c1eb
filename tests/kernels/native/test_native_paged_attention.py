from __future__ import annotations

import pytest
import torch
from support.kernels import DTYPES, assert_close, normal
from support.native_steps import Rig, Shape
from tandem_kernels.native import NativeOps
from tandem_kernels.reference.paged_prefill import paged_prefill


def check(parts: list[tuple[int, int, int]], shape: Shape, dtype: torch.dtype = torch.float32) -> None:
    """Against float64; what lies behind a sequence's last token is NaN, so reading it would show."""
    lengths = [0] * (max(slot for slot, _, _ in parts) + 1)
    for slot, position, count in parts:
        lengths[slot] = position + count
    rig = Rig(lengths, shape, dtype)
    rows = sum(count for _, _, count in parts)
    qkv = normal(rows, shape.heads, shape.head_dim, dtype=dtype, device="cpu")
    out = NativeOps(dtype).paged_attention(rig.cache, rig.step(parts), 1, qkv)
    chunks, first = [], 0
    for slot, position, count in parts:
        chunks.append([slot, first, position, count])
        first += count
    k, v = rig.paged.layer(1)
    expected = paged_prefill(
        qkv[:, : shape.q_heads].double(),
        k.double(),
        v.double(),
        rig.paged.page_table_SP,
        torch.tensor(chunks),
        scale=shape.head_dim**-0.5,
    )
    assert_close(out, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decode_rows_and_chunks_together(dtype: torch.dtype) -> None:
    check([(0, 0, 1), (1, 47, 1), (2, 16, 1), (3, 0, 70), (4, 33, 15), (5, 31, 2)], Shape(), dtype)


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim"),
    [(1, 1, 16), (7, 7, 96), (5, 1, 128), (64, 1, 64), (9, 3, 80), (8, 2, 256)],
)
def test_heads_in_any_grouping(q_heads: int, kv_heads: int, head_dim: int) -> None:
    check([(0, 5, 1), (1, 5, 18)], Shape(q_heads, kv_heads, head_dim))


@pytest.mark.parametrize("page_size", [1, 4, 41, 256])
def test_page_sizes(page_size: int) -> None:
    check([(0, 60, 10), (1, 0, 81), (2, 40, 1)], Shape(page_size=page_size))


def test_scores_that_grow_and_shrink_by_much() -> None:
    """The running maximum changes at every block, by more than what e^x can hold."""
    shape = Shape(q_heads=1, kv_heads=1, head_dim=16)
    rig = Rig([64], shape, torch.float32)
    k, v = rig.paged.layer(0)
    for page in rig.paged.page_table_SP[0, :4].tolist():
        k[page] *= 200.0
    qkv = torch.randn(1, 3, 16)
    out = NativeOps(torch.float32).paged_attention(rig.cache, rig.step([(0, 63, 1)]), 0, qkv)
    expected = paged_prefill(
        qkv[:, :1].double(), k.double(), v.double(), rig.paged.page_table_SP, torch.tensor([[0, 0, 63, 1]]), scale=0.25
    )
    assert_close(out, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_query_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    """Alone, in chunks of any size, behind any cached prefix, beside any other sequence, on one thread or two."""
    shape, length = Shape(q_heads=6, kv_heads=2, head_dim=64), 150
    rig, ops = Rig([length, 90], shape, dtype), NativeOps(dtype)
    qkv = normal(length, shape.heads, shape.head_dim, dtype=dtype, device="cpu")
    other = normal(90, shape.heads, shape.head_dim, dtype=dtype, device="cpu")

    def attend(first: int, count: int) -> torch.Tensor:
        return ops.paged_attention(rig.cache, rig.step([(0, first, count)]), 1, qkv[first : first + count].contiguous())

    whole = attend(0, length)
    for size in (1, 2, 3, 5, 7, 16, 31, 64, 100):
        parts = [attend(first, min(size, length - first)) for first in range(0, length, size)]
        assert torch.equal(torch.cat(parts), whole), size
    torch.set_num_threads(2)
    mixed = rig.step([(1, 0, 90), (0, 40, 110)])
    assert torch.equal(ops.paged_attention(rig.cache, mixed, 1, torch.cat((other, qkv[40:])))[90:], whole[40:])
