"""The KV page layout, shared by scheduler, executor and transfer.

A rank's KV cache is one contiguous array

    kv_PHLCSD: [num_pages, kv_heads_of_rank, num_layers, 2 (K, V), page_size, head_dim]

so a page is one contiguous block, any range of its heads is one contiguous block (unequal tensor parallelism on both
sides of a handoff is a slice), and one (page, head, layer, K|V) tile of [page_size, head_dim] is contiguous for
attention.
"""

from __future__ import annotations

import msgspec

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1}


class KVLayout(msgspec.Struct, frozen=True, kw_only=True):
    num_layers: int
    num_kv_heads: int
    """Of the whole model; `tensor_parallel` must divide it, or be a multiple of it (heads are then replicated)."""
    head_dim: int
    page_size: int
    """Tokens per page."""
    dtype: str
    """A key of `DTYPE_BYTES`."""
    tensor_parallel: int = 1

    @property
    def heads_per_rank(self) -> int:
        return max(1, self.num_kv_heads // self.tensor_parallel)

    @property
    def head_bytes(self) -> int:
        """Bytes of one head of one page: all layers, K and V."""
        return self.num_layers * 2 * self.page_size * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page on one rank."""
        return self.heads_per_rank * self.head_bytes

    def heads_of_rank(self, rank: int) -> range:
        """The whole model's KV heads that `rank` holds."""
        if self.tensor_parallel > self.num_kv_heads:
            first = rank * self.num_kv_heads // self.tensor_parallel
            return range(first, first + 1)
        return range(rank * self.heads_per_rank, (rank + 1) * self.heads_per_rank)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)
