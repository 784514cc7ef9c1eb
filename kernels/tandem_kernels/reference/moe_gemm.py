from __future__ import annotations

import torch


def gate_up(x_TH: torch.Tensor, weight_XNH: torch.Tensor, experts_TK: torch.Tensor) -> torch.Tensor:
    """[P, N], in the order of pick numbers."""
    top_k = experts_TK.shape[1]
    return torch.einsum("ph,pnh->pn", x_TH.repeat_interleave(top_k, 0), weight_XNH[experts_TK.flatten().long()])


def down(
    x_PI: torch.Tensor, weight_XHI: torch.Tensor, experts_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """[P, H]; `x_PI` in the order of pick numbers."""
    y_PH = torch.einsum("pi,phi->ph", x_PI, weight_XHI[experts_TK.flatten().long()])
    return y_PH * weights_TK.flatten()[:, None]
