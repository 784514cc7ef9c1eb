from __future__ import annotations

import torch


def pack(cache_PHW: torch.Tensor, pages_G: torch.Tensor, first_head: int, num_heads: int) -> torch.Tensor:
    return cache_PHW[pages_G.long(), first_head : first_head + num_heads]


def unpack(staging_GhW: torch.Tensor, cache_PHW: torch.Tensor, pages_G: torch.Tensor, first_head: int) -> None:
    cache_PHW[pages_G.long(), first_head : first_head + staging_GhW.shape[1]] = staging_GhW
