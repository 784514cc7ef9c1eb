from __future__ import annotations

import numpy as np
import pytest
import torch
from tandem_runtime.transfer.cuda import CudaCopyEngine
from tandem_runtime.transfer.staging import StagedPages
from transfer.rig import HostCopyEngine, layout, staged

SHAPE = layout(heads=4, tp=2)
HEADS = SHAPE.heads_of_rank(1)


def cache(pages: int = 3) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(1).integers(0, 256, (pages, SHAPE.page_bytes), dtype=np.uint8)


def test_a_page_on_its_way_to_two_receivers_has_two_blocks_and_blocks_are_used_again() -> None:
    bytes_there = cache()
    engine = HostCopyEngine(memoryview(bytes_there))  # type: ignore[arg-type]
    pages = StagedPages(engine, SHAPE, 1, 3)
    first, second = pages.outgoing(1, HEADS), pages.outgoing(1, HEADS)
    first[:] = bytes(len(first))
    assert bytes(second) == bytes_there[1].tobytes()
    pages.sent(1, HEADS)
    pages.sent(1, HEADS)
    assert bytes(pages.outgoing(2, HEADS)) == bytes_there[2].tobytes()
    assert engine.blocks == 2


def test_dropped_bytes_never_reach_the_cache() -> None:
    bytes_there = cache()
    before = bytes_there.copy()
    pages = staged(memoryview(bytes_there), SHAPE, 1)  # type: ignore[arg-type]
    one = range(3, 4)
    pages.incoming(0, one)[:] = b"x" * SHAPE.head_bytes
    pages.dropped(0, one)
    np.testing.assert_array_equal(bytes_there, before)
    pages.incoming(0, one)[:] = b"y" * SHAPE.head_bytes
    pages.landed(0, one)
    assert bytes_there[0, SHAPE.head_bytes :].tobytes() == b"y" * SHAPE.head_bytes
    np.testing.assert_array_equal(bytes_there[0, : SHAPE.head_bytes], before[0, : SHAPE.head_bytes])


@pytest.mark.gpu
def test_copies_of_a_cuda_cache() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    bytes_there = torch.from_numpy(cache())
    with torch.inference_mode():
        there = bytes_there.cuda()
    pages = StagedPages(CudaCopyEngine(there), SHAPE, 1, 3)
    assert bytes(pages.outgoing(1, HEADS)) == bytes_there[1].numpy().tobytes()
    pages.incoming(2, HEADS)[:] = b"z" * SHAPE.page_bytes
    pages.landed(2, HEADS)
    assert there[2].cpu().numpy().tobytes() == b"z" * SHAPE.page_bytes
