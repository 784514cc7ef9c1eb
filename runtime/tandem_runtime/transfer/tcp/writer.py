"""Pages as frames."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from tandem_runtime.transfer.memory import PageSource
from tandem_runtime.transfer.outgoing import StreamWriter
from tandem_runtime.transfer.tcp import wire

_MAX_BUFFERS = 64
"""Small fragments share a system call, up to about this many buffers."""


class FrameWriter(StreamWriter):
    def __init__(
        self,
        source: PageSource,
        heads: range,
        offset: int,
        slots: Sequence[tuple[int, int]],
        queue: Sequence[tuple[int, int]],
        hello: bytes,
    ) -> None:
        super().__init__(heads, offset, slots, queue)
        self._source = source
        self._pending = [memoryview(hello)]
        self._payload = memoryview(b"")  # of the page being framed, what is not pending yet
        self._held: list[int] = []  # pages that _pending or _payload view
        self._hash = xxhash.xxh3_64()

    def heartbeat(self) -> None:
        assert self.idle
        self._pending.append(memoryview(wire.HEARTBEAT))

    def buffers(self) -> list[memoryview]:
        if not self._pending:
            self._frame()
        return self._pending

    def advance(self, count: int) -> None:
        whole = 0
        while whole < len(self._pending) and count >= len(self._pending[whole]):
            count -= len(self._pending[whole])
            whole += 1
        del self._pending[:whole]
        if count:
            self._pending[0] = self._pending[0][count:]
        if not self._pending:
            self._release(keep=1 if self._payload else 0)

    def drop(self) -> None:
        self._pending.clear()
        self._payload = memoryview(b"")
        self._release(keep=0)

    @property
    def _unsent(self) -> bool:
        return bool(self._pending or self._payload)

    def _frame(self) -> None:
        room = wire.SLICE_BYTES
        while room > 0 and len(self._pending) < _MAX_BUFFERS:
            if not self._payload:
                if not self._waiting:
                    return
                self._begin_fragment(*self._take())
            part, self._payload = self._payload[:room], self._payload[room:]
            self._hash.update(part)
            self._pending.append(part)
            self.payload_bytes += len(part)
            room -= len(part)
            if not self._payload:
                self._pending.append(memoryview(wire.pack_checksum(self._hash.intdigest())))

    def _begin_fragment(self, index: int, page_id: int) -> None:
        self._payload = self._source.outgoing(page_id, self._heads)
        self._held.append(page_id)
        self._hash.reset()
        self._pending.append(memoryview(wire.pack_header(self._header(index, len(self._payload)))))

    def _release(self, keep: int) -> None:
        while len(self._held) > keep:
            self._source.sent(self._held.pop(0), self._heads)
