"""Linear layers of block-wise fp8 weights: few tokens by a Triton kernel, many by the library where it can."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tandem_kernels.fp8_dequantize import fp8_dequantize
from tandem_kernels.fp8_gemm import BlockScales, fp8_gemm
from tandem_kernels.fp8_quantize import fp8_quantize
from tandem_kernels.fp8_scaled_mm import FEWEST, fp8_scaled_mm, library_weight, most_rows_for_kernel
from tandem_kernels.launch import sm_count

from tandem_runtime.execution.fp8 import Fp8Weight
from tandem_runtime.execution.weights import Part, WeightSource


class Fp8Linear:
    def __init__(self, weight: Fp8Weight, bias_N: torch.Tensor | None, *, library: bool) -> None:
        """`library`: whether its product may be used. Without, many tokens widen the weights for a 16-bit product."""
        self._weight_NK = weight.weight_NK
        self._scales = BlockScales(
            weight.scale_RC, weight.row_blocks_N, weight.first_column, rows_in_blocks=weight.rows_in_blocks
        )
        self._library = library_weight(self._weight_NK, self._scales) if library else None
        self._few = FEWEST
        if self._library is not None:
            self._few = most_rows_for_kernel(len(self._weight_NK), sm_count(self._weight_NK.device))
        self._bias = bias_N

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        if len(x_TK) <= self._few:
            y_TN = fp8_gemm(fp8_quantize(x_TK), self._weight_NK, self._scales, x_TK.dtype)
        elif self._library is not None:
            y_TN = fp8_scaled_mm(x_TK, self._library)
        else:
            return F.linear(x_TK, fp8_dequantize(self._weight_NK, self._scales, x_TK.dtype), self._bias)
        return y_TN if self._bias is None else y_TN.add_(self._bias)

    def add_to(self, residual_TN: torch.Tensor, x_TK: torch.Tensor) -> torch.Tensor:
        return residual_TN.add_(self(x_TK))


def load_linear(
    source: WeightSource, parts: Sequence[Part], bias_N: torch.Tensor | None, *, library: bool
) -> Fp8Linear:
    return Fp8Linear(source.take_fp8(parts), bias_N, library=library)
