"""The gated feed-forward block: down(silu(gate x) * up x)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tandem_runtime.execution.layers.context import BuildContext
from tandem_runtime.execution.layers.linear import RowParallelLinear, column_parallel


class MLP:
    def __init__(self, context: BuildContext, name: str) -> None:
        config = context.config
        size = config.intermediate_size
        self._silu_and_mul = context.ops.silu_and_mul
        part = context.tp.part(size)
        self._gate_up = column_parallel(
            context, [(f"{name}.gate_proj", size, part), (f"{name}.up_proj", size, part)], bias=config.mlp_bias
        )
        self._down = RowParallelLinear(
            context, f"{name}.down_proj", out_size=config.hidden_size, cols=part, in_size=size, bias=config.mlp_bias
        )

    def add_to(self, residual_TE: torch.Tensor, x_TE: torch.Tensor) -> torch.Tensor:
        return self._down.add_to(residual_TE, self._silu_and_mul(self._gate_up(x_TE)))


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[..., 2 I] -> [..., I]; overwrites its argument's second half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
