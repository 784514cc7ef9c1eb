"""Sparse mixture of experts: softmax router, top-k, experts split over ranks (each one, or whole ones)."""

from __future__ import annotations

import torch

from tandem_runtime.execution.layers.context import BuildContext, Product
from tandem_runtime.execution.layers.linear import column_parallel
from tandem_runtime.execution.weights import Part


class SparseMoe:
    def __init__(self, context: BuildContext, name: str) -> None:
        moe = context.config.moe
        assert moe is not None
        hidden, size = context.config.hidden_size, moe.intermediate_size
        self._experts, part = context.experts(name, moe)
        self._tp = context.tp
        self._top_k = moe.experts_per_token
        self._silu_and_mul = context.ops.silu_and_mul
        self._normalise = moe.norm_topk_prob
        self._router = context.ops.dense(
            context.weights, [Part(f"{name}.gate.weight", (moe.num_experts, hidden))], None
        )
        self._gate_up: list[Product] = []
        self._down: list[Product] = []
        for expert in (f"{name}.experts.{i}" for i in self._experts):
            self._gate_up.append(
                column_parallel(
                    context, [(f"{expert}.gate_proj", size, part), (f"{expert}.up_proj", size, part)], bias=False
                )
            )
            self._down.append(
                context.ops.linear(
                    context.weights, [Part(f"{expert}.down_proj.weight", (hidden, size), cols=part)], None
                )
            )

    def add_to(self, residual_TE: torch.Tensor, x_TE: torch.Tensor) -> torch.Tensor:
        weight_TK, expert_TK = self._route(x_TE)
        out_TE = torch.zeros_like(x_TE)
        # Tokens grouped by expert: one pass over the experts that were chosen, each weight read once.
        flat = expert_TK.flatten()
        order = flat.argsort(stable=True)
        experts, counts = torch.unique_consecutive(flat[order], return_counts=True)
        start = 0
        for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
            picks = order[start : start + count]
            start += count
            if expert not in self._experts:
                continue
            expert -= self._experts.start
            tokens = picks // self._top_k
            y = self._down[expert](self._silu_and_mul(self._gate_up[expert](x_TE[tokens])))
            out_TE.index_add_(0, tokens, y * weight_TK.flatten()[picks, None])
        return self._tp.all_reduce(out_TE).add_(residual_TE)

    def _route(self, x_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probabilities = torch.softmax(self._router(x_TE), dim=-1, dtype=torch.float32)
        weight_TK, expert_TK = probabilities.topk(self._top_k, dim=-1)
        if self._normalise:
            weight_TK /= weight_TK.sum(dim=-1, keepdim=True)
        return weight_TK.to(x_TE.dtype), expert_TK
