"""Linear layers, whole or split over tensor-parallel ranks (Megatron-LM, arXiv:1909.08053)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from tandem_runtime.execution.layers.context import BuildContext, Product
from tandem_runtime.execution.weights import Part, WeightSource


class Linear:
    """y = x W^T + b on plain rows."""

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> None:
        self._weight, self._bias = weight_NK, bias_N

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        return F.linear(x_TK, self._weight, self._bias)

    def add_to(self, residual_TN: torch.Tensor, x_TK: torch.Tensor) -> torch.Tensor:
        if self._bias is None:
            return residual_TN.addmm_(x_TK, self._weight.t())
        return F.linear(x_TK, self._weight, self._bias).add_(residual_TN)


class RowParallelLinear:
    """Each rank holds columns of W and sees the matching part of x; the ranks' products are summed."""

    def __init__(
        self, context: BuildContext, name: str, *, out_size: int, in_size: int, cols: range, bias: bool
    ) -> None:
        self._tp = context.tp
        parts = [Part(f"{name}.weight", (out_size, in_size), cols=cols)]
        # The sum over ranks must hold the bias once.
        add_bias = bias and context.tp.rank == 0
        full_bias = context.weights.take([Part(f"{name}.bias", (out_size,))]) if bias else None
        self._linear = context.ops.linear(context.weights, parts, full_bias if add_bias else None)

    def add_to(self, residual_TN: torch.Tensor, x_TK: torch.Tensor) -> torch.Tensor:
        if self._tp.world == 1:
            return self._linear.add_to(residual_TN, x_TK)
        return self._tp.all_reduce(self._linear(x_TK)).add_(residual_TN)


def column_parallel(context: BuildContext, parts: Sequence[tuple[str, int, range]], *, bias: bool) -> Product:
    """One fused product of several projections of the same input: (name, rows of the whole tensor, rows held here)."""
    hidden = context.config.hidden_size
    weights = [Part(f"{name}.weight", (size, hidden), rows=rows) for name, size, rows in parts]
    biases = [Part(f"{name}.bias", (size,), rows=rows) for name, size, rows in parts]
    return context.ops.linear(context.weights, weights, context.weights.take(biases) if bias else None)


def load_linear(source: WeightSource, parts: Sequence[Part], bias_N: torch.Tensor | None) -> Linear:
    return Linear(source.take(parts), bias_N)


class TiedTable:
    """Token embedding and output head with the same rows: plain ones, and the head's own where it keeps others."""

    def __init__(
        self,
        source: WeightSource,
        parts: Sequence[Part],
        head: Callable[[torch.Tensor, torch.Tensor | None], Product] = Linear,
    ) -> None:
        self._weight_VE = source.take(parts)
        self._head = head(self._weight_VE, None)

    def rows(self, ids_T: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids_T, self._weight_VE)

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        return self._head(x_TK)
