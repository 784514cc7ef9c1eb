from __future__ import annotations

from collections.abc import Iterator

import torch
from measuring import Cache, Case, bf16, nbytes
from tandem_kernels.paged_decode import Tiles, choose_splits, launches, paged_decode

SHAPES = {"32B": (64, 8), "32B TP2": (32, 4), "72B TP8": (8, 1), "30B-A3B": (32, 4), "MHA": (32, 32)}
DIM = 128


def cases() -> Iterator[Case]:
    for batch in (1, 2, 4, 8, 16, 32, 64, 128):
        yield decode("32B", batch, 4096)
    for shape in SHAPES:
        yield decode(shape, 32, 4096)
    yield decode("32B", 4, 131072)
    yield decode("32B", 64, 512)
    yield decode("32B", 64, 4096, kv_dtype=torch.float8_e4m3fn)
    yield decode("32B", 64, 4096, ragged=True)


def sweep() -> Iterator[Case]:
    """What the launch table could choose instead."""
    for batch in (1, 64):
        for tokens in (32, 64, 128):
            for warps in (2, 4, 8):
                for stages in (2, 3, 4, 5, 6):
                    yield decode("32B", batch, 4096, tile=Tiles(tokens, warps, stages))
        for splits in (1, 2, 4, 6, 8, 12, 16):
            yield decode("32B", batch, 4096, splits=splits)


def decode(
    shape: str,
    batch: int,
    tokens: int,
    *,
    kv_dtype: torch.dtype = torch.bfloat16,
    ragged: bool = False,
    tile: Tiles | None = None,
    splits: int | None = None,
) -> Case:
    heads, kv_heads = SHAPES[shape]
    cache = Cache.of(batch, tokens, kv_heads=kv_heads, head_dim=DIM, dtype=kv_dtype)
    q = bf16(batch, heads, DIM)
    lengths = torch.full((batch,), tokens, dtype=torch.int32, device="cuda")
    if ragged:
        lengths = torch.linspace(tokens // 8, tokens, batch, device="cuda").int()
    slots = torch.arange(batch, dtype=torch.int32, device="cuda")
    sm_count = torch.cuda.get_device_properties(0).multi_processor_count
    splits = splits or choose_splits(batch, kv_heads, tokens, sm_count)
    scale = DIM**-0.5
    if tile is None:

        def run() -> object:
            return paged_decode(q, *cache, slots, lengths, scale=scale, splits=splits)
    else:
        steps = launches(q, *cache, slots, lengths, torch.empty_like(q), scale, splits, 1.0, 1.0, tile=tile)

        def run() -> object:
            return [step.run() for step in steps]

    moved = 2 * int(lengths.sum()) * kv_heads * DIM * kv_dtype.itemsize + 2 * nbytes(q)
    name = f"{shape} batch {batch} context {tokens}{' ragged' if ragged else ''} {str(kv_dtype)[6:]} splits {splits}"
    return Case(f"{name} {tuple(tile)}" if tile else name, run, moved, 4.0 * int(lengths.sum()) * heads * DIM)
