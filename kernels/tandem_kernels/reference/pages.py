from __future__ import annotations

import torch


def tokens_of(kv_PHSD: torch.Tensor, pages_P: torch.Tensor, length: int) -> torch.Tensor:
    """[kv heads, length, head_dim]: one sequence's K or V, out of its pages."""
    used = -(-length // kv_PHSD.shape[2])
    return kv_PHSD[pages_P[:used].long()].transpose(0, 1).flatten(1, 2)[:, :length]
