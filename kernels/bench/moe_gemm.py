from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from measuring import Case, bf16, nbytes
from tandem_kernels.moe_gemm import Picks, Tiles, launch, tiles


class Shape(NamedTuple):
    experts: int
    top_k: int
    hidden: int
    inner: int


SHAPES = {"235B": Shape(128, 8, 4096, 1536), "235B TP8": Shape(128, 8, 4096, 192), "30B": Shape(128, 8, 2048, 768)}


def cases() -> Iterator[Case]:
    for tokens in (1, 8, 64, 512, 4096):
        yield from products("235B", tokens)
    for shape in ("235B TP8", "30B"):
        for tokens in (64, 4096):
            yield from products(shape, tokens)


def sweep() -> Iterator[Case]:
    """What the launch table could choose instead."""
    for tokens, rows in ((64, (16, 32)), (512, (32, 64)), (4096, (64, 128))):
        for height in rows:
            for columns in (64, 128, 256):
                for depth in (64, 128):
                    for warps in (4, 8):
                        for stages in (3, 4):
                            tile = Tiles(height, columns, depth, warps, stages)
                            if (height + columns) * depth * 2 * stages <= 224 * 1024:
                                yield next(products("235B", tokens, tile=tile))


def products(name: str, tokens: int, *, tile: Tiles | None = None) -> Iterator[Case]:
    """Tokens choose experts evenly at random."""
    shape = SHAPES[name]
    picked = torch.rand(tokens, shape.experts, device="cuda").topk(shape.top_k).indices.int()
    picks = Picks.of(picked, shape.experts)
    rows = picked.numel()
    tile = tile or tiles(rows / shape.experts, 2, 90)
    used = len(picked.unique()) / shape.experts
    for x, weight, top_k, what in (
        (bf16(tokens, shape.hidden), bf16(shape.experts, 2 * shape.inner, shape.hidden), shape.top_k, "gate, up"),
        (bf16(rows, shape.inner), bf16(shape.experts, shape.hidden, shape.inner), 1, "down"),
    ):
        weights = torch.rand(rows, device="cuda") if what == "down" else None
        out = bf16(rows, weight.shape[1])
        run = launch(x, weight, picks, out, top_k=top_k, weights_P=weights, tile=tile).run
        moved = nbytes(weight) * used + nbytes(x, out)
        yield Case(f"{name} {what} {tokens} {tuple(tile)}", run, moved, 2.0 * rows * weight[0].numel())
