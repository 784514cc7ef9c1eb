"""What the gateway keeps of a live stream: the pod's records, unread, as another pod will want them."""

from __future__ import annotations

from tandem_contract.live_stream import MAX_RECORD_BYTES, envelope


class Journal:
    def __init__(self) -> None:
        self._records = bytearray()
        self.length = 0
        """Records so far."""
        self.lost = False
        """Whether the client has something that no record accounts for: the stream cannot go on elsewhere."""
        self.ended = False
        """Whether the pod has said all: nothing is left to go on with, however long the client takes to read it."""

    def add(self, record: bytes) -> None:
        if len(self._records) + len(record) > MAX_RECORD_BYTES:
            self.give_up()
        if self.lost:
            return
        if self.length:
            self._records += b","
        self._records += record
        self.length += 1

    def give_up(self) -> None:
        self.lost = True
        self._records.clear()

    def envelope(self, body: bytes, *, elapsed_s: float) -> bytes:
        assert not self.lost
        return envelope(body, bytes(self._records), elapsed_s=elapsed_s)
