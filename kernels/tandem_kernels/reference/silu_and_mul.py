from __future__ import annotations

import torch


def silu_and_mul(gate_up_TI: torch.Tensor) -> torch.Tensor:
    gate_TI, up_TI = gate_up_TI.chunk(2, dim=-1)
    return gate_TI * torch.sigmoid(gate_TI) * up_TI
