"""The sending side: a rank's KV cache as receivers read it, and the records that tell them where."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.ledger import Exported, FragmentHeader
from tandem_runtime.transfer.memory import PageSource
from tandem_runtime.transfer.nixl import wire
from tandem_runtime.transfer.nixl.agent import NixlAgent, Region
from tandem_runtime.transfer.plan import byte_range

_BYTES_AT_ONCE = 2 << 20
"""Hashing pages takes time that other streams wait for."""


class NixlExport:
    def __init__(self, agent: NixlAgent, cache: Region) -> None:
        """`cache`: all pages of the rank. Raises `StartupError`."""
        self._agent = agent
        self._cache = cache
        agent.register(cache)
        self.exported: Exported = agent.exported(cache)

    def address(self, layout: KVLayout, rank: int, page_id: int, heads: range) -> int:
        offset, length = byte_range(layout, rank, heads)
        start = page_id * layout.page_bytes + offset
        assert 0 <= start <= start + length <= self._cache.num_bytes, page_id
        return self._cache.address + start

    def close(self) -> None:
        self._agent.deregister(self._cache)


class DescriptorWriter:
    """Turns queued pages into records; a `tcp.writer.FrameWriter` to its sender."""

    def __init__(
        self,
        source: PageSource,
        export: NixlExport,
        heads: range,
        offset: int,
        slots: Sequence[tuple[int, int]],
        queue: Sequence[tuple[int, int]],
        hello: bytes,
    ) -> None:
        """`offset` of the heads in the receiver's page; `queue`: (slot index, page id), to which its owner appends."""
        self._source = source
        self._export = export
        self._heads = heads
        self._offset = offset
        self._slots = slots
        self._queue = queue
        self._taken = 0  # of the queue
        self._pending = memoryview(hello)
        self.payload_bytes = 0
        """Described so far."""

    @property
    def idle(self) -> bool:
        """Nothing to send now."""
        return not self._pending and self._taken == len(self._queue)

    @property
    def done(self) -> bool:
        """Every slot was described."""
        return self.idle and self._taken == len(self._slots)

    def heartbeat(self) -> None:
        assert self.idle
        self._pending = memoryview(wire.HEARTBEAT)

    def buffers(self) -> list[memoryview]:
        """Empty when idle."""
        if not self._pending:
            records, end = [], self.payload_bytes + _BYTES_AT_ONCE
            while self._taken < len(self._queue) and self.payload_bytes < end:
                records.append(self._describe(*self._queue[self._taken]))
                self._taken += 1
            self._pending = memoryview(b"".join(records))
        return [self._pending] if self._pending else []

    def advance(self, count: int) -> None:
        self._pending = self._pending[count:]

    def drop(self) -> None:
        """The stream ends here."""
        self._pending = memoryview(b"")

    def _describe(self, index: int, page_id: int) -> bytes:
        view = self._source.outgoing(page_id, self._heads)
        checksum, length = xxhash.xxh3_64_intdigest(view), len(view)
        self._source.sent(page_id, self._heads)
        self.payload_bytes += length
        address = self._export.address(self._source.layout, self._source.rank, page_id, self._heads)
        header = FragmentHeader(index, self._slots[index][1], self._offset, length)
        return wire.pack(wire.Descriptor(header, address, checksum))
