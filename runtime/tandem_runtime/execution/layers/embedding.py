"""Token embedding and output head, split over ranks by token id."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tandem_runtime.execution.layers.context import BuildContext, Product, TiedProduct
from tandem_runtime.execution.weights import Part

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Embedding:
    def __init__(self, context: BuildContext) -> None:
        config = context.config
        self._tp = context.tp
        self._ids = context.tp.vocabulary(config.vocab_size)
        parts = [Part(EMBEDDING, (config.vocab_size, config.hidden_size), rows=self._ids)]
        if config.tie_word_embeddings:
            self.tied = context.ops.tied(context.weights, parts)
            self._rows = self.tied.rows
        else:
            weight_VE = context.weights.take(parts)
            self._rows = lambda ids_T: F.embedding(ids_T, weight_VE)

    def __call__(self, ids_T: torch.Tensor) -> torch.Tensor:
        if self._tp.world == 1:
            return self._rows(ids_T)
        local_T = ids_T - self._ids.start
        foreign_T = (local_T < 0) | (local_T >= len(self._ids))
        x_TE = self._rows(local_T.masked_fill(foreign_T, 0))
        return self._tp.all_reduce(x_TE.masked_fill_(foreign_T[:, None], 0))


class Head:
    """Logits over the whole vocabulary, on rank 0 only."""

    def __init__(self, context: BuildContext, embedding: Embedding) -> None:
        config = context.config
        self._tp = context.tp
        self._vocab_size = config.vocab_size
        rows = context.tp.vocabulary(config.vocab_size)
        self._padding = context.tp.vocabulary_step(config.vocab_size) - len(rows)
        if config.tie_word_embeddings:
            self._product: Product | TiedProduct = embedding.tied
        else:
            self._product = context.ops.dense(
                context.weights, [Part(HEAD, (config.vocab_size, config.hidden_size), rows=rows)], None
            )

    def __call__(self, hidden_RE: torch.Tensor) -> torch.Tensor | None:
        """[rows, vocab]; None on every rank but 0."""
        logits = self._product(hidden_RE)
        if self._padding:
            logits = F.pad(logits, (0, self._padding))
        gathered = self._tp.gather_last_dim(logits)
        return None if gathered is None else gathered[:, : self._vocab_size]
