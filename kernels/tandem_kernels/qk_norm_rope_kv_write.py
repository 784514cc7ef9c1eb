"""What lies between the fused QKV projection and attention, in one pass: norms of q and k, rotation, KV write.

RoPE (arXiv:2104.09864) over halves. Scaling of positions (YaRN and others) is in the tables, which are made once per
step and serve all layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tandem_kernels.arithmetic import rounded
from tandem_kernels.launch import Launch, ceil_div, power_of_2

BLOCK_ELEMENTS = 2048
"""Of one program: 16 per thread, two 16-byte loads for each half."""


def qk_norm_rope_kv_write(
    qkv_TND: torch.Tensor,
    k_PHSD: torch.Tensor,
    v_PHSD: torch.Tensor,
    page_table_SP: torch.Tensor,
    slots_T: torch.Tensor,
    positions_T: torch.Tensor,
    cos_TR: torch.Tensor,
    sin_TR: torch.Tensor,
    *,
    q_weight_D: torch.Tensor | None = None,
    k_weight_D: torch.Tensor | None = None,
    eps: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Norms (with weights) and rotates q in place; writes the same of k, and v, into the pages.

    qkv_TND holds [q heads, k heads, v heads]; its k and v are left as they are. k_PHSD, v_PHSD: one layer's views of
    the cache, equally strided; fp8 caches hold k / k_scale and v / v_scale. page_table_SP, slots_T, positions_T:
    int32; a token of slot -1 is padding and writes nothing. cos_TR, sin_TR: fp32 [T, D / 2].
    """
    launch(
        qkv_TND, k_PHSD, v_PHSD, page_table_SP, slots_T, positions_T, cos_TR, sin_TR, q_weight_D, k_weight_D, eps,
        k_scale, v_scale,
    ).run()  # fmt: skip


