"""What the gateway keeps of live streams: the pods' records, unread, as another pod will want them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

from tandem_contract.live_stream import MAX_RECORD_BYTES, envelope

GivenUp = Literal["memory", "length", "event"]
"""Why records were given up: those of all streams were too many, those of the one were, or an event was too large."""


class Journal:
    """Of one stream. Made by `Journals.open`."""

    def __init__(self, journals: Journals) -> None:
        self._journals = journals
        self._records = bytearray()
        self.length = 0
        """Records so far."""
        self.lost = False
        """Whether the client has something that no record accounts for: the stream cannot go on elsewhere."""
        self.ended = False
        """Whether the pod has said all: nothing is left to go on with, however long the client takes to read it."""

    @property
    def size(self) -> int:
        """Bytes held."""
        return len(self._records)

    def add(self, record: bytes) -> None:
        if self.size + len(record) > MAX_RECORD_BYTES:
            self.give_up("length")
        if self.lost:
            return
        if self.length:
            self._records += b","
        self._records += record
        self._journals.grew(len(record) + (self.length > 0))
        self.length += 1

    def end(self) -> None:
        self.ended = True
        self.clear()

    def give_up(self, reason: GivenUp) -> None:
        if not self.lost:
            self.lost = True
            self._journals.given_up(reason)
        self.clear()

    def clear(self) -> None:
        self._journals.grew(-self.size)
        self._records = bytearray()

    def envelope(self, body: bytes, *, elapsed_s: float) -> bytes:
        assert not self.lost
        return envelope(body, bytes(self._records), elapsed_s=elapsed_s)


class Journals:
    """Of all live streams, which together hold at most `max_bytes`.

    Beyond them the largest journal is given up: of all ways to make room it costs the fewest streams their net, and
    new ones always have theirs.
    """

    def __init__(self, max_bytes: int, on_given_up: Callable[[GivenUp], object]) -> None:
        self._max_bytes = max_bytes
        self.given_up = on_given_up
        self._open: set[Journal] = set()
        self.size = 0
        """Bytes held."""

    @contextlib.contextmanager
    def open(self) -> Iterator[Journal]:
        """Until the block ends."""
        journal = Journal(self)
        self._open.add(journal)
        try:
            yield journal
        finally:
            self._open.remove(journal)
            journal.clear()

    def grew(self, added: int) -> None:
        self.size += added
        while self.size > self._max_bytes:
            max(self._open, key=lambda journal: journal.size).give_up("memory")
