from __future__ import annotations

import pytest
import torch
from support.kernels import assert_close, normal
from support.simulated_cuda import DEVICE, simulated_cuda
from tandem_kernels.fp8_gemm import BlockScales
from tandem_kernels.fp8_quantize import GROUP, PADDING, fp8_quantize, fp8_quantize_padded
from tandem_kernels.fp8_scaled_mm import (
    fp8_scaled_mm,
    in_library,
    library_weight,
    most_rows_for_kernel,
    supported,
)
from tandem_kernels.launch import ceil_div
from tandem_kernels.reference import fp8_gemm as dequantised
from tandem_kernels.reference import fp8_scaled_mm as reference
from torch.nn.functional import ScalingType

SHAPES = [(65, 256, 512, 0), (70, 192, 640, 0), (81, 256, 384, 64), (1, 48, 128, 0)]
"""Rows, columns, depth, and the first row of the first block: one in blocks and three that are not."""


def weight_of(columns: int, depth: int, first_row: int, device: str) -> tuple[torch.Tensor, BlockScales]:
    weight = (100 * normal(columns, depth, dtype=torch.float32, device=device)).to(torch.float8_e4m3fn)
    scale = (torch.rand(ceil_div(first_row + columns, GROUP), depth // GROUP).add(0.5) / (100 * depth**0.5)).to(device)
    return weight, BlockScales.of(scale, columns, first_row)


@pytest.mark.parametrize(("rows", "columns", "depth", "first_row"), SHAPES)
def test_operands_mean_the_dequantised_product(
    rows: int, columns: int, depth: int, first_row: int, device: str
) -> None:
    weight_NK, scales = weight_of(columns, depth, first_row, device)
    weight = library_weight(weight_NK, scales)
    assert weight is not None
    assert weight.weight_KN.data_ptr() == weight_NK.data_ptr(), "the weight is not held twice"
    x_TK = normal(rows, depth, dtype=torch.bfloat16, device=device)
    x = fp8_quantize_padded(x_TK)
    assert len(x.x_TK) == ceil_div(rows, PADDING) * PADDING
    found = reference.fp8_scaled_mm(
        x.x_TK[:rows].double(), x.scale_TG[:rows].double(), weight.weight_KN.double(), weight.scale.double(),
        group=GROUP, by_blocks=weight.recipe == ScalingType.BlockWise128x128,
    )  # fmt: skip
    few = fp8_quantize(x_TK)
    expected = dequantised.fp8_gemm(
        few.x_TK.double(), few.scale_TG.double(), weight_NK.double(), scales.scale_RC.double(), group=GROUP,
        first_row=first_row,
    )  # fmt: skip
    torch.testing.assert_close(found, expected)


def test_which_scales_weights_need() -> None:
    recipes = [library_weight(*weight_of(*shape[1:], "cpu")).recipe for shape in SHAPES]  # type: ignore[union-attr]
    assert recipes == [ScalingType.BlockWise128x128, *[ScalingType.BlockWise1x128] * 3]


@pytest.mark.parametrize(("columns", "depth", "first_column"), [(128, 192, 0), (40, 128, 0), (128, 128, 64)])
def test_shapes_that_the_library_does_not_take(columns: int, depth: int, first_column: int) -> None:
    weight = torch.empty(columns, depth, dtype=torch.float8_e4m3fn)
    assert library_weight(weight, BlockScales.of(torch.ones(9, 9), columns, 0, first_column)) is None


def test_the_kernel_serves_while_the_librarys_tiles_would_leave_half_the_device_idle() -> None:
    assert [most_rows_for_kernel(columns, 132) for columns in (51200, 10240, 5120, 1280, 128)] == [
        64,
        64,
        128,
        256,
        256,
    ]
    assert most_rows_for_kernel(5120, 80) == 64


def test_which_devices_have_it() -> None:
    assert in_library(90, "12.9")
    assert in_library(90, "13.0")
    assert not any(in_library(*x) for x in ((89, "13.0"), (100, "13.0"), (90, "12.8"), (90, None)))
    assert not supported(torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize(
    ("capability", "dtype", "there"),
    [((9, 0), torch.bfloat16, True), ((9, 0), torch.float16, True), ((9, 0), torch.float32, False),
     ((8, 9), torch.bfloat16, False)],
)  # fmt: skip
def test_it_is_tried_at_start(capability: tuple[int, int], dtype: torch.dtype, there: bool, device: str) -> None:
    if device == "cuda":
        pytest.skip("the simulated device needs the interpreter")
    with simulated_cuda(capability_of=capability):
        assert supported(DEVICE, dtype) is there


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "depth", "first_row"), [*SHAPES, (3500, 5120, 5120, 0), (97, 1232, 1920, 16)]
)
def test_the_library_computes_it(rows: int, columns: int, depth: int, first_row: int, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available() or not supported(torch.device("cuda"), dtype):
        pytest.skip("no Hopper device with cuBLASLt 12.9")
    weight_NK, scales = weight_of(columns, depth, first_row, "cuda")
    weight = library_weight(weight_NK, scales)
    assert weight is not None
    x_TK = normal(rows, depth, dtype=dtype, device="cuda")
    x = fp8_quantize(x_TK)
    expected = dequantised.fp8_gemm(
        x.x_TK.double(), x.scale_TG.double(), weight_NK.double(), scales.scale_RC.double(), group=GROUP,
        first_row=first_row,
    )  # fmt: skip
    assert_close(fp8_scaled_mm(x_TK, weight), expected)
