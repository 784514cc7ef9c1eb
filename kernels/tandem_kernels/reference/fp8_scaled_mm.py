from __future__ import annotations

import torch


def fp8_scaled_mm(
    x_TK: torch.Tensor,
    x_scale_TG: torch.Tensor,
    weight_KN: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    group: int,
    by_blocks: bool,
) -> torch.Tensor:
    """From the operands as the library reads them; `by_blocks`: whether weights have a scale for group x group."""
    depth, columns = weight_KN.shape
    scale_GN = (
        weight_scale[: depth // group].repeat_interleave(group, 1)[:, :columns] if by_blocks else weight_scale.t()
    )
    return (x_TK * x_scale_TG.repeat_interleave(group, 1)) @ (weight_KN * scale_GN.repeat_interleave(group, 0))
