"""Every launch of the models that are to be served, at their own sizes, compiled for Hopper: nothing spills."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from support.aot import SM_90, resources
from tandem_kernels import (
    fp8_gemm,
    fp8_quantize,
    moe_combine,
    moe_gemm,
    moe_route,
    paged_decode,
    paged_prefill,
    qk_norm_rope_kv_write,
    rms_norm,
    silu_and_mul,
)
from tandem_kernels.launch import Launch

BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
PAGE_SIZE, DIM, LAYERS = 16, 128, 4


class Rank(NamedTuple):
    """What one rank computes with."""

    hidden: int
    heads: int
    kv_heads: int
    inner: int
    experts: int = 0
    first_column: int = 0


RANKS = {
    "Qwen3-32B": Rank(5120, 64, 8, 25600),
    "Qwen3-30B-A3B": Rank(2048, 32, 4, 768, experts=128),
    "Qwen3-235B-A22B of 8": Rank(4096, 8, 1, 192, experts=128, first_column=64),
}


def meta(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.int32)


def attention(rank: Rank, tokens: int, kv_dtype: torch.dtype) -> list[Launch]:
    cache = meta(100, rank.kv_heads, LAYERS, 2, PAGE_SIZE, DIM, dtype=kv_dtype)
    k, v = cache[:, :, 1, 0], cache[:, :, 1, 1]
    qkv, table, angles = meta(tokens, rank.heads + 2 * rank.kv_heads, DIM), ints(64, 320), meta(tokens, 64, dtype=FP32)
    weight, q, out = meta(DIM), qkv[:, : rank.heads], meta(tokens, rank.heads, DIM)
    write = qk_norm_rope_kv_write.launch(
        qkv, k, v, table, ints(tokens), ints(tokens), angles, angles, weight, weight, 1e-6, 1.0, 1.0
    )
    if tokens > 64:
        chunk = paged_prefill.launch(q, k, v, table, ints(1, 4), out, tokens, 0.1, 1.0, 1.0)
        return [write, chunk]
    splits = paged_decode.choose_splits(tokens, rank.kv_heads, 5120, 132)
    return [
        write,
        *paged_decode.launches(q, k, v, table, ints(tokens), ints(tokens), out, 0.1, splits, 1.0, 1.0),
    ]


def elementwise(rank: Rank, tokens: int) -> list[Launch]:
    x = meta(tokens, rank.hidden)
    rows = tokens * 8 if rank.experts else tokens
    return [
        rms_norm.launch(x, None, meta(rank.hidden), x, 1e-6),
        silu_and_mul.launch(meta(rows, 2 * rank.inner), meta(rows, rank.inner)),
    ]


def block(rank: Rank, tokens: int, *, fp8: bool) -> list[Launch]:
    """The feed-forward block's own launches; dense 16-bit products are cuBLAS's."""
    scales = None
    if not rank.experts:
        if not fp8 or tokens > 64:
            return []
        x = fp8_quantize.Quantized(meta(tokens, rank.hidden, dtype=FP8), meta(tokens, rank.hidden // 128, dtype=FP32))
        scales = fp8_gemm.BlockScales(meta(400, rank.hidden // 128, dtype=FP32), ints(2 * rank.inner))
        weight = meta(2 * rank.inner, rank.hidden, dtype=FP8)
        return [fp8_gemm.launch(x, weight, scales, meta(tokens, 2 * rank.inner))]
    count, dtype = 8 * tokens, FP8 if fp8 else BF16
    picks = moe_gemm.Picks(meta(count, dtype=torch.int64), ints(rank.experts))
    weights, routing = meta(tokens, 8, dtype=FP32), ints(tokens, 8)
    into = meta(rank.experts, 2 * rank.inner, rank.hidden, dtype=dtype)
    back = meta(rank.experts, rank.hidden, rank.inner, dtype=dtype)
    back_scales = None
    if fp8:
        scales = fp8_gemm.BlockScales(meta(rank.experts, 12, rank.hidden // 128, dtype=FP32), ints(2 * rank.inner))
        back_scales = fp8_gemm.BlockScales(meta(rank.experts, 32, 6, dtype=FP32), ints(rank.hidden), rank.first_column)
    x, inner = meta(tokens, rank.hidden), meta(count, rank.inner)
    both, y = meta(count, 2 * rank.inner), meta(count, rank.hidden)
    return [
        moe_route.launch(meta(tokens, rank.experts), moe_route.Routing(weights, routing), normalise=True),
        moe_gemm.launch(x, into, picks, both, top_k=8, weights_P=None, scales=scales),
        moe_gemm.launch(inner, back, picks, y, top_k=1, weights_P=weights, scales=back_scales),
        moe_combine.launch(y, x, x, 8),
    ]


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("tokens", [64, 2048], ids=["decode", "prefill"])
@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
def test_no_spills(rank: Rank, tokens: int, fp8: bool) -> None:
    launches = [*attention(rank, tokens, FP8 if fp8 else BF16), *block(rank, tokens, fp8=fp8)]
    launches += [] if fp8 else elementwise(rank, tokens)
    for launch in launches:
        found = resources(launch, SM_90)
        assert found.spilled_bytes == 0, f"{launch.kernel.__name__} spills {found.spilled_bytes} bytes a thread"
        assert found.shared_bytes <= 227 * 1024
        assert found.registers * 32 * launch.num_warps <= 65536
    assert launches
