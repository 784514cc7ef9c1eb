"""Under `--kv-transport ipc`: a KV cache in memory that decode pods of this machine map, and how those read it."""

from __future__ import annotations

from typing import Protocol

import torch

from tandem_runtime.core.errors import StartupError
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.ipc.device import Device, DeviceExport, DeviceImport
from tandem_runtime.transfer.ipc.host import HostExport, HostImport, SharedMemory
from tandem_runtime.transfer.ipc.memory import Export, Import
from tandem_runtime.transfer.memory import PageMemory, PageSink


class SharedCache(Protocol):
    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Zeroed, uint8; called once. Raises `StartupError`."""

    def export(self, layout: KVLayout, rank: int) -> Export:
        """Of what was allocated."""


class HostCache:
    def allocate(self, num_bytes: int) -> torch.Tensor:
        self._memory = SharedMemory(num_bytes)
        return torch.frombuffer(self._memory.view, dtype=torch.uint8)

    def export(self, layout: KVLayout, rank: int) -> HostExport:
        return HostExport(self._memory, PageMemory(self._memory.view, layout, rank))


class DeviceCache:
    def __init__(self, device: Device) -> None:
        self._device = device

    def allocate(self, num_bytes: int) -> torch.Tensor:
        self._cache, self._file = self._device.allocate(num_bytes)
        return self._cache

    def export(self, layout: KVLayout, rank: int) -> DeviceExport:
        return DeviceExport(self._device, self._cache, self._file, layout, rank)


def shared_cache(device: str, rank: int) -> SharedCache:
    """`device`: cpu or cuda. Raises `StartupError`."""
    return DeviceCache(_cuda(rank)) if device == "cuda" else HostCache()


def import_into(cache: torch.Tensor, sink: PageSink) -> Import:
    """`sink`: of the same cache. Raises `StartupError`."""
    if cache.device.type == "cpu":
        return HostImport(sink)
    return DeviceImport(_cuda(cache.get_device()), cache, sink.layout, sink.rank)


def _cuda(ordinal: int) -> Device:
    try:
        from tandem_runtime.transfer.ipc.cuda import CudaDevice
    except ImportError as error:
        raise StartupError(f"--kv-transport ipc needs cuda-bindings on a GPU: {error}") from error
    return CudaDevice(ordinal)
