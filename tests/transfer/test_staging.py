from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tandem_runtime.execution.streams import step_stream
from tandem_runtime.transfer.cuda import CudaCopyEngine, pages_stream
from tandem_runtime.transfer.protocol import TransferFault
from tandem_runtime.transfer.staging import Block, StagedPages
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


class BrokenDevice(HostCopyEngine):
    def up(self, block: Block, offset: int, num_bytes: int) -> None:
        raise OSError("CUDA error: unspecified launch failure")

    def down(self, offset: int, num_bytes: int, block: Block) -> None:
        raise OSError("CUDA error: unspecified launch failure")


def test_a_device_that_fails_is_named_and_keeps_no_block() -> None:
    engine = BrokenDevice(memoryview(cache()))  # type: ignore[arg-type]
    pages = StagedPages(engine, SHAPE, 1, 3)
    for _ in range(2):
        with pytest.raises(TransferFault, match=r"^device: page 1 cannot be copied to the host: CUDA error: unspec"):
            pages.outgoing(1, HEADS)
        pages.incoming(2, HEADS)
        with pytest.raises(TransferFault, match=r"^device: page 2 cannot be copied from the host: CUDA error: unspec"):
            pages.landed(2, HEADS)
    assert engine.blocks == 1


@pytest.mark.gpu
def test_steps_go_before_copies_of_pages() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert step_stream().priority < pages_stream(torch.device("cuda", 0)).priority


@pytest.mark.gpu
def test_a_transports_thread_opens_no_context_on_another_card() -> None:
    """Symptom: every rank beyond the first held half a GiB of card 0 from its first handoff on."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    script = (
        "import threading, torch\n"
        "from tandem_runtime.transfer.cuda import CudaCopyEngine\n"
        "cache = torch.zeros(64, dtype=torch.uint8, device='cuda:1')\n"
        "engine = CudaCopyEngine(cache)\n"
        "thread = threading.Thread(target=lambda: engine.down(0, 64, engine.block(64)))\n"
        "thread.start(); thread.join()\n"
        "assert torch._C._cuda_hasPrimaryContext(1) and not torch._C._cuda_hasPrimaryContext(0)\n"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environ)


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
