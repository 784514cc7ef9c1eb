from __future__ import annotations

import pytest
import torch
from tandem_kernels.kv_pages import BLOCK, pack, unpack
from tandem_kernels.reference import kv_pages as reference


def cache_of(words: int, device: str) -> torch.Tensor:
    return torch.randint(-(2**62), 2**62, (7, 5, words)).to(device)


@pytest.mark.parametrize("words", [1, 41, BLOCK, BLOCK + 1])
@pytest.mark.parametrize(("first_head", "num_heads"), [(0, 5), (2, 1), (1, 3)])
def test_pack_and_unpack(first_head: int, num_heads: int, words: int, device: str) -> None:
    source, target = cache_of(words, device), cache_of(words, device)
    pages = torch.tensor([6, 0, 3], dtype=torch.int32, device=device)
    staging = pack(source, pages, first_head, num_heads)
    assert torch.equal(staging, reference.pack(source, pages, first_head, num_heads))
    expected = target.clone()
    elsewhere = torch.tensor([1, 5, 2], dtype=torch.int32, device=device)
    reference.unpack(staging, expected, elsewhere, first_head)
    unpack(staging, target, elsewhere, first_head)
    assert torch.equal(target, expected)


def test_no_pages(device: str) -> None:
    cache = cache_of(8, device)
    assert pack(cache, torch.zeros(0, dtype=torch.int32, device=device), 0, 5).shape == (0, 5, 8)


def test_any_cache_is_rows_of_words(device: str) -> None:
    kv_PHLCSD = torch.randn(4, 2, 3, 2, 4, 16).to(torch.bfloat16).to(device)
    words = kv_PHLCSD.flatten(2).view(torch.int64)
    pages = torch.tensor([2], dtype=torch.int32, device=device)
    assert torch.equal(pack(words, pages, 1, 1).view(torch.bfloat16).flatten(), kv_PHLCSD[2, 1].flatten())
