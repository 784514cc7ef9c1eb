from __future__ import annotations

from collections.abc import Iterator

import torch
from measuring import Cache, Case, bf16, nbytes
from tandem_kernels.paged_prefill import Tiles, launch, paged_prefill

HEADS, KV_HEADS, DIM = 64, 8, 128


def cases() -> Iterator[Case]:
    for tokens in (128, 512, 1024, 3500, 4096, 8192):
        yield prefill([(0, tokens)])
    yield prefill([(0, 1024)] * 4)
    yield prefill([(4096, 2048)])
    yield prefill([(4096, 64)])
    yield prefill([(4096, 8)] * 8)
    yield prefill([(0, 4096)], kv_dtype=torch.float8_e4m3fn)


def sweep() -> Iterator[Case]:
    """What the launch table could choose instead."""
    for queries, tokens, warps in ((64, 64, 4), (128, 32, 8), (128, 64, 4), (128, 64, 8), (128, 128, 8), (256, 64, 8)):
        for stages in (2, 3, 4, 5):
            yield prefill([(0, 4096)], tile=Tiles(queries, tokens, warps, stages))


def prefill(spans: list[tuple[int, int]], *, kv_dtype: torch.dtype = torch.bfloat16, tile: Tiles | None = None) -> Case:
    """`spans`: each chunk's (tokens before it, tokens)."""
    longest = max(start + count for start, count in spans)
    cache = Cache.of(len(spans), longest, kv_heads=KV_HEADS, head_dim=DIM, dtype=kv_dtype)
    rows = sum(count for _, count in spans)
    q = bf16(rows, HEADS, DIM)
    chunks, row = [], 0
    for slot, (start, count) in enumerate(spans):
        chunks.append([slot, row, start, count])
        row += count
    chunks_C4 = torch.tensor(chunks, dtype=torch.int32, device="cuda")
    max_chunk = max(count for _, count in spans)
    scale = DIM**-0.5
    if tile is None:

        def run() -> object:
            return paged_prefill(q, *cache, chunks_C4, max_chunk=max_chunk, scale=scale)
    else:
        run = launch(q, *cache, chunks_C4, torch.empty_like(q), max_chunk, scale, 1.0, 1.0, tile=tile).run
    moved = 2 * sum(map(sum, spans)) * KV_HEADS * DIM * kv_dtype.itemsize + 2 * nbytes(q)
    pairs = sum(count * start + count * (count + 1) / 2 for start, count in spans)
    name = f"{len(spans)} x {spans[0][1]} after {spans[0][0]} {str(kv_dtype)[6:]}"
    return Case(f"{name} {tuple(tile)}" if tile else name, run, moved, 4.0 * pairs * HEADS * DIM)
