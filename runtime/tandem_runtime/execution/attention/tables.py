"""A step's tables on the device: views into one buffer, so that they travel in one copy and a graph can hold them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tandem_runtime.execution.attention.backend import StepBatch

ALIGNMENT = 4
"""Entries of 4 bytes: every table begins at 16 bytes, so that kernels are specialised alike in every step."""


class StepShape(NamedTuple):
    """What the kernels' launches depend on, and where each table begins."""

    num_tokens: int
    num_decodes: int
    num_chunks: int = 0
    max_chunk: int = 0
    """Tokens of the longest chunk."""

    @classmethod
    def of(cls, batch: StepBatch) -> StepShape:
        longest = max((span.num_tokens for span in batch.chunks), default=0)
        return cls(len(batch.ids_T), batch.num_decodes, len(batch.chunks), longest)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.num_tokens, self.num_tokens, self.num_tokens, self.num_decodes, 4 * self.num_chunks

    @property
    def buffer_size(self) -> int:
        return sum(_aligned(size) for size in self.sizes)


class StepTables:
    """int32 views of `buffer`."""

    def __init__(self, shape: StepShape, buffer: torch.Tensor) -> None:
        assert len(buffer) == shape.buffer_size
        self.shape = shape
        self.buffer = buffer
        views = []
        first = 0
        for size in shape.sizes:
            views.append(buffer[first : first + size])
            first += _aligned(size)
        self.ids_T, self.slots_T, self.positions_T, self.lengths_B, chunks = views
        """ids: -1 is what the slot sampled last. slots: -1 is padding. lengths: tokens to attend to, 0 is padding."""
        self.chunks_C4 = chunks.view(-1, 4)
        """Slot, first token of the step, tokens before it in the sequence, number of tokens."""


def pack(batch: StepBatch, shape: StepShape) -> torch.Tensor:
    """The buffer of the batch's tables on the host. A shape of more tokens or decodes than the batch has is padded."""
    tables = StepTables(shape, torch.zeros(shape.buffer_size, dtype=torch.int32))
    tokens, decodes = len(batch.ids_T), batch.num_decodes
    assert tokens == decodes or shape.num_decodes == decodes, "padding would lie between decodes and chunks"
    tables.ids_T[:tokens] = batch.ids_T
    tables.slots_T.fill_(-1)
    tables.slots_T[:tokens] = batch.slots_T
    tables.positions_T[:tokens] = batch.positions_T
    tables.lengths_B[:decodes] = batch.positions_T[:decodes] + 1
    if batch.chunks:
        rows = [(span.slot, span.first_row, span.start, span.num_tokens) for span in batch.chunks]
        tables.chunks_C4.copy_(torch.tensor(rows, dtype=torch.int32))
    return tables.buffer


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
