from __future__ import annotations

import torch


def moe_combine(y_PH: torch.Tensor, top_k: int, residual_TH: torch.Tensor | None = None) -> torch.Tensor:
    sum_TH = y_PH.view(-1, top_k, y_PH.shape[1]).sum(1)
    return sum_TH if residual_TH is None else sum_TH + residual_TH
