"""Caches of more elements than 32 bits count, as a card's are: 2^31 of them are 4 GiB in 16 bits.

On the CPU only what is touched takes memory.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.kernels import assert_close, normal
from tandem_kernels.paged_decode import paged_decode
from tandem_kernels.paged_prefill import paged_prefill
from tandem_kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from tandem_kernels.reference import paged_decode as reference

HEADS, KV_HEADS, PAGE_SIZE, DIM = 2, 2, 16, 64
PAGES = 2**31 // (KV_HEADS * 2 * PAGE_SIZE * DIM) + 64


@pytest.fixture(scope="module")
def kv(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of the one layer."""
    shape = (PAGES, KV_HEADS, 1, 2, PAGE_SIZE, DIM)
    if device == "cpu":
        cache = torch.from_numpy(np.zeros(shape, dtype=np.float16))
    else:
        cache = torch.zeros(shape, dtype=torch.float16, device=device)
    return cache[:, :, 0, 0], cache[:, :, 0, 1]


def test_the_last_pages_are_written_and_read(kv: tuple[torch.Tensor, torch.Tensor], device: str) -> None:
    tokens = 2 * PAGE_SIZE + 3
    k, v = kv
    assert PAGES * k.stride(0) > 2**31
    table = torch.tensor([[PAGES - 1, PAGES - 40, PAGES - 2]], dtype=torch.int32, device=device)
    slots = torch.zeros(tokens, dtype=torch.int32, device=device)
    positions = torch.arange(tokens, dtype=torch.int32, device=device)
    cos, sin = (torch.full((tokens, DIM // 2), x, device=device) for x in (1.0, 0.0))
    qkv = normal(tokens, HEADS + 2 * KV_HEADS, DIM, dtype=torch.float16, device=device)
    qk_norm_rope_kv_write(qkv, k, v, table, slots, positions, cos, sin)
    written = k[table[0].long()].transpose(1, 2).flatten(0, 1)[:tokens]
    assert torch.equal(written, qkv[:, HEADS : HEADS + KV_HEADS])
    assert not k[: PAGES - 64 : PAGES // 8].any()

    q, scale = qkv[:, :HEADS], DIM**-0.5
    lengths = positions + 1
    few = table.new_zeros(1, 3)
    few[0] = torch.arange(3)
    expected = reference.paged_decode(
        q.double(), k[table[0].long()].double(), v[table[0].long()].double(), few, slots, lengths, scale=scale
    )
    chunks = torch.tensor([[0, 0, 0, tokens]], dtype=torch.int32, device=device)
    assert_close(paged_prefill(q, k, v, table, chunks, max_chunk=tokens, scale=scale), expected)
    for splits in (1, 2):
        assert_close(paged_decode(q, k, v, table, slots, lengths, scale=scale, splits=splits), expected)
