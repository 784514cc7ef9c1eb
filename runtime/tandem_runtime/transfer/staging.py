"""Pages of a device's KV cache by way of page-locked host memory: what a transport over sockets reads and writes.

Each page in transit has a block of its own, so that jobs share nothing; blocks are kept for the next page. A page, and
any range of its heads, is one contiguous range of the cache: one copy by the device's copy engine.
"""

from __future__ import annotations

from typing import Protocol

from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.plan import byte_range
from tandem_runtime.transfer.protocol import DeviceFault


class Block(Protocol):
    """Host memory that the device can reach."""

    @property
    def view(self) -> memoryview: ...


class CopyEngine(Protocol):
    """Copies between blocks and the cache beside whatever the device computes; each returns when its copy is done.

    All raise `OSError`.
    """

    def block(self, num_bytes: int) -> Block: ...
    def down(self, offset: int, num_bytes: int, block: Block) -> None: ...
    def up(self, block: Block, offset: int, num_bytes: int) -> None: ...


class StagedPages:
    """Both a `PageSource` and a `PageSink`. One transport each: the methods are called on that transport's thread."""

    def __init__(self, engine: CopyEngine, layout: KVLayout, rank: int, num_pages: int) -> None:
        self.layout = layout
        self.rank = rank
        self.num_pages = num_pages
        self._engine = engine
        self._idle: list[Block] = []
        self._busy: dict[tuple[int, range], list[Block]] = {}
        """By page and heads; a page may be on its way to several receivers at once."""

    def outgoing(self, page_id: int, heads: range) -> memoryview:
        block = self._take(page_id, heads)
        offset, length = self._range(page_id, heads)
        try:
            self._engine.down(offset, length, block)
        except OSError as error:
            self._give_back(page_id, heads)
            raise DeviceFault(f"page {page_id} cannot be copied to the host", error) from error
        return block.view[:length]

    def sent(self, page_id: int, heads: range) -> None:
        self._give_back(page_id, heads)

    def incoming(self, page_id: int, heads: range) -> memoryview:
        _, length = self._range(page_id, heads)
        return self._take(page_id, heads).view[:length]

    def landed(self, page_id: int, heads: range) -> None:
        offset, length = self._range(page_id, heads)
        try:
            self._engine.up(self._busy[page_id, heads][0], offset, length)
        except OSError as error:
            raise DeviceFault(f"page {page_id} cannot be copied from the host", error) from error
        finally:
            self._give_back(page_id, heads)

    def dropped(self, page_id: int, heads: range) -> None:
        self._give_back(page_id, heads)

    def _take(self, page_id: int, heads: range) -> Block:
        try:
            block = self._idle.pop() if self._idle else self._engine.block(self.layout.page_bytes)
        except OSError as error:
            raise DeviceFault("no page-locked memory for a page", error) from error
        self._busy.setdefault((page_id, heads), []).append(block)
        return block

    def _give_back(self, page_id: int, heads: range) -> None:
        blocks = self._busy[page_id, heads]
        self._idle.append(blocks.pop(0))
        if not blocks:
            del self._busy[page_id, heads]

    def _range(self, page_id: int, heads: range) -> tuple[int, int]:
        assert 0 <= page_id < self.num_pages, page_id
        offset, length = byte_range(self.layout, self.rank, heads)
        return page_id * self.layout.page_bytes + offset, length
