from __future__ import annotations

import torch
from tandem_runtime.execution.attention.backend import ChunkSpan, StepBatch
from tandem_runtime.execution.attention.tables import StepShape, StepTables, pack
from tandem_runtime.execution.graphs import buckets


def batch(decodes: list[tuple[int, int]], *chunks: ChunkSpan) -> StepBatch:
    """decodes: (slot, position)."""
    slots = [slot for slot, _ in decodes] + [c.slot for c in chunks for _ in range(c.num_tokens)]
    positions = [p for _, p in decodes] + [c.start + i for c in chunks for i in range(c.num_tokens)]
    return StepBatch(
        ids_T=torch.arange(len(slots)) - 1,
        slots_T=torch.tensor(slots),
        positions_T=torch.tensor(positions),
        num_decodes=len(decodes),
        chunks=chunks,
        page_table_SP=torch.zeros(8, 4, dtype=torch.int32),
        new_pages=(),
    )


def test_tables_hold_what_the_batch_says_and_begin_at_16_bytes() -> None:
    step = batch([(3, 9), (1, 0)], ChunkSpan(slot=2, first_row=2, start=4, num_tokens=3))
    shape = StepShape.of(step)
    assert shape == StepShape(num_tokens=5, num_decodes=2, num_chunks=1, max_chunk=3)
    tables = StepTables(shape, pack(step, shape))
    assert tables.ids_T.tolist() == [-1, 0, 1, 2, 3]
    assert tables.slots_T.tolist() == [3, 1, 2, 2, 2]
    assert tables.positions_T.tolist() == [9, 0, 4, 5, 6]
    assert tables.lengths_B.tolist() == [10, 1]
    assert tables.chunks_C4.tolist() == [[2, 2, 4, 3]]
    views = (tables.slots_T, tables.positions_T, tables.lengths_B, tables.chunks_C4)
    assert all((view.data_ptr() - tables.buffer.data_ptr()) % 16 == 0 for view in views)


def test_padding_attends_to_nothing_and_writes_nothing() -> None:
    shape = StepShape(num_tokens=4, num_decodes=4)
    tables = StepTables(shape, pack(batch([(3, 9)]), shape))
    assert tables.slots_T.tolist() == [3, -1, -1, -1]
    assert tables.lengths_B.tolist() == [10, 0, 0, 0]


def test_graph_sizes_end_at_the_largest_batch_and_pad_little() -> None:
    assert buckets(1) == [1]
    assert buckets(6) == [1, 2, 4, 6]
    assert buckets(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert len(buckets(512)) <= 40
    assert all(b <= max(2 * a, 1.25 * a) for a, b in zip(buckets(512)[:-1], buckets(512)[1:], strict=True))
