"""Which pod was sent which prompt beginnings: chained block hashes and an LRU of them per pod.

The gateway has no tokenizer, so a block is a fixed number of bytes of the canonical prompt. A block's hash
covers every block before it; equal hashes therefore mean equal beginnings.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict

import xxhash

BLOCK_BYTES = 256
"""About 64 tokens, four KV pages of 16."""
MAX_BLOCKS = 2048
"""Blocks looked at per prompt; what follows 512 KiB does not change the pick."""
BYTES_PER_TOKEN = 4
"""Rough mean over English text and code; only relative sizes matter here."""


def block_hashes(scope: bytes, text: bytes) -> list[int]:
    """Chained hashes of the full blocks of `text`; `scope` separates prompts that never share KV (route, model)."""
    view = memoryview(text)
    chain = xxhash.xxh3_64_intdigest(scope)
    hashes = []
    for start in range(0, min(len(text) - len(text) % BLOCK_BYTES, MAX_BLOCKS * BLOCK_BYTES), BLOCK_BYTES):
        chain = xxhash.xxh3_64_intdigest(view[start : start + BLOCK_BYTES], seed=chain)
        hashes.append(chain)
    return hashes


class SentBlocks:
    """The blocks that one pod was sent, least recently used first; a guess at what its prefix cache holds.

    A block is always younger than the blocks that continue it (`add` touches the deepest first), so eviction
    takes the ends of prompts before their beginnings, and the known part of a prompt is a beginning of it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def known(self, hashes: list[int]) -> int:
        """How many leading blocks the pod was sent; O(log n)."""
        return bisect_left(hashes, True, key=lambda block: block not in self._blocks)

    def add(self, hashes: list[int]) -> None:
        blocks = self._blocks
        for block in reversed(hashes):
            blocks[block] = None
            blocks.move_to_end(block)
        while len(blocks) > self.capacity:
            blocks.popitem(last=False)

    def clear(self) -> None:
        self._blocks.clear()
