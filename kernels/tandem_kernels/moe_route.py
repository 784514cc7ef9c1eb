"""The router of a mixture of experts: softmax over the experts, the most likely few, their weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from tandem_kernels.launch import Launch, ceil_div, power_of_2

BLOCK_TOKENS = 4
"""One warp each."""


class Routing(NamedTuple):
    weights_TK: torch.Tensor
    """fp32."""
    experts_TK: torch.Tensor
    """int32, most likely first."""


def moe_route(logits_TX: torch.Tensor, top_k: int, *, normalise: bool) -> Routing:
    """Of each token's expert logits; with `normalise` the weights of a token sum to 1. Ties go to the smaller index."""
    shape = (len(logits_TX), top_k)
    found = Routing(
        torch.empty(shape, dtype=torch.float32, device=logits_TX.device),
        torch.empty(shape, dtype=torch.int32, device=logits_TX.device),
    )
    launch(logits_TX, found, normalise=normalise).run()
    return found


def launch(logits_TX: torch.Tensor, found: Routing, *, normalise: bool) -> Launch:
    tokens, experts = logits_TX.shape
    top_k = found.weights_TK.shape[1]
    assert top_k <= experts
    assert logits_TX.stride(1) == 1
    return Launch(
        moe_route_kernel,
        (ceil_div(tokens, BLOCK_TOKENS),),
        {
            "logits": logits_TX,
            "weights": found.weights_TK,
            "experts": found.experts_TK,
            "tokens": tokens,
            "logits_row": logits_TX.stride(0),
        },
        {
            "EXPERTS": experts,
            "TOP_K": top_k,
            "NORMALISE": normalise,
            "BLOCK_T": BLOCK_TOKENS,
            "BLOCK_X": power_of_2(experts),
            "BLOCK_K": power_of_2(top_k),
        },
        num_warps=BLOCK_TOKENS,
    )


@triton.jit
def moe_route_kernel(  # type: ignore[no-untyped-def]
    logits,
    weights,
    experts,
    tokens,
    logits_row,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    t = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    x = tl.arange(0, BLOCK_X)
    k = tl.arange(0, BLOCK_K)
    in_tx = (t < tokens)[:, None] & (x < EXPERTS)[None, :]
    logit_TX = tl.load(logits + t[:, None] * logits_row + x[None, :], mask=in_tx, other=0.0).to(tl.float32)
    logit_TX = tl.where((x < EXPERTS)[None, :], logit_TX, -1e30)
    weight_TX = tl.exp(logit_TX - tl.max(logit_TX, 1)[:, None])
    weight_TX = tl.where((x < EXPERTS)[None, :], weight_TX / tl.sum(weight_TX, 1)[:, None], -1.0)
    weight_TK = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    expert_TK = tl.zeros((BLOCK_T, BLOCK_K), tl.int32)
    for i in tl.static_range(TOP_K):
        best_T = tl.max(weight_TX, 1)
        # NaN equals nothing: such a token's experts must still be some.
        chosen_T = tl.min(tl.where(weight_TX == best_T[:, None], x[None, :], EXPERTS - 1), 1)
        weight_TK = tl.where((k == i)[None, :], best_T[:, None], weight_TK)
        expert_TK = tl.where((k == i)[None, :], chosen_T[:, None], expert_TK)
        weight_TX = tl.where(x[None, :] == chosen_T[:, None], -1.0, weight_TX)
    if NORMALISE:
        weight_TK = weight_TK / tl.sum(weight_TK, 1)[:, None]
    at_TK = t[:, None] * TOP_K + k[None, :]
    in_tk = (t < tokens)[:, None] & (k < TOP_K)[None, :]
    tl.store(weights + at_TK, weight_TK, mask=in_tk)
    tl.store(experts + at_TK, expert_TK, mask=in_tk)
