"""Turns a stream of received bytes into verified fragments in place. Sans I/O: says where the next bytes go."""

from __future__ import annotations

import xxhash

from tandem_runtime.transfer.ledger import FragmentHeader, IncomingStream
from tandem_runtime.transfer.memory import PageSink
from tandem_runtime.transfer.tcp import wire


class FrameReader:
    """Alternate `buffers` (fill them in order) and `advance` (say how many bytes were filled)."""

    def __init__(self, stream: IncomingStream, sink: PageSink) -> None:
        self._stream = stream
        self._sink = sink
        self._control = memoryview(bytearray(wire.CHECKSUM_BYTES + wire.HEADER_BYTES))
        self._filled = wire.CHECKSUM_BYTES  # of _control; no checksum precedes the first header
        self._header: FragmentHeader | None = None
        self._page_id = -1
        self._payload = memoryview(b"")
        self._hash = xxhash.xxh3_64()

    def buffers(self) -> list[memoryview]:
        """The rest of the payload, at most a slice of it, then the checksum and the next header."""
        if len(self._payload) > wire.SLICE_BYTES:
            return [self._payload[: wire.SLICE_BYTES]]
        control = self._control[self._filled :]
        return [self._payload, control] if self._payload else [control]

    def advance(self, count: int) -> int:
        """Bytes of the turn's share that this took. Raises `TransferFault`; nothing may be received after that."""
        received = count
        if self._payload:
            landed = min(count, len(self._payload), wire.SLICE_BYTES)
            self._hash.update(self._payload[:landed])
            self._payload = self._payload[landed:]
            count -= landed
        self._filled += count
        if self._header is not None and not self._payload and self._filled >= wire.CHECKSUM_BYTES:
            self._end_fragment(self._header)
        if self._filled == len(self._control) and not self._stream.complete:
            self._begin_fragment()
        return received

    def drop(self) -> None:
        """The stream ends here; a fragment in progress is given up."""
        if self._header is not None:
            self._header, self._payload = None, memoryview(b"")
            self._sink.dropped(self._page_id, self._stream.heads)

    def _begin_fragment(self) -> None:
        header = wire.unpack_header(self._control[wire.CHECKSUM_BYTES :])
        if header is None:
            self._filled = wire.CHECKSUM_BYTES
            return
        self._page_id = self._stream.expect(header)
        self._header = header
        self._payload = self._sink.incoming(self._page_id, self._stream.heads)
        self._hash.reset()
        self._filled = 0

    def _end_fragment(self, header: FragmentHeader) -> None:
        sent = wire.unpack_checksum(self._control[: wire.CHECKSUM_BYTES])
        self._stream.verify(header.index, sent, self._hash.intdigest())
        self._header = None
        self._sink.landed(self._page_id, self._stream.heads)
