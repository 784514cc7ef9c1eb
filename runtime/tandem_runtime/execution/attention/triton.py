"""Paged attention by the Triton kernels, for CUDA devices.

`begin` copies what changed in a step to the device, in one piece; `attend` then knows nothing of the host but the
step's shape, so that its launches (two to four a layer) can be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tandem_kernels.paged_decode import MAX_SPLITS, choose_splits, paged_decode
from tandem_kernels.paged_prefill import paged_prefill
from tandem_kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write

from tandem_runtime.execution.attention.backend import HeadNorms, PageRun, StepBatch, StepIds
from tandem_runtime.execution.attention.tables import StepShape, StepTables, pack
from tandem_runtime.execution.layers.rope import Rope
from tandem_runtime.execution.upload import to_device

WITHOUT_GRAPH = [1 << i for i in range(MAX_SPLITS.bit_length())]
"""Splits of steps that no graph was captured for: each other number would be compiled while requests wait."""


class TritonAttention:
    def __init__(
        self, kv_PHLCSD: torch.Tensor, *, num_q_heads: int, rope: Rope, max_num_seqs: int, max_pages_per_seq: int
    ) -> None:
        self.kv_PHLCSD = kv_PHLCSD
        _, self._kv_heads, layers, _, self._page_size, self._head_dim = kv_PHLCSD.shape
        self._q_heads = num_q_heads
        self._device = kv_PHLCSD.device
        self._layers = [(kv_PHLCSD[:, :, i, 0], kv_PHLCSD[:, :, i, 1]) for i in range(layers)]
        self._page_table_SP = torch.zeros(max_num_seqs, max_pages_per_seq, dtype=torch.int32, device=self._device)
        self._inv_freq = rope.inv_freq.to(self._device)
        self._attention_factor = rope.attention_factor
        self._sm_count = 1
        if self._device.type == "cuda":
            self._sm_count = torch.cuda.get_device_properties(self._device).multi_processor_count

    def begin(self, batch: StepBatch) -> StepIds:
        shape = StepShape.of(batch)
        self.append_pages(batch.new_pages)
        longest = int(batch.positions_T[: shape.num_decodes].max()) + 1 if shape.num_decodes else 1
        best = self.best_splits(shape.num_decodes, longest)
        splits = max(splits for splits in WITHOUT_GRAPH if splits <= best)
        return self.use(StepTables(shape, to_device(pack(batch, shape), self._device)), splits)

    def append_pages(self, runs: Sequence[PageRun]) -> None:
        """Brings the device's page table up to date."""
        if not runs:
            return
        width = self._page_table_SP.shape[1]
        at = [run.slot * width + run.first + i for run in runs for i in range(len(run.page_ids))]
        at_and_pages = torch.tensor([at, [page for run in runs for page in run.page_ids]], dtype=torch.int64)
        at_U, pages_U = to_device(at_and_pages, self._device)
        self._page_table_SP.view(-1).index_copy_(0, at_U, pages_U.int())

    def best_splits(self, num_decodes: int, max_tokens: int) -> int:
        return choose_splits(max(1, num_decodes), self._kv_heads, max_tokens, self._sm_count)

    def use(self, tables: StepTables, splits: int) -> StepIds:
        """The step that `attend` works on from now on; nothing here touches the host."""
        self._step, self._splits = tables, splits
        angles_TR = tables.positions_T.float()[:, None] * self._inv_freq
        self._cos_TR = angles_TR.cos().mul_(self._attention_factor)
        self._sin_TR = angles_TR.sin().mul_(self._attention_factor)
        return StepIds(tables.ids_T, tables.slots_T)

    def attend(self, layer: int, qkv_TND: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
        step, decodes = self._step, self._step.shape.num_decodes
        k_PHSD, v_PHSD = self._layers[layer]
        qk_norm_rope_kv_write(
            qkv_TND,
            k_PHSD,
            v_PHSD,
            self._page_table_SP,
            step.slots_T,
            step.positions_T,
            self._cos_TR,
            self._sin_TR,
            q_weight_D=norms.q.weight if norms else None,
            k_weight_D=norms.k.weight if norms else None,
            eps=norms.q.eps if norms else 0.0,
        )
        q_TND = qkv_TND[:, : self._q_heads]
        out_TND = qkv_TND.new_empty(q_TND.shape)
        scale = self._head_dim**-0.5
        if decodes:
            paged_decode(
                q_TND[:decodes],
                k_PHSD,
                v_PHSD,
                self._page_table_SP,
                step.slots_T,
                step.lengths_B,
                scale=scale,
                splits=self._splits,
                out_BND=out_TND[:decodes],
            )
        if step.shape.max_chunk:
            paged_prefill(
                q_TND,
                k_PHSD,
                v_PHSD,
                self._page_table_SP,
                step.chunks_C4,
                max_chunk=step.shape.max_chunk,
                scale=scale,
                out_TND=out_TND,
            )
        return out_TND.flatten(1)
