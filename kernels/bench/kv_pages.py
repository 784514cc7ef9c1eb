from __future__ import annotations

from collections.abc import Iterator

import torch
from measuring import Case, nbytes
from tandem_kernels.kv_pages import pack, unpack

HEADS, WORDS = 8, 64 * 2 * 16 * 128 * 2 // 8
"""Of Qwen3-32B: 64 layers, 16 tokens of 128 bf16 per page."""


def cases() -> Iterator[Case]:
    cache = torch.zeros((512, HEADS, WORDS), dtype=torch.int64, device="cuda")
    order = torch.randperm(len(cache), device="cuda").int()
    for count in (1, 16, 219):
        for heads in (HEADS, HEADS // 2):
            pages = order[:count].contiguous()
            staging = pack(cache, pages, 0, heads)
            yield Case(f"pack {count} pages, {heads} heads", lambda: pack(cache, pages, 0, heads), 2 * nbytes(staging))  # noqa: B023
            yield Case(
                f"unpack {count} pages, {heads} heads",
                lambda: unpack(staging, cache, pages, 0),  # noqa: B023
                2 * nbytes(staging),
            )
