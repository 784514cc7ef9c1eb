"""Block-wise fp8 weights (e4m3, a scale for each 128 x 128), as Qwen's official FP8 checkpoints have them.

DeepSeek-V3 (arXiv:2412.19437), 3.3.2. What a layer holds need not begin at a block's border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

BLOCK = 128
FP8 = torch.float8_e4m3fn
LARGEST = 448.0
COLUMN_STEP = 64
"""A weight may begin at a multiple of this many columns into a block: what the kernels take at once."""


class Fp8Weight(NamedTuple):
    weight_NK: torch.Tensor
    """float8_e4m3fn."""
    scale_RC: torch.Tensor
    """fp32: of the blocks that the weight touches; an entry times its scale is what was quantised."""
    row_blocks_N: torch.Tensor
    """int32: the row of `scale_RC` of each row of the weight."""
    first_column: int = 0
    """Of the weight's first column in its first block."""
    rows_in_blocks: bool = True
    """Whether every 128 rows, from the first on, are of one block."""


def quantize_blocks(weight_NK: torch.Tensor) -> Fp8Weight:
    """The largest entry of each block becomes 448; a block of zeros stays zeros."""
    rows, columns = weight_NK.shape
    padded = torch.nn.functional.pad(weight_NK.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    scale_RC = blocks.abs().amax((1, 3)).clamp_(min=1e-10).div_(LARGEST)
    quantised = (blocks / scale_RC[:, None, :, None]).view(padded.shape)[:rows, :columns]
    return Fp8Weight(quantised.to(FP8), scale_RC, block_of_rows(0, rows, weight_NK.device))


def dequantize_blocks(weight: Fp8Weight, dtype: torch.dtype) -> torch.Tensor:
    scale_NK = weight.scale_RC[weight.row_blocks_N.long()].repeat_interleave(BLOCK, 1)
    first = weight.first_column
    return (weight.weight_NK.float() * scale_NK[:, first : first + weight.weight_NK.shape[1]]).to(dtype)


def stack(parts: Sequence[Fp8Weight]) -> Fp8Weight:
    """The parts below one another; their columns are of the same blocks."""
    assert len({part.first_column for part in parts}) == 1
    row_blocks, first = [], 0
    for part in parts:
        row_blocks.append(part.row_blocks_N + first)
        first += len(part.scale_RC)
    return Fp8Weight(
        # Some operations know no fp8, and all know bytes.
        torch.cat([part.weight_NK.view(torch.uint8) for part in parts]).view(FP8),
        torch.cat([part.scale_RC for part in parts]),
        torch.cat(row_blocks),
        parts[0].first_column,
        all(part.rows_in_blocks for part in parts) and all(len(part.weight_NK) % BLOCK == 0 for part in parts[:-1]),
    )


def block_of_rows(first_row: int, rows: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(first_row, first_row + rows, device=device) // BLOCK).int()
