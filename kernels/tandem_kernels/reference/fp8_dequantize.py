from __future__ import annotations

import torch


def fp8_dequantize(
    weight_NK: torch.Tensor, scale_RC: torch.Tensor, row_blocks_N: torch.Tensor, *, group: int, first_column: int = 0
) -> torch.Tensor:
    columns = weight_NK.shape[1]
    scale_NK = scale_RC[row_blocks_N.long()].repeat_interleave(group, 1)
    return weight_NK * scale_NK[:, first_column : first_column + columns]
