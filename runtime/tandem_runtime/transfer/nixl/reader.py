"""Turns descriptors into verified fragments: reads each into a slot, copies that to its page, hashes the page."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import xxhash

from tandem_runtime.transfer.descriptors import Descriptor, DescriptorReader
from tandem_runtime.transfer.ledger import Exported, IncomingStream
from tandem_runtime.transfer.memory import PageSink
from tandem_runtime.transfer.nixl.reads import NixlReads, Read
from tandem_runtime.transfer.protocol import TransferFault

READS_AT_ONCE = 8
"""Of a stream: enough to keep a fabric busy with pages of 100 KB."""


class NixlReader(DescriptorReader):
    """To be polled while fragments are being read."""

    def __init__(self, stream: IncomingStream, sink: PageSink, reads: NixlReads, exported: Exported) -> None:
        """Raises `TransferFault`."""
        super().__init__(stream)
        self._sink = sink
        self._reads = reads
        self._peer = reads.join(exported)
        self._waiting: deque[_Wanted] = deque()
        self._reading: dict[Read, _Wanted] = {}
        self._quiet_ticks = 0
        self._dropped = False

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._reading)

    def poll(self) -> bool:
        """Lands one fragment at most, so that streams take turns; whether it did. Raises `TransferFault`."""
        while self._waiting and len(self._reading) < READS_AT_ONCE:
            descriptor = self._waiting[0].descriptor
            read = self._reads.start(self._peer, descriptor.address, descriptor.header.length)
            if read is None:
                break
            self._reading[read] = self._waiting.popleft()
        for read, wanted in list(self._reading.items()):
            try:
                done = self._reads.poll(read)
            except TransferFault:
                del self._reading[read]
                raise
            if done:
                del self._reading[read]
                try:
                    self._land(read, wanted)
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
        if self._dropped:
            return
        self._dropped = True
        self._waiting.clear()
        for read in self._reading:
            self._reads.abandon(read)
        self._reading.clear()
        self._reads.leave(self._peer)

    def _on_described(self, descriptor: Descriptor, page_id: int) -> int:
        self._waiting.append(_Wanted(descriptor, page_id))
        return 0

    def _land(self, read: Read, wanted: _Wanted) -> None:
        """Hashes what is in the page, not what was in the slot: bytes that came in between would show."""
        header, page_id = wanted.descriptor.header, wanted.page_id
        view = self._sink.incoming(page_id, self._stream.heads)
        view[:] = read.slot.view[: header.length]
        try:
            self._stream.verify(header.index, wanted.descriptor.checksum, xxhash.xxh3_64_intdigest(view))
        except TransferFault:
            self._sink.dropped(page_id, self._stream.heads)
            raise
        self._sink.landed(page_id, self._stream.heads)


class _Wanted(NamedTuple):
    descriptor: Descriptor
    page_id: int
