"""Linear layers, whole or split over tensor-parallel ranks (Megatron-LM, arXiv:1909.08053)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tandem_runtime.execution.fp8 import dequantize_blocks
from tandem_runtime.execution.layers.context import BuildContext, Product
from tandem_runtime.execution.weights import Part, WeightSource

PACK_ROWS = 8
"""The batch for which oneDNN chooses its weight layout; measured best for decode, no worse for prefill."""


class Linear:
    """y = x W^T + b, optionally plus a residual in the same pass.

    On the CPU, weights are kept in oneDNN's blocked layout: the same product on plain rows is repacked on every call,
    which costs a third of a decode step. The packed copy replaces the plain one. In this layout a row's bits do not
    depend on the rows beside it, except that a product of one row sums in another order: it is computed as two.
    """

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> None:
        self._bias = bias_N
        self._packed = packs(weight_NK.dtype, weight_NK.device.type)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_NK, PACK_ROWS) if self._packed else weight_NK

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        if self._packed:
            if len(x_TK) == 1:
                return self(x_TK.repeat(2, 1))[:1]
            y_TN: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(
                x_TK, self._weight, self._bias, "none", [], ""
            )
            return y_TN
        return F.linear(x_TK, self._weight, self._bias)

    def add_to(self, residual_TN: torch.Tensor, x_TK: torch.Tensor) -> torch.Tensor:
        """residual + x W^T + b; may overwrite `residual_TN`."""
        if self._packed:
            if len(x_TK) == 1:
                return self.add_to(residual_TN.repeat(2, 1), x_TK.repeat(2, 1))[:1]
            y_TN: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x_TK, residual_TN, self._weight, self._bias, "add"
            )
            return y_TN
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


def load_linear(source: WeightSource, parts: Sequence[Part], bias_N: torch.Tensor | None = None) -> Linear:
    return Linear((source.lend if packs(source.dtype, source.device) else source.take)(parts), bias_N)


def load_fp8_linear(source: WeightSource, parts: Sequence[Part], bias_N: torch.Tensor | None = None) -> Linear:
    """With weights rounded to block-wise fp8 and widened again: what fp8 costs in quality, not what it gains."""
    return Linear(dequantize_blocks(source.take_fp8(parts), source.dtype), bias_N)


def packs(dtype: torch.dtype, device: str) -> bool:
    """Whether a linear of this kind keeps its weight in oneDNN's layout."""
    if device != "cpu":
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
