"""Pages of the KV cache gathered into one staging buffer, and scattered out of it, for a handoff.

A page's heads are contiguous blocks, so both are copies of rows of words; what a word means is not looked at.

For transports that want many pages as one block: one copy to the host for all of them, or one message over a fabric.
None of the runtime's does. A page of Qwen3-32B is 4 MiB, one of its heads 512 KiB, and both are contiguous: the copy
engine moves them as they are while the SMs compute, and gathering them would be one more pass over the device's memory,
on those SMs. It pays where a page is a few KiB: small models, or few heads of a rank.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tandem_kernels.launch import Launch, ceil_div

BLOCK = 1024
"""int64 words of one program: 8 KiB, four 16-byte loads per thread."""


def pack(cache_PHW: torch.Tensor, pages_G: torch.Tensor, first_head: int, num_heads: int) -> torch.Tensor:
    """[G, num_heads, W]: heads [first_head, first_head + num_heads) of the pages `pages_G` (int32).

    cache_PHW: the cache as int64 words, `kv_PHLCSD.flatten(2).view(torch.int64)`.
    """
    staging_GhW = cache_PHW.new_empty(len(pages_G), num_heads, cache_PHW.shape[2])
    pack_launch(cache_PHW, pages_G, first_head, staging_GhW).run()
    return staging_GhW


def unpack(staging_GhW: torch.Tensor, cache_PHW: torch.Tensor, pages_G: torch.Tensor, first_head: int) -> None:
    """Writes the staged pages into `cache_PHW` at `pages_G` (int32, no two alike), from `first_head` on."""
    unpack_launch(staging_GhW, cache_PHW, pages_G, first_head).run()


def pack_launch(cache_PHW: torch.Tensor, pages_G: torch.Tensor, first_head: int, staging_GhW: torch.Tensor) -> Launch:
    return _copy(cache_PHW, pages_G, first_head, staging_GhW, into_cache=False)


def unpack_launch(staging_GhW: torch.Tensor, cache_PHW: torch.Tensor, pages_G: torch.Tensor, first_head: int) -> Launch:
    return _copy(cache_PHW, pages_G, first_head, staging_GhW, into_cache=True)


def _copy(
    cache_PHW: torch.Tensor, pages_G: torch.Tensor, first_head: int, staging_GhW: torch.Tensor, *, into_cache: bool
) -> Launch:
    count, heads, words = staging_GhW.shape
    assert cache_PHW.dtype == staging_GhW.dtype == torch.int64
    assert cache_PHW.is_contiguous()
    assert staging_GhW.is_contiguous()
    assert first_head + heads <= cache_PHW.shape[1]
    assert len(pages_G) == count
    return Launch(
        copy_pages_kernel,
        (count, heads, ceil_div(words, BLOCK)),
        {
            "cache": cache_PHW,
            "pages": pages_G,
            "staging": staging_GhW,
            "first_head": first_head,
            "cache_heads": cache_PHW.shape[1],
        },
        {"WORDS": words, "BLOCK": BLOCK, "INTO_CACHE": into_cache},
        num_warps=4,
    )


@triton.jit
def copy_pages_kernel(  # type: ignore[no-untyped-def]
    cache,
    pages,
    staging,
    first_head,
    cache_heads,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    INTO_CACHE: tl.constexpr,
):
    page = tl.load(pages + tl.program_id(0)).to(tl.int64)
    head = tl.program_id(1)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    staged = staging + (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + head) * WORDS + at
    cached = cache + (page * cache_heads + first_head + head) * WORDS + at
    if INTO_CACHE:
        tl.store(cached, tl.load(staged, mask=at < WORDS), mask=at < WORDS)
    else:
        tl.store(staged, tl.load(cached, mask=at < WORDS), mask=at < WORDS)
