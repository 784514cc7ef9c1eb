from __future__ import annotations

import dataclasses

import pytest
from tandem_runtime.bench.roofline import CEILINGS, Shape, decode_step, distinct_experts, prefill

QWEN3_32B = Shape(
    layers=64, hidden=5120, heads=64, kv_heads=8, head_dim=128, inner=25600, vocab=151936, tensor_parallel=1
)
A3B = {
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "vocab_size": 151936,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}


def test_a_decode_step_reads_all_weights_and_the_cache_once() -> None:
    """Qwen3-32B: 32.76e9 parameters without one embedding's 0.78e9, 256 KiB of KV a token."""
    work = decode_step(QWEN3_32B, [4096] * 64)
    assert work.num_bytes == pytest.approx(2 * (32.76e9 - 0.78e9) + 64 * 4096 * 262144, rel=2e-3)
    # 132.7 GB at 4.3 TB/s.
    assert work.floor_seconds(CEILINGS["H200"]) == pytest.approx(30.86e-3, rel=2e-3)


def test_prefill_is_bound_by_arithmetic() -> None:
    work = prefill(QWEN3_32B, 3500)
    linears = 2 * (32.76e9 - 2 * 0.78e9) * 3500
    attention = 4 * 64 * 64 * 128 * 3500 * 3501 / 2
    assert work.flops == pytest.approx(linears + attention, rel=2e-3)
    assert work.floor_seconds(CEILINGS["H200"]) == work.flops / 790e12


def test_fp8_layers_are_computed_twice_as_fast_and_attention_and_head_are_not() -> None:
    work = prefill(dataclasses.replace(QWEN3_32B, weight_bytes=1.0), 3500)
    assert work.fp8_flops == pytest.approx(2 * (32.76e9 - 2 * 0.78e9) * 3500, rel=2e-3)
    assert work.flops == pytest.approx(4 * 64 * 64 * 128 * 3500 * 3501 / 2 + 2 * 0.78e9, rel=2e-3)
    # 218.4 and 12.9 TFLOP.
    assert work.floor_seconds(CEILINGS["H200"]) == pytest.approx(0.5 * 218.4 / 790 + 12.9 / 790, rel=5e-3)


def test_ranks_beyond_the_kv_heads_hold_copies_of_them() -> None:
    """Qwen3-235B-A22B of 8 ranks: 8 of 64 query heads and one of 4 KV heads each."""
    shape = Shape.of(A3B | {"hidden_size": 4096, "num_attention_heads": 64}, tensor_parallel=8)
    assert shape.attention_weights == 4096 * 128 * (8 + 1 + 1 + 8)


def test_experts_are_read_as_often_as_they_are_chosen() -> None:
    shape = Shape.of(A3B)
    assert distinct_experts(shape, 1) == pytest.approx(8)
    assert distinct_experts(shape, 1000) == pytest.approx(128)
    # 3.35e9 active parameters, one embedding less.
    assert decode_step(shape, [1]).num_bytes == pytest.approx(2 * 3.03e9, rel=2e-2)


def test_ranks_share_weights_and_heads_and_fp8_halves_the_layers() -> None:
    whole = decode_step(Shape.of(A3B), [4096] * 8)
    shard = decode_step(Shape.of(A3B, tensor_parallel=4), [4096] * 8)
    # Only the router is everyone's own.
    assert shard.num_bytes == pytest.approx(whole.num_bytes / 4, rel=2e-2)
    half = decode_step(Shape.of(A3B, weight_bytes=1.0, kv_bytes=1.0), [4096] * 8)
    head = 2 * 2048 * 151936
    assert half.num_bytes - head == pytest.approx((whole.num_bytes - head) / 2, rel=2e-2)
