"""What a stream carries in the place of pages where the receiver reads them itself: where each lies, and its checksum.

Writer and reader for every transport that does so; how a page is read is the transport's own.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from tandem_runtime.transfer.ledger import FragmentHeader, IncomingStream
from tandem_runtime.transfer.outgoing import StreamWriter
from tandem_runtime.transfer.protocol import Failure, TransferFault

_RECORD = struct.Struct("!4sIQQQQQ")
_READ, _BEAT = b"READ", b"BEAT"
RECORD_BYTES = _RECORD.size
HEARTBEAT = _RECORD.pack(_BEAT, 0, 0, 0, 0, 0, 0)

_BYTES_AT_ONCE = 2 << 20
"""Hashing pages takes time that other streams wait for."""


class Descriptor(msgspec.Struct, frozen=True):
    header: FragmentHeader
    address: int
    """Of the fragment in the sender's exported memory."""
    checksum: int


def pack(descriptor: Descriptor) -> bytes:
    header = descriptor.header
    return _RECORD.pack(
        _READ,
        header.index,
        header.generation,
        header.offset,
        header.length,
        descriptor.address,
        descriptor.checksum,
    )


def unpack(record: memoryview) -> Descriptor | None:
    """None for a heartbeat. Raises `TransferFault`."""
    kind, index, generation, offset, length, address, checksum = _RECORD.unpack(record)
    if kind == _BEAT:
        return None
    if kind != _READ:
        raise TransferFault(Failure.PROTOCOL, f"record of unknown kind {kind!r}")
    return Descriptor(FragmentHeader(index, generation, offset, length), address, checksum)


class Described(NamedTuple):
    address: int
    length: int
    checksum: int


class Describes(Protocol):
    """A rank's exported KV cache."""

    def describe(self, page_id: int, heads: range) -> Described:
        """As the page is now. Sender's thread only. Raises `TransferFault`."""


class DescriptorWriter(StreamWriter):
    def __init__(
        self,
        export: Describes,
        heads: range,
        offset: int,
        slots: Sequence[tuple[int, int]],
        queue: Sequence[tuple[int, int]],
        hello: bytes,
    ) -> None:
        super().__init__(heads, offset, slots, queue)
        self._export = export
        self._pending = memoryview(hello)

    def heartbeat(self) -> None:
        assert self.idle
        self._pending = memoryview(HEARTBEAT)

    def buffers(self) -> list[memoryview]:
        if not self._pending:
            records, end = [], self.payload_bytes + _BYTES_AT_ONCE
            while self._waiting and self.payload_bytes < end:
                records.append(self._describe(*self._take()))
            self._pending = memoryview(b"".join(records))
        return [self._pending] if self._pending else []

    def advance(self, count: int) -> None:
        self._pending = self._pending[count:]

    def drop(self) -> None:
        self._pending = memoryview(b"")

    @property
    def _unsent(self) -> bool:
        return bool(self._pending)

    def _describe(self, index: int, page_id: int) -> bytes:
        address, length, checksum = self._export.describe(page_id, self._heads)
        self.payload_bytes += length
        return pack(Descriptor(self._header(index, length), address, checksum))


class DescriptorReader(ABC):
    """To be filled as `tcp.reader.FrameReader` is."""

    def __init__(self, stream: IncomingStream) -> None:
        self._stream = stream
        self._record = memoryview(bytearray(RECORD_BYTES))
        self._filled = 0
        self._described: set[int] = set()

    @property
    def told_all(self) -> bool:
        """The sender has no more to say."""
        return len(self._described) == self._stream.num_slots

    def buffers(self) -> list[memoryview]:
        return [self._record[self._filled :]]

    def advance(self, count: int) -> int:
        """Bytes of the turn's share that this took. Raises `TransferFault`."""
        self._filled += count
        if self._filled < len(self._record):
            return count
        self._filled = 0
        descriptor = unpack(self._record)
        if descriptor is None:
            return count
        index = descriptor.header.index
        page_id = self._stream.expect(descriptor.header)
        if index in self._described:
            raise TransferFault(Failure.PROTOCOL, f"slot {index} sent twice")
        self._described.add(index)
        return count + self._on_described(descriptor, page_id)

    @abstractmethod
    def drop(self) -> None:
        """The stream ends here; no page is written after this."""

    @abstractmethod
    def _on_described(self, descriptor: Descriptor, page_id: int) -> int:
        """Bytes moved at once. Raises `TransferFault`."""
