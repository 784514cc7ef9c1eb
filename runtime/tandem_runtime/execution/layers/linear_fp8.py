"""Linear layers of block-wise fp8 weights by the Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tandem_kernels.fp8_dequantize import fp8_dequantize
from tandem_kernels.fp8_gemm import BlockScales, fp8_gemm
from tandem_kernels.fp8_quantize import fp8_quantize

from tandem_runtime.execution.fp8 import Fp8Weight
from tandem_runtime.execution.weights import Part, WeightSource

FEW = 64
"""Tokens up to which reading the weights is all that costs; activations are then quantised too. Beyond, the weights are
widened for a 16-bit product, at a fraction of its time."""


class Fp8Linear:
    def __init__(self, weight: Fp8Weight, bias_N: torch.Tensor | None) -> None:
        self._weight_NK = weight.weight_NK
        self._scales = BlockScales(weight.scale_RC, weight.row_blocks_N, weight.first_column)
        self._bias = bias_N

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        if len(x_TK) > FEW:
            return F.linear(x_TK, fp8_dequantize(self._weight_NK, self._scales, x_TK.dtype), self._bias)
        y_TN = fp8_gemm(fp8_quantize(x_TK), self._weight_NK, self._scales, x_TK.dtype)
        return y_TN if self._bias is None else y_TN.add_(self._bias)

    def add_to(self, residual_TN: torch.Tensor, x_TK: torch.Tensor) -> torch.Tensor:
        return residual_TN.add_(self(x_TK))


def load_linear(source: WeightSource, parts: Sequence[Part], bias_N: torch.Tensor | None) -> Fp8Linear:
    return Fp8Linear(source.take_fp8(parts), bias_N)