def launch(
    qkv_TND: torch.Tensor,
    k_PHSD: torch.Tensor,
    v_PHSD: torch.Tensor,
    page_table_SP: torch.Tensor,
    slots_T: torch.Tensor,
    positions_T: torch.Tensor,
    cos_TR: torch.Tensor,
    sin_TR: torch.Tensor,
    q_weight_D: torch.Tensor | None,
    k_weight_D: torch.Tensor | None,
    eps: float,
    k_scale: float,
    v_scale: float,
) -> Launch:
    tokens, heads, dim = qkv_TND.shape
    _, kv_heads, page_size, _ = k_PHSD.shape
    assert k_PHSD.stride() == v_PHSD.stride()
    assert k_PHSD.stride()[2:] == (dim, 1), "a tile of [page_size, head_dim] must be contiguous"
    assert qkv_TND.stride()[1:] == (dim, 1)
    assert cos_TR.is_contiguous()
    assert sin_TR.is_contiguous()
    assert (q_weight_D is None) == (k_weight_D is None)
    block_r = power_of_2(dim // 2)
    block_n = min(power_of_2(heads), max(1, BLOCK_ELEMENTS // (2 * block_r)))
    return Launch(
        qk_norm_rope_kv_write_kernel,
        (tokens, ceil_div(heads, block_n)),
        {
            "qkv": qkv_TND,
            "k": k_PHSD,
            "v": v_PHSD,
            "page_table": page_table_SP,
            "slots": slots_T,
            "positions": positions_T,
            "cos": cos_TR,
            "sin": sin_TR,
            "q_weight": qkv_TND if q_weight_D is None else q_weight_D,
            "k_weight": qkv_TND if k_weight_D is None else k_weight_D,
            "eps": eps,
            "k_scale": k_scale,
            "v_scale": v_scale,
            "qkv_row": qkv_TND.stride(0),
            "kv_page": k_PHSD.stride(0),
            "kv_head_stride": k_PHSD.stride(1),
            "table_row": page_table_SP.stride(0),
        },
        {
            "Q_HEADS": heads - 2 * kv_heads,
            "KV_HEADS": kv_heads,
            "DIM": dim,
            "PAGE_SIZE": page_size,
            "NORM": q_weight_D is not None,
            "BLOCK_N": block_n,
            "BLOCK_R": block_r,
        },
        num_warps=4,
    )


@triton.jit
def qk_norm_rope_kv_write_kernel(  # type: ignore[no-untyped-def]
    qkv,
    k,
    v,
    page_table,
    slots,
    positions,
    cos,
    sin,
    q_weight,
    k_weight,
    eps,
    k_scale,
    v_scale,
    qkv_row,
    kv_page,
    kv_head_stride,
    table_row,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    HALF: tl.constexpr = DIM // 2
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        r = tl.arange(0, BLOCK_R)
        in_r = r < HALF
        in_nr = (n < Q_HEADS + 2 * KV_HEADS)[:, None] & in_r[None, :]
        is_q = n < Q_HEADS
        is_v = n >= Q_HEADS + KV_HEADS
        low = qkv + token * qkv_row + n[:, None] * DIM + r[None, :]
        low_NR = tl.load(low, mask=in_nr, other=0.0).to(tl.float32)
        high_NR = tl.load(low + HALF, mask=in_nr, other=0.0).to(tl.float32)
        out_low_NR, out_high_NR = low_NR, high_NR
        if NORM:
            mean_N = tl.sum(low_NR * low_NR + high_NR * high_NR, 1) / DIM
            scale_N1 = tl.rsqrt(mean_N + eps)[:, None]
            q_low = tl.load(q_weight + r, mask=in_r, other=0.0).to(tl.float32)[None, :]
            q_high = tl.load(q_weight + HALF + r, mask=in_r, other=0.0).to(tl.float32)[None, :]
            k_low = tl.load(k_weight + r, mask=in_r, other=0.0).to(tl.float32)[None, :]
            k_high = tl.load(k_weight + HALF + r, mask=in_r, other=0.0).to(tl.float32)[None, :]
            out_low_NR = low_NR * scale_N1 * tl.where(is_q[:, None], q_low, k_low)
            out_high_NR = high_NR * scale_N1 * tl.where(is_q[:, None], q_high, k_high)
        cos_R = tl.load(cos + token * HALF + r, mask=in_r, other=0.0)[None, :]
        sin_R = tl.load(sin + token * HALF + r, mask=in_r, other=0.0)[None, :]
        turned_low_NR = out_low_NR * cos_R - out_high_NR * sin_R
        turned_high_NR = out_high_NR * cos_R + out_low_NR * sin_R

        in_q = in_nr & is_q[:, None]
        tl.store(low, rounded(turned_low_NR, qkv.dtype.element_ty), mask=in_q)
        tl.store(low + HALF, rounded(turned_high_NR, qkv.dtype.element_ty), mask=in_q)

        position = tl.load(positions + token)
        page = tl.load(page_table + slot.to(tl.int64) * table_row + position // PAGE_SIZE).to(tl.int64)
        head_N = tl.where(is_v, n - Q_HEADS - KV_HEADS, n - Q_HEADS).to(tl.int64)
        at_NR = page * kv_page + head_N[:, None] * kv_head_stride + (position % PAGE_SIZE) * DIM + r[None, :]
        in_k = in_nr & ((n >= Q_HEADS) & (n < Q_HEADS + KV_HEADS))[:, None]
        tl.store(k + at_NR, rounded(turned_low_NR / k_scale, k.dtype.element_ty), mask=in_k)
        tl.store(k + at_NR + HALF, rounded(turned_high_NR / k_scale, k.dtype.element_ty), mask=in_k)
        in_v = in_nr & is_v[:, None]
        tl.store(v + at_NR, rounded(low_NR / v_scale, v.dtype.element_ty), mask=in_v)
        tl.store(v + at_NR + HALF, rounded(high_NR / v_scale, v.dtype.element_ty), mask=in_v)
