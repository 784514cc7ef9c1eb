"""Paged attention by the Triton kernels, for CUDA devices.

`begin` copies the step's tables to the device once; `attend` then knows nothing of the host but the step's shape, so
that its launches (two to four a layer) can be captured in a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tandem_kernels.paged_decode import choose_splits, paged_decode
from tandem_kernels.paged_prefill import paged_prefill
from tandem_kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write

from tandem_runtime.execution.attention.backend import HeadNorms, StepBatch
from tandem_runtime.execution.layers.rope import Rope


@dataclass(frozen=True, slots=True)
class StepTables:
    """A step on the device. Page table rows are the step's sequences: its decodes, then its chunks."""

    num_decodes: int
    max_chunk: int
    """Tokens of the longest chunk."""
    splits: int
    rows_T: torch.Tensor
    """int32: each token's row of `page_table_RP`; -1: padding."""
    positions_T: torch.Tensor
    """int32."""
    lengths_B: torch.Tensor
    """int32: tokens that each decode attends to; 0: padding."""
    chunks_C4: torch.Tensor
    """int32: row, first token of the step, start, number of tokens."""
    page_table_RP: torch.Tensor
    """int32."""
    cos_TR: torch.Tensor
    sin_TR: torch.Tensor


class TritonAttention:
    def __init__(self, kv_PHLCSD: torch.Tensor, *, num_q_heads: int, rope: Rope) -> None:
        self.kv_PHLCSD = kv_PHLCSD
        _, self._kv_heads, layers, _, self._page_size, self._head_dim = kv_PHLCSD.shape
        self._q_heads = num_q_heads
        self._device = kv_PHLCSD.device
        self._layers = [(kv_PHLCSD[:, :, i, 0], kv_PHLCSD[:, :, i, 1]) for i in range(layers)]
        self._inv_freq = rope.inv_freq.to(self._device)
        self._attention_factor = rope.attention_factor
        self._sm_count = 1
        if self._device.type == "cuda":
            self._sm_count = torch.cuda.get_device_properties(self._device).multi_processor_count

    def begin(self, batch: StepBatch) -> None:
        decodes, spans = batch.num_decodes, batch.chunks
        positions_T = batch.positions_T.int()
        lengths_B = positions_T[:decodes] + 1
        longest = max([int(lengths_B.max()) if decodes else 0, *(span.start + span.num_tokens for span in spans)])
        slots_R = torch.cat((batch.slots_T[:decodes], torch.tensor([span.slot for span in spans], dtype=torch.int64)))
        rows = [torch.arange(decodes, dtype=torch.int32)]
        rows += [torch.full((span.num_tokens,), decodes + i, dtype=torch.int32) for i, span in enumerate(spans)]
        chunks = [[decodes + i, span.first_row, span.start, span.num_tokens] for i, span in enumerate(spans)]
        positions_T = self._to_device(positions_T)
        angles_TR = positions_T.float()[:, None] * self._inv_freq
        self._tables = StepTables(
            num_decodes=decodes,
            max_chunk=max((span.num_tokens for span in spans), default=0),
            splits=choose_splits(max(1, decodes), self._kv_heads, longest, self._sm_count),
            rows_T=self._to_device(torch.cat(rows)),
            positions_T=positions_T,
            lengths_B=self._to_device(lengths_B),
            chunks_C4=self._to_device(torch.tensor(chunks, dtype=torch.int32).view(-1, 4)),
            page_table_RP=self._to_device(batch.page_table_SP[slots_R, : -(-longest // self._page_size)]),
            cos_TR=angles_TR.cos().mul_(self._attention_factor),
            sin_TR=angles_TR.sin().mul_(self._attention_factor),
        )

    def attend(self, layer: int, qkv_TND: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
        step = self._tables
        k_PHSD, v_PHSD = self._layers[layer]
        qk_norm_rope_kv_write(
            qkv_TND,
            k_PHSD,
            v_PHSD,
            step.page_table_RP,
            step.rows_T,
            step.positions_T,
            step.cos_TR,
            step.sin_TR,
            q_weight_D=norms.q.weight if norms else None,
            k_weight_D=norms.k.weight if norms else None,
            eps=norms.q.eps if norms else 0.0,
        )
        q_TND = qkv_TND[:, : self._q_heads]
        out_TND = qkv_TND.new_empty(q_TND.shape)
        scale = self._head_dim**-0.5
        if step.num_decodes:
            paged_decode(
                q_TND[: step.num_decodes],
                k_PHSD,
                v_PHSD,
                step.page_table_RP,
                step.rows_T,
                step.lengths_B,
                scale=scale,
                splits=step.splits,
                out_BND=out_TND[: step.num_decodes],
            )
        if step.max_chunk:
            paged_prefill(
                q_TND,
                k_PHSD,
                v_PHSD,
                step.page_table_RP,
                step.chunks_C4,
                max_chunk=step.max_chunk,
                scale=scale,
                out_TND=out_TND,
            )
        return out_TND.flatten(1)

    def _to_device(self, host: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cpu":
            return host
        return host.pin_memory().to(self._device, non_blocking=True)
