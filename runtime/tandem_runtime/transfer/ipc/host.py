"""The host's memory as an anonymous file: it has no name, needs no room in /dev/shm, and goes with its last user."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import weakref

import numpy as np
import xxhash

from tandem_runtime.core.errors import StartupError
from tandem_runtime.transfer.descriptors import Described
from tandem_runtime.transfer.ledger import Offer
from tandem_runtime.transfer.memory import PageMemory, PageSink
from tandem_runtime.transfer.plan import byte_range
from tandem_runtime.transfer.protocol import Failure, TransferFault

KIND = "host"
FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""A mapping of a file that could shrink would kill its reader."""
_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; this process has its writable mapping by then
_SLICE_BYTES = 256 << 10
"""Copied and hashed at a time, so that the checksum finds them in the cache."""


class SharedMemory:
    """Zeroed; this process alone can write it."""

    def __init__(self, num_bytes: int) -> None:
        """Raises `StartupError`."""
        try:
            self.file = os.memfd_create("tandem-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            weakref.finalize(self, os.close, self.file)
            os.ftruncate(self.file, num_bytes)
            self._mapping = mmap.mmap(self.file, num_bytes)
            seals = FIXED_SIZE | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            raise StartupError(
                f"--kv-transport ipc: {num_bytes} bytes of shared memory cannot be had: {error.strerror}; use tcp"
            ) from error
        self.view = memoryview(self._mapping)


def can_share() -> bool:
    """Whether this kernel has such memory: sandboxes of containers may lack its seals."""
    try:
        SharedMemory(mmap.PAGESIZE)
    except StartupError:
        return False
    return True


class HostExport:
    """An `Export`."""

    def __init__(self, memory: SharedMemory, pages: PageMemory) -> None:
        """`pages` are in `memory`, from its beginning."""
        self._memory = memory
        self._pages = pages
        self.offer = Offer(kind=KIND, id=secrets.token_bytes(16), num_bytes=memory.view.nbytes)

    def file(self) -> int:
        return self._memory.file

    def describe(self, page_id: int, heads: range) -> Described:
        view = self._pages.outgoing(page_id, heads)
        offset, length = byte_range(self._pages.layout, self._pages.rank, heads)
        address = page_id * self._pages.layout.page_bytes + offset
        return Described(address, length, xxhash.xxh3_64_intdigest(view))


class HostWindow:
    """A `Window`."""

    def __init__(self, file: int, num_bytes: int, sink: PageSink) -> None:
        """Raises `OSError`."""
        self.num_bytes = num_bytes
        self._mapping = mmap.mmap(file, num_bytes, prot=mmap.PROT_READ)
        self._bytes = np.frombuffer(self._mapping, dtype=np.uint8)
        self._sink = sink

    def take(self, address: int, page_id: int, heads: range) -> int:
        page = np.frombuffer(self._sink.incoming(page_id, heads), dtype=np.uint8)
        hashed = xxhash.xxh3_64()
        for start in range(0, len(page), _SLICE_BYTES):
            part = page[start : start + _SLICE_BYTES]
            np.copyto(part, self._bytes[address + start : address + start + len(part)])
            hashed.update(part.data)
        return hashed.intdigest()

    def close(self) -> None:
        del self._bytes
        self._mapping.close()


class HostImport:
    """An `Import`."""

    def __init__(self, sink: PageSink) -> None:
        self._sink = sink

    def map(self, offer: Offer, file: int) -> HostWindow:
        if offer.kind != KIND:
            raise TransferFault(Failure.UNSHARED, f"the sender's pages are in {offer.kind}'s memory, these the host's")
        try:
            if fcntl.fcntl(file, fcntl.F_GET_SEALS) & FIXED_SIZE != FIXED_SIZE:
                raise TransferFault(Failure.UNSHARED, "the sender's memory may shrink")
            if not 0 < offer.num_bytes <= os.fstat(file).st_size:
                raise TransferFault(Failure.UNSHARED, "the sender's memory is smaller than it says")
            return HostWindow(file, offer.num_bytes, self._sink)
        except OSError as error:
            raise TransferFault(Failure.UNSHARED, f"the sender's memory: {error.strerror}") from None

    def landed(self, page_id: int, heads: range) -> None:
        self._sink.landed(page_id, heads)

    def dropped(self, page_id: int, heads: range) -> None:
        self._sink.dropped(page_id, heads)
