from __future__ import annotations

from collections.abc import Iterator

import torch
from measuring import Case, bf16, nbytes
from tandem_kernels.fp8_gemm import BlockScales, Tiles, launch
from tandem_kernels.fp8_quantize import fp8_quantize

SHAPES = {"qkv": (10240, 5120), "out": (5120, 8192), "gate, up": (51200, 5120), "down": (5120, 25600)}
"""Of Qwen3-32B."""


def cases() -> Iterator[Case]:
    for rows in (1, 16, 32, 64):
        for name in SHAPES:
            yield product(name, rows)


def sweep() -> Iterator[Case]:
    """What the launch table could choose instead."""
    for rows in (16, 64):
        for columns in (16, 32, 64, 128):
            for warps in (4, 8):
                for stages in (3, 4, 5, 6):
                    yield product("gate, up", rows, tile=Tiles(rows, columns, warps, stages))


def product(name: str, rows: int, *, tile: Tiles | None = None) -> Case:
    columns, depth = SHAPES[name]
    x = fp8_quantize(bf16(rows, depth))
    weight = bf16(columns, depth).to(torch.float8_e4m3fn)
    scale = torch.rand(columns // 128, depth // 128, device="cuda")
    out = bf16(rows, columns)
    run = launch(x, weight, BlockScales.of(scale, columns), out, tile=tile).run
    return Case(
        f"{name} {rows} {tuple(tile) if tile else ''}",
        run,
        nbytes(*x, weight, scale, out),
        2.0 * rows * columns * depth,
    )
