"""Linear layers on the CPU: weights in the layout of their product, and the same bits for a row in any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tandem_kernels.native import PackedWeight, has_packed_linear

from tandem_runtime.execution.fp8 import dequantize_blocks
from tandem_runtime.execution.layers.context import Product, TiedProduct
from tandem_runtime.execution.layers.linear import Linear, TiedTable, load_linear
from tandem_runtime.execution.weights import Part, WeightSource

ONEDNN_ROWS = 8
"""The batch for which oneDNN chooses its weight layout; measured best for decode, no worse for prefill."""


class OneDnnLinear:
    """y = x W^T + b, optionally plus a residual in the same pass.

    On plain rows oneDNN would repack the weight on every call, which costs a third of a decode step. In its own layout
    a row's bits do not depend on the rows beside it, except that a product of one row sums in another order: it is
    computed as two.
    """

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_NK, ONEDNN_ROWS)
        self._bias = bias_N

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        if len(x_TK) == 1:
            return self(x_TK.repeat(2, 1))[:1]
        y_TN: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x_TK, self._weight, self._bias, "none", [], "")
        return y_TN

    def add_to(self, residual_TN: torch.Tensor, x_TK: torch.Tensor) -> torch.Tensor:
        if len(x_TK) == 1:
            return self.add_to(residual_TN.repeat(2, 1), x_TK.repeat(2, 1))[:1]
        y_TN: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x_TK, residual_TN, self._weight, self._bias, "add"
        )
        return y_TN


class NativeLinear:
    """The same by our own product, nearly twice as fast for few rows (ADR 0008); also a tied embedding."""

    def __init__(self, weight: PackedWeight, bias_N: torch.Tensor | None = None) -> None:
        self._weight, self._bias = weight, bias_N

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        return self._weight.product(x_TK, self._bias)

    def rows(self, ids_T: torch.Tensor) -> torch.Tensor:
        return self._weight.rows(ids_T)

    def add_to(self, residual_TN: torch.Tensor, x_TK: torch.Tensor) -> torch.Tensor:
        return self._weight.product(x_TK, self._bias, residual_TN)


@dataclass(frozen=True, slots=True)
class Linears:
    """One way to keep weights."""

    load: Callable[[WeightSource, Sequence[Part], torch.Tensor | None], Product]
    of: Callable[[torch.Tensor, torch.Tensor | None], Product]
    """From a tensor that is the product's to keep."""
    tied: Callable[[WeightSource, Sequence[Part]], TiedProduct]


def linears(dtype: torch.dtype, *, native: bool) -> Linears:
    """`native`: whether the C kernels may be used."""
    if native and has_packed_linear(dtype):
        return Linears(_load_native, _native_of, lambda source, parts: _load_native(source, parts, None))
    if _onednn_has(dtype):
        return Linears(lambda source, parts, bias: OneDnnLinear(source.lend(parts), bias), OneDnnLinear, _onednn_tied)
    return Linears(load_linear, Linear, TiedTable)


def _onednn_tied(source: WeightSource, parts: Sequence[Part]) -> TiedTable:
    """Held twice: oneDNN's layout gives no rows back."""
    return TiedTable(source, parts, OneDnnLinear)


def load_rounded(linears: Linears, source: WeightSource, parts: Sequence[Part], bias_N: torch.Tensor | None) -> Product:
    """With weights rounded to block-wise fp8 and widened again: what fp8 costs in quality, not what it gains."""
    return linears.of(dequantize_blocks(source.take_fp8(parts), source.dtype), bias_N)


def _load_native(source: WeightSource, parts: Sequence[Part], bias_N: torch.Tensor | None) -> NativeLinear:
    weight = PackedWeight(sum(len(part.taken_rows) for part in parts), len(parts[0].taken_cols))
    for first, rows_RK in source.lend_in_blocks(parts):
        weight.write(first, rows_RK)
    return NativeLinear(weight, bias_N)


def _native_of(weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> NativeLinear:
    weight = PackedWeight(*weight_NK.shape)
    weight.write(0, weight_NK.contiguous())
    return NativeLinear(weight, bias_N)


def _onednn_has(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
