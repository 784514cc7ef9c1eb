from __future__ import annotations

from collections.abc import Iterator

import torch
from measuring import Cache, Case, bf16, nbytes
from tandem_kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write

HEADS, KV_HEADS, DIM, SEQUENCES, CONTEXT = 64, 8, 128, 64, 512


def cases() -> Iterator[Case]:
    for tokens in (1, 64, 512, 4096, 16384):
        for kv_dtype in (torch.bfloat16, torch.float8_e4m3fn):
            yield write(tokens, kv_dtype)


def write(tokens: int, kv_dtype: torch.dtype) -> Case:
    cache = Cache.of(SEQUENCES, CONTEXT, kv_heads=KV_HEADS, head_dim=DIM, dtype=kv_dtype)
    qkv = bf16(tokens, HEADS + 2 * KV_HEADS, DIM)
    at = torch.arange(tokens, device="cuda", dtype=torch.int32)
    slots, positions = (at // CONTEXT) % SEQUENCES, at % CONTEXT
    cos, sin, weight = (
        torch.rand(tokens, DIM // 2, device="cuda"),
        torch.rand(tokens, DIM // 2, device="cuda"),
        bf16(DIM),
    )

    def run() -> None:
        qk_norm_rope_kv_write(qkv, *cache, slots, positions, cos, sin, q_weight_D=weight, k_weight_D=weight, eps=1e-6)

    moved = nbytes(qkv) + nbytes(qkv[:, :HEADS]) + tokens * 2 * KV_HEADS * DIM * kv_dtype.itemsize + nbytes(cos, sin)
    return Case(f"{tokens} tokens, cache {str(kv_dtype)[6:]}", run, moved)
