"""The copy engine of a CUDA device: a stream of its own, so that no copy waits for a step and no step for a copy."""

from __future__ import annotations

import torch

from tandem_runtime.transfer.staging import Block


class PinnedBlock:
    def __init__(self, num_bytes: int) -> None:
        self.bytes = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        self.view: memoryview = self.bytes.numpy().data


class CudaCopyEngine:
    """Owners hand pages over only when the steps that wrote them have ended: nothing here waits for another stream."""

    def __init__(self, cache: torch.Tensor) -> None:
        """`cache`: uint8, contiguous, on a CUDA device."""
        self._cache_B = cache.view(-1)
        self._stream = torch.cuda.Stream(cache.device)  # type: ignore[no-untyped-call]

    def block(self, num_bytes: int) -> PinnedBlock:
        return PinnedBlock(num_bytes)

    def down(self, offset: int, num_bytes: int, block: Block) -> None:
        assert isinstance(block, PinnedBlock)
        self._copy(block.bytes[:num_bytes], self._cache_B[offset : offset + num_bytes])

    def up(self, block: Block, offset: int, num_bytes: int) -> None:
        assert isinstance(block, PinnedBlock)
        self._copy(self._cache_B[offset : offset + num_bytes], block.bytes[:num_bytes])

    # The cache was made in this mode, outside of which it may not be written.
    @torch.inference_mode()
    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        self._stream.synchronize()
