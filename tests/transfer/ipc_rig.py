"""Rigs whose ends share memory: the host's, or that of a GPU whose memory happens to be the host's."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.ipc.checksum import WordSums
from tandem_runtime.transfer.ipc.device import DeviceExport, DeviceImport
from tandem_runtime.transfer.ipc.export import IpcExport
from tandem_runtime.transfer.ipc.host import HostExport, HostImport, SharedMemory
from tandem_runtime.transfer.ipc.memory import Export, Import, Window
from tandem_runtime.transfer.ipc.reads import IpcReads
from tandem_runtime.transfer.ledger import Offer
from tandem_runtime.transfer.memory import PageMemory, PageSink, PageSource
from tandem_runtime.transfer.protocol import OnReceive, OnSend, PageReceiver, PageSender
from tandem_runtime.transfer.tcp import TcpReceiver, TcpSender
from transfer.rig import Rig, WatchedMemory


class IpcRig(Rig):
    def __init__(self, stall_timeout_s: float = 10.0, *, gpu: bool = False, shared_by: str = "", **shape: Any) -> None:
        """`shared_by`: `host`, for senders that do not share a GPU's memory."""
        self._folder = tempfile.TemporaryDirectory(prefix="ipc-")
        self.reads: list[IpcReads] = []

        def receiver(sink: PageSink, report: OnReceive) -> PageReceiver:
            assert isinstance(sink, WatchedMemory)
            path = f"{self._folder.name}/kv-{len(self.reads)}"
            self.reads.append(IpcReads(into_gpu(sink) if gpu else HostImport(sink), path))
            self.ipc_paths.append(path)
            return TcpReceiver(sink, report, host="127.0.0.1", stall_timeout_s=stall_timeout_s, ipc=self.reads[-1])

        def sender(source: PageSource, report: OnSend, cache: memoryview) -> PageSender:
            export = (of_gpu if gpu and shared_by != "host" else of_host)(cache, source.layout, source.rank)
            return TcpSender(source, report, stall_timeout_s=stall_timeout_s, ipc=IpcExport(export))

        super().__init__(receiver, sender, **shape)

    def stop(self) -> None:
        super().stop()
        if Path(self._folder.name).exists():
            assert os.listdir(self._folder.name) == []
            self._folder.cleanup()


def of_host(pages: memoryview, layout: KVLayout, rank: int) -> Export:
    """Of a copy of `pages`."""
    memory = SharedMemory(pages.nbytes)
    memory.view[:] = pages.cast("B")
    return HostExport(memory, PageMemory(memory.view, layout, rank))


def of_gpu(pages: memoryview, layout: KVLayout, rank: int) -> Export:
    device = HostDevice()
    cache, file = device.allocate(pages.nbytes)
    cache.copy_(torch.frombuffer(pages, dtype=torch.uint8).view(-1))
    return DeviceExport(device, cache, file, layout, rank)


def into_gpu(sink: WatchedMemory) -> Import:
    cache = torch.frombuffer(sink.zone, dtype=torch.uint8)
    return WatchedImport(DeviceImport(HostDevice(), cache, sink.layout, sink.rank), sink)


class HostDevice:
    """A `Device`."""

    uuid = "GPU-of-the-host"

    def __init__(self) -> None:
        self._mapped: dict[int, mmap.mmap] = {}
        self._allocated: list[SharedMemory] = []

    def allocate(self, num_bytes: int) -> tuple[torch.Tensor, int]:
        memory = SharedMemory(num_bytes)
        self._allocated.append(memory)
        return torch.frombuffer(memory.view, dtype=torch.uint8), memory.file

    def map(self, file: int, num_bytes: int) -> int:
        mapping = mmap.mmap(file, num_bytes, prot=mmap.PROT_READ)
        address: int = np.frombuffer(mapping, dtype=np.uint8).ctypes.data
        self._mapped[address] = mapping
        return address

    def unmap(self, address: int, num_bytes: int) -> None:
        self._mapped.pop(address).close()

    def copy(self, source: int, target_B: torch.Tensor) -> None:
        ctypes.memmove(target_B.data_ptr(), source, target_B.nbytes)

    def checksum(self, page_B: torch.Tensor, sums: WordSums) -> int:
        return sums(page_B)


class WatchedImport:
    """Tells the rig of a GPU's landings, which its sink does not see."""

    def __init__(self, memory: Import, sink: WatchedMemory) -> None:
        self._memory = memory
        self._sink = sink

    def map(self, offer: Offer, file: int) -> Window:
        return _WatchedWindow(self._memory.map(offer, file), self._sink)

    def landed(self, page_id: int, heads: range) -> None:
        self._sink.open_views -= 1
        self._sink.landings.put(page_id)

    def dropped(self, page_id: int, heads: range) -> None:
        self._sink.open_views -= 1


class _WatchedWindow:
    def __init__(self, window: Window, sink: WatchedMemory) -> None:
        self.num_bytes = window.num_bytes
        self.close = window.close
        self._window = window
        self._sink = sink

    def take(self, address: int, page_id: int, heads: range) -> int:
        self._sink.open_views += 1
        return self._window.take(address, page_id, heads)


def open_files() -> list[str]:
    """What the process's descriptors stand for."""
    return sorted(os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
