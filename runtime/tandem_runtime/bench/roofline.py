"""The least time a step can take: bytes over bandwidth or operations over the arithmetic rate, whichever is longer.

Counted are what cannot be avoided: every weight that a step uses once, every K and V that attention reads or writes
once, two operations for each weight and token. Activations stay in caches and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Ceilings(NamedTuple):
    """Measured on the card: a large copy (read and write counted), a large bf16 product; of fp8 twice that one."""

    bytes_per_second: float
    flops_per_second: float

    @property
    def fp8_flops_per_second(self) -> float:
        return 2 * self.flops_per_second


CEILINGS = {"H200": Ceilings(4.3e12, 790e12), "H100": Ceilings(2.9e12, 790e12)}


class Work(NamedTuple):
    num_bytes: float
    flops: float
    """Of 16-bit numbers."""
    fp8_flops: float = 0.0

    def floor_seconds(self, ceilings: Ceilings) -> float:
        arithmetic = self.flops / ceilings.flops_per_second + self.fp8_flops / ceilings.fp8_flops_per_second
        return max(self.num_bytes / ceilings.bytes_per_second, arithmetic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One tensor-parallel rank's share of a model is computed with `tensor_parallel` ranks."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """Of the feed-forward block, or of one expert."""
    vocab: int
    experts: int = 0
    experts_per_token: int = 0
    weight_bytes: float = 2.0
    """Of one weight inside the layers; embedding and head are 16 bit."""
    kv_bytes: float = 2.0
    tensor_parallel: int = 1

    @classmethod
    def of(cls, config: dict[str, Any], **given: float) -> Shape:
        """From a Hugging Face `config.json`; `given`: the bytes and the ranks, which it does not tell."""
        experts = config.get("num_experts", 0)
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            inner=config["moe_intermediate_size"] if experts else config["intermediate_size"],
            vocab=config["vocab_size"],
            experts=experts,
            experts_per_token=config.get("num_experts_per_tok", 0),
            **given,  # type: ignore[arg-type]
        )

    @property
    def attention_weights(self) -> float:
        """Of one layer on one rank."""
        q_heads = self.heads / self.tensor_parallel
        return self.hidden * self.head_dim * (2 * q_heads + 2 * self.rank_kv_heads)

    @property
    def rank_kv_heads(self) -> float:
        """More ranks than heads hold copies."""
        return max(1.0, self.kv_heads / self.tensor_parallel)

    @property
    def block_weights(self) -> float:
        """Of one layer's feed-forward block, or of one expert, on one rank."""
        return 3 * self.hidden * self.inner / self.tensor_parallel

    @property
    def head_weights(self) -> float:
        return self.hidden * self.vocab / self.tensor_parallel

    @property
    def kv_token_bytes(self) -> float:
        """Of one token on one rank, all layers."""
        return 2 * self.layers * self.rank_kv_heads * self.head_dim * self.kv_bytes


def decode_step(shape: Shape, lengths: Sequence[int]) -> Work:
    """One token for each sequence; `lengths`: tokens that each attends to, its own included."""
    return _step(shape, tokens=len(lengths), sampled=len(lengths), attended=sum(lengths), kv_tokens=sum(lengths))


def prefill(shape: Shape, tokens: int) -> Work:
    """One prompt from its beginning, its last token sampled."""
    return _step(shape, tokens=tokens, sampled=1, attended=tokens * (tokens + 1) / 2, kv_tokens=tokens)


def distinct_experts(shape: Shape, tokens: int) -> float:
    """How many of a layer's experts `tokens` tokens are expected to use, were the router fair."""
    missed: float = (1 - shape.experts_per_token / shape.experts) ** tokens
    return shape.experts * (1 - missed)


def _step(shape: Shape, *, tokens: int, sampled: int, attended: float, kv_tokens: float) -> Work:
    blocks_read, blocks_used = 1.0, 1.0
    router = 0.0
    if shape.experts:
        blocks_read, blocks_used = distinct_experts(shape, tokens), float(shape.experts_per_token)
        router = float(shape.hidden * shape.experts)
    read = shape.attention_weights + blocks_read * shape.block_weights
    used = shape.attention_weights + blocks_used * shape.block_weights
    num_bytes = shape.layers * (read * shape.weight_bytes + router * 2) + shape.head_weights * 2
    num_bytes += kv_tokens * shape.kv_token_bytes
    projections = 2 * shape.layers * used * tokens
    flops = 2 * (shape.layers * router * tokens + shape.head_weights * sampled)
    flops += 4 * shape.layers * shape.heads / shape.tensor_parallel * shape.head_dim * attended
    return Work(num_bytes, flops, projections) if shape.weight_bytes == 1 else Work(num_bytes, flops + projections)
