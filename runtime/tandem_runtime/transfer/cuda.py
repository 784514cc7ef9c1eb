"""The copy engine of a CUDA device: a stream of its own, so that no copy waits for a step and no step for a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        self._stream = pages_stream(cache.device)

    def block(self, num_bytes: int) -> PinnedBlock:
        with device_errors():
            return PinnedBlock(num_bytes)

    def down(self, offset: int, num_bytes: int, block: Block) -> None:
        assert isinstance(block, PinnedBlock)
        self._copy(block.bytes[:num_bytes], self._cache_B[offset : offset + num_bytes])

    def up(self, block: Block, offset: int, num_bytes: int) -> None:
        assert isinstance(block, PinnedBlock)
        self._copy(self._cache_B[offset : offset + num_bytes], block.bytes[:num_bytes])

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with working_in(self._stream):
            target.copy_(source, non_blocking=True)
            self._stream.synchronize()


def pages_stream(device: torch.device) -> torch.cuda.Stream:
    """Of the lowest priority, which is the usual one: steps have a higher (`execution.streams`)."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def working_in(stream: torch.cuda.Stream) -> Iterator[None]:
    """PyTorch's operations go to `stream`, whichever thread this is. Raises `OSError` for what the device refuses."""
    # A thread begins on card 0. Leaving a stream of another card, torch goes back to that one, and so would open a
    # context there: half a GiB of card 0 for every other rank. Leaving a device, it looks whether there is one.
    with device_errors(), torch.cuda.device(stream.device), torch.cuda.stream(stream), torch.inference_mode():
        # In inference mode, since the cache was made in it, outside of which it may not be written.
        yield


@contextmanager
def device_errors() -> Iterator[None]:
    """Raises PyTorch's errors as `OSError`, which is what those of the driver are here."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error).partition("\n")[0]) from error
