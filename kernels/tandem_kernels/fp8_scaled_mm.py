"""Block-wise fp8 product for many tokens, by the library (cuBLASLt): at twice the rate of 16 bits on Hopper.

What it takes (https://docs.nvidia.com/cuda/cublas/, "Scaling factor layouts"): activations with a scale for 128 columns
of a row, weights with one for 128 x 128 or, as rows of tensor-parallel shards need not begin at a block's border, for
128 columns of a row. Scales lie token by token for one group of columns after the other, in steps of four.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import torch
from torch.nn.functional import ScalingType, pad, scaled_mm

from tandem_kernels.fp8_gemm import BlockScales
from tandem_kernels.fp8_quantize import GROUP, Quantized, fp8_quantize_padded
from tandem_kernels.launch import HOPPER, capability, ceil_div

logger = logging.getLogger(__name__)

FIRST_CUDA = (12, 9)
"""Whose cuBLASLt has these scales."""
COLUMN_STEP = 16
SCALE_STEP = 4
TILE = 128
"""Rows and columns that one of the library's programs computes."""
FEWEST, MOST = 64, 256
"""Rows up to which reading the weights is all that a product costs; rows from which it never is."""


class LibraryWeight(NamedTuple):
    weight_KN: torch.Tensor
    """float8_e4m3fn, column-major."""
    scale: torch.Tensor
    """fp32, column-major: [K / 128 rounded up to 4, N / 128] or [N, K / 128]."""
    recipe: ScalingType


def library_weight(weight_NK: torch.Tensor, scales: BlockScales) -> LibraryWeight | None:
    """The weight itself, and its scales as the library wants them; None: of a shape that it does not take."""
    columns, depth = weight_NK.shape
    if depth % GROUP or columns % COLUMN_STEP or scales.first_column:
        return None
    if scales.rows_in_blocks and columns % GROUP == 0:
        padded_RC = pad(scales.scale_RC, (0, -scales.scale_RC.shape[1] % SCALE_STEP))
        return LibraryWeight(weight_NK.t(), padded_RC.t(), ScalingType.BlockWise128x128)
    scale_NC = scales.scale_RC[scales.row_blocks_N.long()]
    return LibraryWeight(weight_NK.t(), scale_NC.t().contiguous().t(), ScalingType.BlockWise1x128)


def fp8_scaled_mm(x_TK: torch.Tensor, weight: LibraryWeight) -> torch.Tensor:
    """[T, N]: x W^T in x's dtype (16 bit); x is rounded to fp8 on the way."""
    return product(fp8_quantize_padded(x_TK), weight, x_TK.dtype)[: len(x_TK)]


def product(x: Quantized, weight: LibraryWeight, out_dtype: torch.dtype) -> torch.Tensor:
    """With the padding's rows, which hold anything."""
    out_TN: torch.Tensor = scaled_mm(
        x.x_TK,
        weight.weight_KN,
        x.scale_TG,
        ScalingType.BlockWise1x128,
        weight.scale,
        weight.recipe,
        output_dtype=out_dtype,
    )
    return out_TN


def most_rows_for_kernel(columns: int, sm_count: int) -> int:
    """Up to which `fp8_gemm` is the better choice: the library's tiles would leave half of the device idle."""
    for rows in range(FEWEST, MOST, FEWEST):
        if 2 * ceil_div(rows + 1, TILE) * ceil_div(columns, TILE) >= sm_count:
            return rows
    return MOST


def in_library(compute_capability: int, cuda_version: str | None) -> bool:
    """Whether torch's library has the product for such a device. `cuda_version`: what torch was built with."""
    if compute_capability != HOPPER or cuda_version is None:
        return False
    major, minor = cuda_version.split(".")[:2]
    return (int(major), int(minor)) >= FIRST_CUDA


@cache
def supported(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the product is there and right, with results of `dtype`: it is tried once. To be asked at start."""
    if device.type != "cuda" or dtype.itemsize != 2 or not in_library(capability(device), torch.version.cuda):
        return False
    try:
        right = all(_right(device, dtype, first_row) for first_row in (0, 64))
    except (RuntimeError, ValueError) as error:
        logger.warning("no block-wise fp8 products by cuBLASLt, so many tokens take 16-bit ones: %s", error)
        return False
    if not right:
        logger.warning("cuBLASLt's block-wise fp8 product is wrong, so many tokens take 16-bit ones")
    return right


def _right(device: torch.device, dtype: torch.dtype, first_row: int) -> bool:
    """A product whose every scale differs, against that of the dequantised numbers."""
    rows, columns, depth = 37, 384, 640
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator).add(0.5).to(device)

    x_TK = (drawn(rows, depth) - 1).to(dtype)
    weight_NK = (drawn(columns, depth) - 1).to(torch.float8_e4m3fn)
    scales = BlockScales.of(drawn(ceil_div(first_row + columns, GROUP), depth // GROUP), columns, first_row)
    weight = library_weight(weight_NK, scales)
    assert weight is not None
    found = fp8_scaled_mm(x_TK, weight).float()
    wide_NK = weight_NK.float() * scales.scale_RC[scales.row_blocks_N.long()].repeat_interleave(GROUP, 1)
    expected = x_TK.float() @ wide_NK.t()
    return bool((found - expected).norm() < 0.05 * expected.norm())
