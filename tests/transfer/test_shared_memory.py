"""The memory that is shared, and the checksum of pages in a GPU's."""

from __future__ import annotations

import mmap
import os

import pytest
import torch
from tandem_runtime.core.errors import StartupError
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.ipc.checksum import WordSums
from tandem_runtime.transfer.ipc.host import SharedMemory
from transfer.rig import layout

PAGE = 1024


def test_shared_memory_cannot_be_written_nor_resized_by_those_who_get_it() -> None:
    memory = SharedMemory(PAGE)
    with pytest.raises(PermissionError):
        mmap.mmap(memory.file, PAGE)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.file, 0)
    memory.view[0] = 7
    assert mmap.mmap(memory.file, PAGE, prot=mmap.PROT_READ)[0] == 7


def test_the_checksum_of_devices_sees_changed_and_exchanged_words() -> None:
    shape = layout()
    sums = WordSums(shape, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    page_B = torch.randint(0, 256, (shape.page_bytes,), dtype=torch.uint8, generator=generator)
    right = sums(page_B)
    words_W, weights_W = page_B.view(torch.int64).tolist(), sums._weights_W.tolist()
    assert right == sum(word * weight for word, weight in zip(words_W, weights_W, strict=True)) % 2**64
    assert sums(page_B[: shape.head_bytes]) != right
    for byte in (0, 8, shape.page_bytes - 1):
        changed_B = page_B.clone()
        changed_B[byte] ^= 1
        assert sums(changed_B) != right
    for one, other in ((0, 1), (3, 70)):
        exchanged_W = page_B.view(torch.int64).clone()
        exchanged_W[[one, other]] = exchanged_W[[other, one]]
        assert sums(exchanged_W.view(torch.uint8)) != right


def test_pages_that_no_words_fill_are_named() -> None:
    odd = KVLayout(num_layers=1, num_kv_heads=1, head_dim=1, page_size=1, dtype="float16")
    with pytest.raises(StartupError, match="--kv-transport ipc: a head's part of a page has 4 bytes"):
        WordSums(odd, torch.device("cpu"))
