"""Where pages are read from and written to: the seam between a transport and the device that holds the KV cache.

On the CPU both ends are views of the cache itself. A device's cache (`staging`) goes through page-locked memory:
`outgoing` copies down, `landed` copies up and returns once the copy is visible to the device.
"""

from __future__ import annotations

from typing import Protocol

from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.plan import byte_range


class PageSource(Protocol):
    """What a sender reads. Called on the transport's thread only."""

    layout: KVLayout
    rank: int

    def outgoing(self, page_id: int, heads: range) -> memoryview:
        """The bytes of `heads` (of the whole model); valid until `sent`. Raises `TransferFault`."""

    def sent(self, page_id: int, heads: range) -> None:
        """The view of `outgoing` is not read any more, whether or not all of it was sent."""


class PageSink(Protocol):
    """What a receiver writes. Called on the transport's thread only."""

    layout: KVLayout
    rank: int
    num_pages: int

    def incoming(self, page_id: int, heads: range) -> memoryview:
        """Where the bytes of `heads` (of the whole model) are to be written; ends with `landed` or `dropped`.

        Raises `TransferFault`."""

    def landed(self, page_id: int, heads: range) -> None:
        """The view of `incoming` holds verified bytes; on return the page's owner sees them. Raises `TransferFault`."""

    def dropped(self, page_id: int, heads: range) -> None:
        """The view of `incoming` is not written any more and its bytes mean nothing."""


class PageMemory:
    """A rank's KV cache on the CPU; both a `PageSource` and a `PageSink`, without copies."""

    def __init__(self, pages: memoryview, layout: KVLayout, rank: int) -> None:
        """`pages`: writable, C-contiguous, [num_pages, page_bytes] in any shape and item type."""
        self._bytes = pages.cast("B")
        assert len(self._bytes) % layout.page_bytes == 0, "the buffer is no whole number of pages"
        self.layout = layout
        self.rank = rank
        self.num_pages = len(self._bytes) // layout.page_bytes

    def outgoing(self, page_id: int, heads: range) -> memoryview:
        return self._view(page_id, heads)

    def incoming(self, page_id: int, heads: range) -> memoryview:
        return self._view(page_id, heads)

    def sent(self, page_id: int, heads: range) -> None: ...

    def landed(self, page_id: int, heads: range) -> None: ...

    def dropped(self, page_id: int, heads: range) -> None: ...

    def _view(self, page_id: int, heads: range) -> memoryview:
        assert 0 <= page_id < self.num_pages, page_id
        offset, length = byte_range(self.layout, self.rank, heads)
        start = page_id * self.layout.page_bytes + offset
        return self._bytes[start : start + length]
