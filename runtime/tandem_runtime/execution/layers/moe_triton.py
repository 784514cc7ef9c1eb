"""Sparse mixture of experts by the Triton kernels: all experts' weights in two tensors, one product each."""

from __future__ import annotations

import torch
from tandem_kernels.moe_combine import moe_combine
from tandem_kernels.moe_gemm import Picks, down, gate_up
from tandem_kernels.moe_route import moe_route
from tandem_kernels.silu_and_mul import silu_and_mul

from tandem_runtime.execution.layers.context import BuildContext
from tandem_runtime.execution.layers.linear import Linear
from tandem_runtime.execution.weights import Part


class TritonMoe:
    def __init__(self, context: BuildContext, name: str) -> None:
        moe = context.config.moe
        assert moe is not None
        hidden, size = context.config.hidden_size, moe.intermediate_size
        part = context.tp.part(size)
        self._tp = context.tp
        self._top_k = moe.experts_per_token
        self._normalise = moe.norm_topk_prob
        self._num_experts = moe.num_experts
        self._router = Linear(context.weights.take([Part(f"{name}.gate.weight", (moe.num_experts, hidden))]))
        experts = [f"{name}.experts.{i}" for i in range(moe.num_experts)]
        self._gate_up_XNH = context.weights.take(
            [
                Part(f"{expert}.{projection}.weight", (size, hidden), rows=part)
                for expert in experts
                for projection in ("gate_proj", "up_proj")
            ]
        ).view(moe.num_experts, 2 * len(part), hidden)
        self._down_XHI = context.weights.take(
            [Part(f"{expert}.down_proj.weight", (hidden, size), cols=part) for expert in experts]
        ).view(moe.num_experts, hidden, len(part))

    def add_to(self, residual_TE: torch.Tensor, x_TE: torch.Tensor) -> torch.Tensor:
        routing = moe_route(self._router(x_TE), self._top_k, normalise=self._normalise)
        picks = Picks.of(routing.experts_TK, self._num_experts)
        inner_PI = silu_and_mul(gate_up(x_TE, self._gate_up_XNH, picks, self._top_k))
        y_PE = down(inner_PI, self._down_XHI, picks, routing.weights_TK)
        # The sum over ranks must hold the residual once.
        added = residual_TE if self._tp.rank == 0 else None
        return self._tp.all_reduce(moe_combine(y_PE, self._top_k, added))
