from __future__ import annotations

import torch

from tandem_kernels.reference.rms_norm import rms_norm


def qk_norm_rope_kv_write(
    qkv_TND: torch.Tensor,
    k_PHSD: torch.Tensor,
    v_PHSD: torch.Tensor,
    page_table_SP: torch.Tensor,
    slots_T: torch.Tensor,
    positions_T: torch.Tensor,
    cos_TR: torch.Tensor,
    sin_TR: torch.Tensor,
    *,
    q_weight_D: torch.Tensor | None = None,
    k_weight_D: torch.Tensor | None = None,
    eps: float = 0.0,
) -> None:
    kv_heads, page_size = k_PHSD.shape[1:3]
    q_heads = qkv_TND.shape[1] - 2 * kv_heads
    q_TND, k_TND, v_TND = qkv_TND.tensor_split((q_heads, q_heads + kv_heads), dim=1)
    if q_weight_D is not None and k_weight_D is not None:
        q_TND, normed_TND = rms_norm(q_TND, q_weight_D, eps), rms_norm(k_TND, k_weight_D, eps)
    else:
        normed_TND = k_TND
    written = slots_T >= 0
    slots, positions = slots_T[written].long(), positions_T[written].long()
    pages, offsets = page_table_SP[slots, positions // page_size].long(), positions % page_size
    k_PHSD[pages, :, offsets] = rotated(normed_TND, cos_TR, sin_TR)[written]
    v_PHSD[pages, :, offsets] = v_TND[written]
    qkv_TND[written, :q_heads] = rotated(q_TND, cos_TR, sin_TR)[written]


def rotated(x_TND: torch.Tensor, cos_TR: torch.Tensor, sin_TR: torch.Tensor) -> torch.Tensor:
    low, high = x_TND.chunk(2, -1)
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)
