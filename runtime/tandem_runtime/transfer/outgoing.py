"""What the writers of all transports share: a stream's place in the queue of its job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tandem_runtime.transfer.ledger import FragmentHeader


class StreamWriter(ABC):
    """Turns queued pages into the bytes of one stream. Sans I/O: alternate `buffers` (send them in order) and
    `advance` (say how many bytes were sent)."""

    def __init__(
        self, heads: range, offset: int, slots: Sequence[tuple[int, int]], queue: Sequence[tuple[int, int]]
    ) -> None:
        """`offset` of the heads in the receiver's page; `queue`: (slot index, page id), to which its owner appends."""
        self._heads = heads
        self._offset = offset
        self._slots = slots
        self._queue = queue
        self._taken = 0  # of the queue
        self.payload_bytes = 0
        """Of the pages taken from the queue, so far."""

    @property
    def idle(self) -> bool:
        """Nothing to send now."""
        return not self._unsent and not self._waiting

    @property
    def done(self) -> bool:
        """Every slot was sent."""
        return self.idle and self._taken == len(self._slots)

    @abstractmethod
    def heartbeat(self) -> None:
        """Only when idle."""

    @abstractmethod
    def buffers(self) -> list[memoryview]:
        """Empty when idle."""

    @abstractmethod
    def advance(self, count: int) -> None: ...

    @abstractmethod
    def drop(self) -> None:
        """The stream ends here; no page is read after this."""

    @property
    @abstractmethod
    def _unsent(self) -> bool:
        """Of what was taken from the queue."""

    @property
    def _waiting(self) -> bool:
        return self._taken < len(self._queue)

    def _take(self) -> tuple[int, int]:
        """The next (slot index, page id) of the queue."""
        self._taken += 1
        return self._queue[self._taken - 1]

    def _header(self, index: int, length: int) -> FragmentHeader:
        return FragmentHeader(index, self._slots[index][1], self._offset, length)
