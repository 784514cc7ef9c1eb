"""A checksum that a GPU computes at the speed of its memory: a page's words, each times a weight of its own, in sum.

Modulo 2**64, so that the order of additions does not matter. The weights are odd, so that no change of one word goes
unseen, and look random, so that no exchange of words does that an error is likely to make.
"""

from __future__ import annotations

import numpy as np
import torch

from tandem_runtime.core.errors import StartupError
from tandem_runtime.core.kv import KVLayout

WORD_BYTES = 8


class WordSums:
    def __init__(self, layout: KVLayout, device: torch.device) -> None:
        """For ranges of heads of one page. Raises `StartupError`."""
        if layout.head_bytes % WORD_BYTES:
            raise StartupError(
                f"--kv-transport ipc: a head's part of a page has {layout.head_bytes} bytes, no multiple of "
                f"{WORD_BYTES}; choose another --page-size, or tcp"
            )
        words = layout.page_bytes // WORD_BYTES
        self._weights_W = torch.from_numpy(_odd_numbers(words).view(np.int64)).to(device)

    def __call__(self, page_B: torch.Tensor) -> int:
        words_W = page_B.view(torch.int64)
        return int((words_W * self._weights_W[: len(words_W)]).sum()) % 2**64


def _odd_numbers(count: int) -> np.ndarray:
    """SplitMix64's (Steele, Lea, Flood 2014), with the lowest bit set; uint64 [count]."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)
