"""Self-attention around an attention backend: fused QKV projection in, output projection out."""

from __future__ import annotations

import torch

from tandem_runtime.execution.attention.backend import AttentionBackend, HeadNorms
from tandem_runtime.execution.layers.context import BuildContext
from tandem_runtime.execution.layers.linear import RowParallelLinear, column_parallel
from tandem_runtime.execution.layers.norm import RMSNorm


class Attention:
    def __init__(self, context: BuildContext, name: str, layer: int) -> None:
        config = context.config
        self._layer = layer
        self._heads = len(context.q_heads) + 2 * len(context.kv_heads)
        self._head_dim = config.head_dim
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        q_part, kv_part = _scaled(context.q_heads, config.head_dim), _scaled(context.kv_heads, config.head_dim)
        self._qkv = column_parallel(
            context,
            [
                (f"{name}.q_proj", q_size, q_part),
                (f"{name}.k_proj", kv_size, kv_part),
                (f"{name}.v_proj", kv_size, kv_part),
            ],
            bias=config.qkv_bias,
        )
        self._norms = None
        if config.qk_norm:
            self._norms = HeadNorms(
                RMSNorm(context, f"{name}.q_norm", config.head_dim), RMSNorm(context, f"{name}.k_norm", config.head_dim)
            )
        self._out = RowParallelLinear(
            context, f"{name}.o_proj", out_size=config.hidden_size, cols=q_part, in_size=q_size, bias=config.o_bias
        )

    def add_to(self, residual_TE: torch.Tensor, x_TE: torch.Tensor, backend: AttentionBackend) -> torch.Tensor:
        qkv_TND = self._qkv(x_TE).view(-1, self._heads, self._head_dim)
        return self._out.add_to(residual_TE, backend.attend(self._layer, qkv_TND, self._norms))


def _scaled(heads: range, head_dim: int) -> range:
    return range(heads.start * head_dim, heads.stop * head_dim)
