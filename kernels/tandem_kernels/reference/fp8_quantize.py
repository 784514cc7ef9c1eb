from __future__ import annotations

import torch


def fp8_quantize(x_TK: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x / scale, scale [T, groups]), neither rounded."""
    rows, columns = x_TK.shape
    groups = -(-columns // group)
    padded_TGC = torch.nn.functional.pad(x_TK, (0, groups * group - columns)).view(rows, groups, group)
    scale_TG = padded_TGC.abs().amax(-1).clamp(min=1e-10) / 448
    return (padded_TGC / scale_TG[..., None]).flatten(1)[:, :columns], scale_TG
