"""GPU memory that processes of one machine share, by descriptors of CUDA's virtual memory management.

Not by `cudaIpcMemHandle`: such a mapping is undefined once the process that made the memory has ended, and containers
would have to share process ids. A descriptor keeps the memory for as long as somebody has it mapped.
"""

from __future__ import annotations

import secrets
from typing import Protocol

import torch

from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.descriptors import Described
from tandem_runtime.transfer.ipc import host
from tandem_runtime.transfer.ipc.checksum import WordSums
from tandem_runtime.transfer.ledger import Offer
from tandem_runtime.transfer.plan import byte_range
from tandem_runtime.transfer.protocol import DeviceFault, Failure, TransferFault


class Device(Protocol):
    """One GPU; every method but `allocate` returns when its work is done, beside whatever the GPU computes.

    All but that raise `OSError`.
    """

    uuid: str
    most_bytes: int
    """Of the largest GPU's memory that there is on this machine."""

    def allocate(self, num_bytes: int) -> tuple[torch.Tensor, int]:
        """Zeroed uint8 memory and a descriptor of it, which is this process's to close. Raises `StartupError`."""

    def map(self, file: int, num_bytes: int) -> int:
        """The address of such memory of another process."""

    def unmap(self, address: int, num_bytes: int) -> None: ...

    def copy(self, source: int, target_B: torch.Tensor) -> None:
        """From an address."""

    def checksum(self, page_B: torch.Tensor, sums: WordSums) -> int: ...


class _Pages:
    """A rank's KV cache in ranges of heads of a page."""

    def __init__(self, device: Device, cache: torch.Tensor, layout: KVLayout, rank: int) -> None:
        """Raises `StartupError`."""
        self._device = device
        self._cache_B = cache.view(-1)
        self._layout = layout
        self._rank = rank
        self._sums = WordSums(layout, cache.device)

    def place(self, page_id: int, heads: range) -> tuple[int, int]:
        """(offset, length) in the cache."""
        offset, length = byte_range(self._layout, self._rank, heads)
        start = page_id * self._layout.page_bytes + offset
        assert 0 <= start <= start + length <= self._cache_B.numel(), page_id
        return start, length

    def view(self, page_id: int, heads: range) -> torch.Tensor:
        start, length = self.place(page_id, heads)
        return self._cache_B[start : start + length]

    def checksum(self, page_id: int, heads: range) -> int:
        """Raises `TransferFault`."""
        try:
            return self._device.checksum(self.view(page_id, heads), self._sums)
        except OSError as error:
            raise DeviceFault(f"{self._device.uuid} cannot hash page {page_id}", error) from error


class DeviceExport:
    """An `Export`."""

    def __init__(self, device: Device, cache: torch.Tensor, file: int, layout: KVLayout, rank: int) -> None:
        """`cache`, `file`: as `device` allocated them. Raises `StartupError`."""
        self._pages = _Pages(device, cache, layout, rank)
        self._file = file
        self.offer = Offer(kind=device.uuid, id=secrets.token_bytes(16), num_bytes=cache.nbytes)

    def file(self) -> int:
        return self._file

    def describe(self, page_id: int, heads: range) -> Described:
        address, length = self._pages.place(page_id, heads)
        return Described(address, length, self._pages.checksum(page_id, heads))


class DeviceWindow:
    """A `Window`."""

    def __init__(self, device: Device, file: int, num_bytes: int, pages: _Pages) -> None:
        """Raises `OSError`."""
        self.num_bytes = num_bytes
        self._address = device.map(file, num_bytes)
        self._device = device
        self._pages = pages

    def take(self, address: int, page_id: int, heads: range) -> int:
        try:
            self._device.copy(self._address + address, self._pages.view(page_id, heads))
        except OSError as error:
            raise DeviceFault(f"{self._device.uuid} cannot copy page {page_id}", error) from error
        return self._pages.checksum(page_id, heads)

    def close(self) -> None:
        self._device.unmap(self._address, self.num_bytes)


class DeviceImport:
    """An `Import`: pages go from one part of a GPU's memory to another, or to the next GPU's, and never to the host."""

    def __init__(self, device: Device, cache: torch.Tensor, layout: KVLayout, rank: int) -> None:
        """Raises `StartupError`."""
        self._device = device
        self._pages = _Pages(device, cache, layout, rank)

    def map(self, offer: Offer, file: int) -> DeviceWindow:
        why = f"{self._device.uuid} cannot map the memory of {offer.kind}"
        if offer.kind == host.KIND:
            raise TransferFault(Failure.UNSHARED, why)
        if not 0 < offer.num_bytes <= self._device.most_bytes:
            raise TransferFault(Failure.UNSHARED, f"no GPU here has {offer.num_bytes} bytes")
        try:
            return DeviceWindow(self._device, file, offer.num_bytes, self._pages)
        except OSError as error:
            raise TransferFault(Failure.UNSHARED, f"{why}: {error}") from None

    def landed(self, page_id: int, heads: range) -> None: ...

    def dropped(self, page_id: int, heads: range) -> None: ...
