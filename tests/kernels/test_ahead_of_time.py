"""Every kernel at serving shapes, compiled for GPUs that need not be there: no spills, bounded resources.

The launches are the ops' own, so this also checks what their launch tables choose.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.aot import SM_80, SM_90, Resources, resources
from tandem_kernels import (
    fp8_dequantize,
    fp8_gemm,
    fp8_quantize,
    kv_pages,
    moe_combine,
    moe_gemm,
    moe_route,
    paged_decode,
    paged_prefill,
    qk_norm_rope_kv_write,
    rms_norm,
    sample,
    silu_and_mul,
)
from tandem_kernels.launch import HOPPER, Launch
from triton.backends.compiler import GPUTarget

SHARED_BYTES = {80: 163 * 1024, HOPPER: 227 * 1024}
"""What one program can have, CUDA C++ Programming Guide, table of compute capabilities."""
HEADS, KV_HEADS, PAGE_SIZE = 64, 8, 16


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.int32)


def cache(dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    kv = meta(100, KV_HEADS, 64, 2, PAGE_SIZE, dim, dtype=dtype)
    return kv[:, :, 3, 0], kv[:, :, 3, 1]


def decode(dim: int, dtype: torch.dtype, kv_dtype: torch.dtype, splits: int) -> list[Launch]:
    q = meta(64, HEADS, dim, dtype=dtype)
    return paged_decode.launches(
        q, *cache(dim, kv_dtype), ints(256, 8192), ints(64), ints(64), q, 0.1, splits, 1.0, 1.0
    )


def prefill(dim: int, dtype: torch.dtype, kv_dtype: torch.dtype, chunk: int, capability: int) -> Launch:
    q = meta(chunk, HEADS, dim, dtype=dtype)
    tile = paged_prefill.tiles(q.element_size(), kv_dtype.itemsize, chunk, capability)
    return paged_prefill.launch(
        q, *cache(dim, kv_dtype), ints(256, 8192), ints(4, 4), q, chunk, 0.1, 1.0, 1.0, tile=tile
    )


def rope(dim: int, kv_dtype: torch.dtype) -> Launch:
    weight, table = meta(dim), meta(64, dim // 2, dtype=torch.float32)
    return qk_norm_rope_kv_write.launch(
        meta(64, HEADS + 2 * KV_HEADS, dim), *cache(dim, kv_dtype), ints(256, 8192), ints(64), ints(64), table, table,
        weight, weight, 1e-6, 1.0, 1.0,
    )  # fmt: skip


def sampling(vocab: int) -> Launch:
    logits = meta(64, vocab)
    numbers, integers = meta(64, 6, dtype=torch.float32), meta(64, 4, dtype=torch.int64)
    found = sample.Sampled(meta(64, dtype=torch.int64), meta(64, vocab, dtype=torch.float32))
    return sample.launch(logits, sample.SamplingTable(numbers, integers), ints(256, vocab), found)


def moe(tokens: int, dtype: torch.dtype, capability: int, *, inner: int = 1536, fp8: bool = False) -> list[Launch]:
    """The products of Qwen3-235B-A22B, or of one rank's share."""
    experts, top_k, hidden = 128, 8, 4096
    count = tokens * top_k
    picks = moe_gemm.Picks(meta(count, dtype=torch.int64), ints(experts))
    tile = moe_gemm.tiles(count / experts, dtype.itemsize, capability, fp8=fp8)
    x, x_inner = meta(tokens, hidden, dtype=dtype), meta(count, inner, dtype=dtype)
    kept = FP8 if fp8 else dtype
    into, back = meta(experts, 2 * inner, hidden, dtype=kept), meta(experts, hidden, inner, dtype=kept)
    into_scales = fp8_gemm.BlockScales(meta(experts, 4, 32, dtype=FP32), ints(2 * inner)) if fp8 else None
    back_scales = fp8_gemm.BlockScales(meta(experts, 32, 2, dtype=FP32), ints(hidden), 64) if fp8 else None
    between, out = meta(count, 2 * inner, dtype=dtype), meta(count, hidden, dtype=dtype)
    weights = meta(tokens, top_k, dtype=torch.float32)
    return [
        moe_gemm.launch(x, into, picks, between, top_k=top_k, weights_P=None, tile=tile, scales=into_scales),
        moe_gemm.launch(x_inner, back, picks, out, top_k=1, weights_P=weights, tile=tile, scales=back_scales),
    ]


def routing() -> Launch:
    found = moe_route.Routing(meta(64, 8, dtype=torch.float32), ints(64, 8))
    return moe_route.launch(meta(64, 128), found, normalise=True)


def fp8_product(rows: int, first_column: int = 0) -> Launch:
    x = fp8_quantize.Quantized(meta(rows, 5120, dtype=FP8), meta(rows, 40, dtype=FP32))
    scales = fp8_gemm.BlockScales(meta(80, 41, dtype=FP32), ints(10240), first_column)
    return fp8_gemm.launch(x, meta(10240, 5120, dtype=FP8), scales, meta(rows, 10240))


def quantize() -> list[Launch]:
    """For the kernel, and for the library."""
    token_major, group_major = meta(64, 40, dtype=FP32), meta(40, 64, dtype=FP32).t()
    return [
        fp8_quantize.launch(meta(64, 5120), fp8_quantize.Quantized(meta(64, 5120, dtype=FP8), scales))
        for scales in (token_major, group_major)
    ]


def dequantize() -> Launch:
    scales = fp8_gemm.BlockScales(meta(80, 40, dtype=FP32), ints(10240))
    return fp8_dequantize.launch(meta(10240, 5120, dtype=FP8), scales, meta(10240, 5120))


BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
CASES: dict[str, Callable[[int], list[Launch]]] = {
    "rms_norm": lambda _: [rms_norm.launch(meta(64, 5120), None, meta(5120), meta(64, 5120), 1e-6)],
    "add_rms_norm": lambda _: [rms_norm.launch(meta(64, 8192), meta(64, 8192), meta(8192), meta(64, 8192), 1e-6)],
    "silu_and_mul": lambda _: [silu_and_mul.launch(meta(64, 2 * 25600), meta(64, 25600))],
    "qk_norm_rope_kv_write": lambda _: [rope(128, BF16)],
    "paged_decode": lambda _: decode(128, BF16, BF16, 4),
    "paged_decode unsplit": lambda _: decode(128, FP16, FP16, 1),
    "paged_decode 64": lambda _: decode(64, BF16, BF16, 4),
    "paged_decode 96": lambda _: decode(96, BF16, BF16, 4),
    "paged_decode fp32": lambda _: decode(128, FP32, FP32, 4),
    "paged_prefill": lambda arch: [prefill(128, BF16, BF16, 4096, arch)],
    "paged_prefill short": lambda arch: [prefill(128, BF16, BF16, 64, arch)],
    "paged_prefill few": lambda arch: [prefill(128, BF16, BF16, 16, arch)],
    "paged_prefill 64": lambda arch: [prefill(64, BF16, BF16, 4096, arch)],
    "paged_prefill 96": lambda arch: [prefill(96, FP16, FP16, chunk, arch) for chunk in (16, 64, 4096)],
    "paged_prefill fp32": lambda arch: [prefill(128, FP32, FP32, 4096, arch)],
    "moe_gemm fp32": lambda arch: moe(64, FP32, arch),
    "moe_route": lambda _: [routing()],
    "moe_gemm few": lambda arch: moe(64, BF16, arch),
    "moe_gemm some": lambda arch: moe(1024, BF16, arch),
    "moe_gemm many": lambda arch: moe(4096, FP16, arch),
    "moe_combine": lambda _: [moe_combine.launch(meta(512, 4096), meta(64, 4096), meta(64, 4096), 8)],
    "sample": lambda _: [sampling(151936), sampling(4000)],
    "pack": lambda _: [
        kv_pages.pack_launch(meta(100, 8, 4096, dtype=torch.int64), ints(9), 2, meta(9, 4, 4096, dtype=torch.int64))
    ],
    "unpack": lambda _: [
        kv_pages.unpack_launch(meta(9, 4, 4096, dtype=torch.int64), meta(100, 8, 4096, dtype=torch.int64), ints(9), 2)
    ],
}
"""By the compute capability that launch tables choose for."""
HOPPER_CASES: dict[str, Callable[[int], list[Launch]]] = {
    "moe_gemm fp8": lambda arch: [
        x for tokens in (64, 1024, 4096) for x in moe(tokens, BF16, arch, inner=192, fp8=True)
    ],
    "fp8_dequantize": lambda _: [dequantize()],
    "fp8_quantize": lambda _: quantize(),
    "fp8_gemm": lambda _: [fp8_product(rows, first) for rows in (1, 32, 64, 256) for first in (0, 64)],
    "qk_norm_rope_kv_write fp8": lambda _: [rope(128, FP8)],
    "paged_decode fp8": lambda _: decode(128, BF16, FP8, 4),
    "paged_decode 64 fp8": lambda _: decode(64, BF16, FP8, 4),
    "paged_prefill fp8": lambda arch: [prefill(128, BF16, FP8, chunk, arch) for chunk in (16, 4096)],
}


def compiled(launch: Launch, target: GPUTarget) -> Resources:
    found = resources(launch, target)
    assert found.spilled_bytes == 0, f"{launch.kernel.__name__} spills {found.spilled_bytes} bytes per thread"
    assert found.shared_bytes <= SHARED_BYTES[target.arch]
    assert found.registers * 32 * launch.num_warps <= 65536
    return found


@pytest.mark.parametrize("case", [*CASES, *HOPPER_CASES])
def test_no_spills_on_hopper(case: str) -> None:
    for launch in (CASES | HOPPER_CASES)[case](HOPPER):
        compiled(launch, SM_90)


@pytest.mark.parametrize("case", CASES)
def test_no_spills_on_ampere(case: str) -> None:
    for launch in CASES[case](SM_80.arch):
        compiled(launch, SM_80)


def test_prefill_uses_hoppers_matrix_units_and_asynchronous_copies() -> None:
    ptx = compiled(prefill(128, BF16, BF16, 4096, HOPPER), SM_90).ptx
    assert "wgmma.mma_async" in ptx
    assert "cp.async" in ptx


def test_three_decode_programs_fit_an_sm() -> None:
    attend = decode(128, BF16, BF16, 4)[0]
    found = compiled(attend, SM_90)
    assert paged_decode.PROGRAMS_PER_SM * found.shared_bytes <= SHARED_BYTES[HOPPER]
    assert paged_decode.PROGRAMS_PER_SM * found.registers * 32 * attend.num_warps <= 65536
    assert "cp.async" in found.ptx


@pytest.mark.parametrize("case", ["rms_norm", "add_rms_norm", "silu_and_mul", "moe_combine", "pack", "unpack"])
def test_streaming_kernels_move_16_bytes_at_a_time(case: str) -> None:
    ptx = compiled(CASES[case](HOPPER)[0], SM_90).ptx
    loads = [line for line in ptx.splitlines() if "ld.global" in line and ".b16" not in line]
    assert loads
    assert all(".v4.b32" in line or ".v2.b64" in line for line in loads if "ld.global.b32" not in line), loads
