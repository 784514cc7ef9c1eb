"""Sparse mixture of experts by the Triton kernels: all experts' weights in two tensors, one product each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tandem_kernels.fp8_gemm import BlockScales
from tandem_kernels.moe_combine import moe_combine
from tandem_kernels.moe_gemm import Picks, down, gate_up
from tandem_kernels.moe_route import moe_route
from tandem_kernels.silu_and_mul import silu_and_mul

from tandem_runtime.execution.layers.context import BuildContext
from tandem_runtime.execution.weights import Part, WeightSource


class _Experts(NamedTuple):
    weight: torch.Tensor
    """[experts, N, K]."""
    scales: BlockScales | None


class TritonMoe:
    def __init__(self, context: BuildContext, name: str, *, fp8: bool = False) -> None:
        moe = context.config.moe
        assert moe is not None
        hidden, size = context.config.hidden_size, moe.intermediate_size
        held, part = context.experts(name, moe)
        self._tp = context.tp
        self._top_k = moe.experts_per_token
        self._normalise = moe.norm_topk_prob
        self._held = held
        self._all_here = len(held) == moe.num_experts
        self._router = context.ops.dense(
            context.weights, [Part(f"{name}.gate.weight", (moe.num_experts, hidden))], None
        )
        experts = [f"{name}.experts.{i}" for i in held]
        gate_up = [
            Part(f"{expert}.{projection}.weight", (size, hidden), rows=part)
            for expert in experts
            for projection in ("gate_proj", "up_proj")
        ]
        down = [Part(f"{expert}.down_proj.weight", (hidden, size), cols=part) for expert in experts]
        self._gate_up = _load(context.weights, gate_up, len(held), fp8=fp8)
        self._down = _load(context.weights, down, len(held), fp8=fp8)

    def add_to(self, residual_TE: torch.Tensor, x_TE: torch.Tensor) -> torch.Tensor:
        routing = moe_route(self._router(x_TE), self._top_k, normalise=self._normalise)
        picks = self._picks(routing.experts_TK)
        # What no expert here computes stays zero.
        new = x_TE.new_empty if self._all_here else x_TE.new_zeros
        both_PN = new(len(picks.sorted_P), self._gate_up.weight.shape[1])
        gate_up(x_TE, self._gate_up.weight, picks, self._top_k, self._gate_up.scales, out_PN=both_PN)
        y_PE = new(len(picks.sorted_P), x_TE.shape[1])
        down(
            silu_and_mul(both_PN),
            self._down.weight,
            picks,
            routing.weights_TK,
            self._down.scales,
            out_PH=y_PE,
        )
        # The sum over ranks must hold the residual once.
        added = residual_TE if self._tp.rank == 0 else None
        return self._tp.all_reduce(moe_combine(y_PE, self._top_k, added))

    def _picks(self, experts_TK: torch.Tensor) -> Picks:
        """Of the experts here, counted from the first of them; the others are one more, which has no weights."""
        if self._all_here:
            return Picks.of(experts_TK, len(self._held))
        count = len(self._held)
        here_TK = experts_TK - self._held.start
        elsewhere_TK = (here_TK < 0) | (here_TK >= count)
        picks = Picks.of(here_TK.masked_fill(elsewhere_TK, count), count + 1)
        return Picks(picks.sorted_P, picks.ends_X[:count])


def _load(source: WeightSource, parts: Sequence[Part], experts: int, *, fp8: bool) -> _Experts:
    """The parts of every expert in turn; each has as many, of the same shapes."""
    if not fp8:
        weight_NK = source.take(parts)
        return _Experts(weight_NK.view(experts, -1, weight_NK.shape[1]), None)
    found = source.take_fp8(parts)
    rows = len(found.weight_NK) // experts
    scale_XRC = found.scale_RC.view(experts, -1, found.scale_RC.shape[1])
    return _Experts(
        found.weight_NK.view(experts, rows, -1), BlockScales(scale_XRC, found.row_blocks_N[:rows], found.first_column)
    )
