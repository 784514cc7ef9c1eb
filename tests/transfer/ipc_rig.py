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
    def __init__(
        self,
        stall_timeout_s: float = 10.0,
        *,
        gpu: bool = False,
        shared_by: str = "",
        sender_refuses: str = "",
        receiver_refuses: str = "",
        **shape: Any,
    ) -> None:
        """`shared_by`: `host`, for senders that share no GPU's memory; `..._refuses`: what that GPU never does."""
        self._folder = tempfile.TemporaryDirectory(prefix="ipc-")
        self.reads: list[IpcReads] = []

        def receiver(sink: PageSink, report: OnReceive) -> PageReceiver:
            assert isinstance(sink, WatchedMemory)
            path = f"{self._folder.name}/kv-{len(self.reads)}"
            self.reads.append(IpcReads(into_gpu(sink, receiver_refuses) if gpu else HostImport(sink), path))
            self.ipc_paths.append(path)
            return TcpReceiver(sink, report, host="127.0.0.1", stall_timeout_s=stall_timeout_s, ipc=self.reads[-1])

        def sender(source: PageSource, report: OnSend, cache: memoryview) -> PageSender:
            what = (cache, source.layout, source.rank)
            export = of_gpu(*what, sender_refuses) if gpu and shared_by != "host" else of_host(*what)
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


def of_gpu(pages: memoryview, layout: KVLayout, rank: int, refuses: str) -> Export:
    device = HostDevice(refuses)
    cache, file = device.allocate(pages.nbytes)
    cache.copy_(torch.frombuffer(pages, dtype=torch.uint8).view(-1))
    return DeviceExport(device, cache, file, layout, rank)


def into_gpu(sink: WatchedMemory, refuses: str) -> Import:
    cache = torch.frombuffer(sink.zone, dtype=torch.uint8)
    return WatchedImport(DeviceImport(HostDevice(refuses), cache, sink.layout, sink.rank), sink)


class HostDevice:
    """A `Device`."""

    uuid = "GPU-of-the-host"
    most_bytes = 1 << 30

    def __init__(self, refuses: str = "") -> None:
        """`refuses`: the method that always fails."""
        self._refuses = refuses
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
        self._may("unmap")
        self._mapped.pop(address).close()

    def copy(self, source: int, target_B: torch.Tensor) -> None:
        self._may("copy")
        ctypes.memmove(target_B.data_ptr(), source, target_B.nbytes)

    def checksum(self, page_B: torch.Tensor, sums: WordSums) -> int:
        self._may("checksum")
        return sums(page_B)

    def _may(self, work: str) -> None:
        if work == self._refuses:
            raise OSError("CUDA_ERROR_ILLEGAL_ADDRESS")


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


def mapped() -> int:
    """Mappings of shared caches that this process may not write: those of other processes."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("memfd:tandem-kv" in line and " r--s " in line for line in lines)


def hand_over(rig: Rig, job_id: str) -> None:
    """Page 5 to page 7."""
    rig.open(job_id, [(7, 1)])
    rig.send(job_id, 0, [5])
    rig.finish(job_id)


def open_files() -> list[str]:
    """What the process's descriptors stand for."""
    return sorted(os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
