"""Server-sent events as the relay sees them: whole events go on at once, half an event waits for its end.

So whenever a pod dies, what the client has is whole events, and another event can follow.
"""

from __future__ import annotations

from tandem_contract import live_stream

from tandem_gateway.journal import Journal

END = b"\n\n"
MAX_HELD_BYTES = 4 * 1024 * 1024
"""Of one unfinished event; beyond it the bytes go on as they come."""


class EventRelay:
    __slots__ = ("_held", "_last")

    def __init__(self) -> None:
        self._held = bytearray()
        self._last = b""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that may go on now; over the whole stream they are the bytes fed, in order."""
        if not self._held and chunk.endswith(END):
            self._last = chunk
            return chunk
        looked_through = max(0, len(self._held) - 1)
        self._held += chunk
        cut = self._held.rfind(END, looked_through) + len(END)
        if cut < len(END):
            cut = len(self._held) if len(self._held) > MAX_HELD_BYTES else 0
        if not cut:
            return b""
        self._last = bytes(self._held[:cut])
        del self._held[:cut]
        return self._last

    def commit(self) -> None:
        """Nothing is kept of a stream that cannot go on elsewhere."""

    def end(self) -> tuple[bytes, bool]:
        """The rest to send on at the end of the stream, and whether the stream was complete.

        A stream is complete when it closed with `[DONE]`, with the pod's own error event, or with the event that
        carries the whole of a response (/v1/responses).
        """
        if self._held and _closes(bytes(self._held)):
            return bytes(self._held), True
        return b"", not self._held and _closes(self._last)


class LiveRelay:
    """Of a live stream (`live_stream` in the contract): a group of events goes on once its record is there."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._group: list[bytes] = []
        """Events that wait for their record."""
        self._group_bytes = 0
        self._rest = bytearray()
        """Of an unfinished event."""
        self._amid_event = False
        """Whether the beginning of that event has gone on already."""
        self._ready = b""
        self._records: list[bytes] = []
        self._complete = False

    def feed(self, chunk: bytes) -> bytes:
        """The events that may go on now. Once they are about to, `commit`: until then they are returned again."""
        ready = [self._ready]
        looked_through = max(0, len(self._rest) - 1)
        self._rest += chunk
        while (end := self._rest.find(END, looked_through)) >= 0:
            looked_through = 0
            block = bytes(self._rest[: end + len(END)])
            del self._rest[: end + len(END)]
            if block.startswith(b":") and not self._amid_event:
                self._on_record(block, ready)
            else:
                self._group.append(block)
                self._group_bytes += len(block)
            self._amid_event = False
        if self._group_bytes + len(self._rest) > MAX_HELD_BYTES:
            self._journal.give_up("event")
        if self._journal.lost:
            self._take_group(ready)
            if len(self._rest) > MAX_HELD_BYTES:
                # Its last byte may be the first of the end.
                ready.append(bytes(self._rest[:-1]))
                del self._rest[:-1]
                self._amid_event = True
        self._ready = b"".join(ready)
        return self._ready

    def _on_record(self, block: bytes, ready: list[bytes]) -> None:
        self._take_group(ready)
        self._complete = block == live_stream.END
        if not self._complete:
            self._records.append(block[1 : -len(END)])

    def _take_group(self, ready: list[bytes]) -> None:
        ready += self._group
        self._group.clear()
        self._group_bytes = 0

    def commit(self) -> None:
        """What `feed` returned is on its way."""
        self._ready = b""
        for record in self._records:
            self._journal.add(record)
        self._records.clear()
        if self._complete:
            self._journal.end()

    def end(self) -> tuple[bytes, bool]:
        """As `EventRelay.end`; a group without its record is not sent."""
        return b"", self._complete


_LAST_EVENTS = (
    *(b'data: {"error"', b'data:{"error"'),
    *(b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n"),
)


def _closes(data: bytes) -> bool:
    event = data.rstrip().rpartition(END)[2].lstrip()
    return event in (b"data: [DONE]", b"data:[DONE]") or event.startswith(_LAST_EVENTS)
