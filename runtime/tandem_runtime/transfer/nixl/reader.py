"""Turns descriptors into verified fragments: reads each into a slot, copies that to its page, hashes the page."""

from __future__ import annotations

from collections import deque

import xxhash

from tandem_runtime.transfer.ledger import Exported, IncomingStream
from tandem_runtime.transfer.memory import PageSink
from tandem_runtime.transfer.nixl import wire
from tandem_runtime.transfer.nixl.reads import NixlReads, Read
from tandem_runtime.transfer.protocol import Failure, TransferFault

READS_AT_ONCE = 8
"""Of a stream: enough to keep a fabric busy with pages of 100 KB."""


class DescriptorReader:
    """Beside what `tcp.reader.FrameReader` does, it is to be polled while fragments are being read."""

    def __init__(self, stream: IncomingStream, sink: PageSink, reads: NixlReads, exported: Exported) -> None:
        """Raises `TransferFault`."""
        self._stream = stream
        self._sink = sink
        self._reads = reads
        self._peer = reads.join(exported)
        self._record = memoryview(bytearray(wire.RECORD_BYTES))
        self._filled = 0
        self._described: dict[int, int] = {}
        """Slot index -> page id."""
        self._waiting: deque[wire.Descriptor] = deque()
        self._reading: dict[Read, wire.Descriptor] = {}
        self._quiet_ticks = 0
        self._dropped = False

    @property
    def told_all(self) -> bool:
        """The sender has no more to say."""
        return len(self._described) == self._stream.num_slots

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._reading)

    def buffers(self) -> list[memoryview]:
        return [self._record[self._filled :]]

    def advance(self, count: int) -> None:
        """Raises `TransferFault`."""
        self._filled += count
        if self._filled < len(self._record):
            return
        self._filled = 0
        descriptor = wire.unpack(self._record)
        if descriptor is None:
            return
        index = descriptor.header.index
        page_id = self._stream.expect(descriptor.header)
        if index in self._described:
            raise TransferFault(Failure.PROTOCOL, f"slot {index} sent twice")
        self._described[index] = page_id
        self._waiting.append(descriptor)

    def poll(self) -> bool:
        """Lands one fragment at most, so that streams take turns; whether it did. Raises `TransferFault`."""
        while self._waiting and len(self._reading) < READS_AT_ONCE:
            read = self._reads.start(self._peer, self._waiting[0].address, self._waiting[0].header.length)
            if read is None:
                break
            self._reading[read] = self._waiting.popleft()
        for read, descriptor in list(self._reading.items()):
            try:
                done = self._reads.poll(read)
            except TransferFault:
                del self._reading[read]
                raise
            if done:
                del self._reading[read]
                try:
                    self._land(read, descriptor)
                finally:
                    self._reads.end(read)
                self._quiet_ticks = 0
                return True
        return False

    def tick(self) -> int:
        """Ticks since a read has ended while some are wanted."""
        self._quiet_ticks = self._quiet_ticks + 1 if self.busy else 0
        return self._quiet_ticks

    def drop(self) -> None:
        """The stream ends here; no page is written after this."""
        if self._dropped:
            return
        self._dropped = True
        self._waiting.clear()
        for read in self._reading:
            self._reads.abandon(read)
        self._reading.clear()
        self._reads.leave(self._peer)

    def _land(self, read: Read, descriptor: wire.Descriptor) -> None:
        """Hashes what is in the page, not what was in the slot: bytes that came in between would show."""
        header = descriptor.header
        page_id = self._described[header.index]
        view = self._sink.incoming(page_id, self._stream.heads)
        view[:] = read.slot.view[: header.length]
        try:
            self._stream.verify(header.index, descriptor.checksum, xxhash.xxh3_64_intdigest(view))
        except TransferFault:
            self._sink.dropped(page_id, self._stream.heads)
            raise
        self._sink.landed(page_id, self._stream.heads)
