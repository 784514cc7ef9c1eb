"""What tests of kernels share: numbers, tolerances, paged caches."""

from __future__ import annotations

import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float8_e4m3fn: 0.07}
"""Relative to the size of the answer's entries: two units in the last place of 16 bits, half of one of 8."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def assert_close(found: torch.Tensor, expected_64: torch.Tensor, *, scale: float = 1.0) -> None:
    """`expected_64` is the float64 reference; `scale` widens the tolerance for sums of many rounded terms."""
    assert expected_64.dtype == torch.float64
    tolerance = TOLERANCE[found.dtype] * scale
    torch.testing.assert_close(found.double(), expected_64, rtol=tolerance, atol=tolerance)


def normal(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Drawn on the CPU, so that both devices see the same numbers."""
    return torch.randn(*shape).to(dtype).to(device)


class PagedKV:
    """A cache of random pages (poisoned with NaN where no token was written) and sequences with scattered pages."""

    def __init__(
        self,
        lengths: list[int],
        *,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        dtype: torch.dtype,
        device: str,
        layers: int = 2,
    ) -> None:
        pages = [-(-length // page_size) for length in lengths]
        order = torch.randperm(sum(pages) + 1)
        shape = (len(order), kv_heads, layers, 2, page_size, head_dim)
        self.kv_PHLCSD = torch.full(shape, float("nan"), dtype=torch.float32)
        self.page_table_SP = torch.full((len(lengths), max([*pages, 1]) + 1), 2**30, dtype=torch.int32)
        first = 0
        for slot, (length, count) in enumerate(zip(lengths, pages, strict=True)):
            own = order[first : first + count]
            first += count
            self.page_table_SP[slot, :count] = own.int()
            for i, page in enumerate(own.tolist()):
                used = min(page_size, length - i * page_size)
                self.kv_PHLCSD[page, :, :, :, :used] = torch.randn(kv_heads, layers, 2, used, head_dim)
        self.kv_PHLCSD = self.kv_PHLCSD.to(dtype).to(device)
        self.page_table_SP = self.page_table_SP.to(device)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V as [pages, kv heads, slots, head_dim] views."""
        return self.kv_PHLCSD[:, :, index, 0], self.kv_PHLCSD[:, :, index, 1]
