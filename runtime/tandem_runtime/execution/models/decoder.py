"""The decoder-only transformer that Llama, Qwen2, Qwen3 and Qwen3-MoE share; `ModelConfig` says how they differ."""

from __future__ import annotations

import torch

from tandem_runtime.execution.attention.backend import AttentionBackend
from tandem_runtime.execution.layers.attention import Attention
from tandem_runtime.execution.layers.context import BuildContext
from tandem_runtime.execution.layers.embedding import Embedding, Head
from tandem_runtime.execution.layers.mlp import MLP
from tandem_runtime.execution.layers.norm import RMSNorm


class DecoderLayer:
    def __init__(self, context: BuildContext, layer: int) -> None:
        name = f"model.layers.{layer}"
        config = context.config
        self._attention_norm = RMSNorm(context, f"{name}.input_layernorm", config.hidden_size)
        self._attention = Attention(context, f"{name}.self_attn", layer)
        self._mlp_norm = RMSNorm(context, f"{name}.post_attention_layernorm", config.hidden_size)
        self._mlp = (context.ops.moe if config.is_moe_layer(layer) else MLP)(context, f"{name}.mlp")

    def __call__(self, x_TE: torch.Tensor, backend: AttentionBackend) -> torch.Tensor:
        x_TE = self._attention.add_to(x_TE, self._attention_norm(x_TE), backend)
        return self._mlp.add_to(x_TE, self._mlp_norm(x_TE))


class Decoder:
    """Building it loads the weights, layer by layer."""

    def __init__(self, context: BuildContext) -> None:
        config = context.config
        self._embedding = Embedding(context)
        self._layers = [DecoderLayer(context, i) for i in range(config.num_layers)]
        self._norm = RMSNorm(context, "model.norm", config.hidden_size)
        self._head = Head(context, self._embedding)

    def hidden(self, ids_T: torch.Tensor, backend: AttentionBackend) -> torch.Tensor:
        """[T, hidden] after the last layer, not normalised; the backend has begun the step these tokens are of."""
        x_TE = self._embedding(ids_T)
        for layer in self._layers:
            x_TE = layer(x_TE, backend)
        return x_TE

    def logits(self, hidden_RE: torch.Tensor) -> torch.Tensor | None:
        """[rows, vocab] for chosen rows of `hidden`; None on every rank but 0."""
        return self._head(self._norm(hidden_RE))
