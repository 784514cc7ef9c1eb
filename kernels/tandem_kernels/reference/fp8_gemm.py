from __future__ import annotations

import torch


def fp8_gemm(
    x_TK: torch.Tensor,
    x_scale_TG: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_RC: torch.Tensor,
    *,
    group: int,
    first_row: int = 0,
    first_column: int = 0,
) -> torch.Tensor:
    columns, depth = weight_NK.shape
    x_TK = x_TK * x_scale_TG.repeat_interleave(group, 1)[:, :depth]
    scale_NK = scale_RC.repeat_interleave(group, 0)[first_row : first_row + columns]
    scale_NK = scale_NK.repeat_interleave(group, 1)[:, first_column : first_column + depth]
    return x_TK @ (weight_NK * scale_NK).T
