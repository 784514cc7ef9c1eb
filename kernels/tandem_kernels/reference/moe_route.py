from __future__ import annotations

import torch


def moe_route(logits_TX: torch.Tensor, top_k: int, *, normalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    weights_TK, experts_TK = torch.softmax(logits_TX, -1).topk(top_k, -1)
    if normalise:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return weights_TK, experts_TK
