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
        self._held = b""
        self._last = b""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that may go on now; over the whole stream they are the bytes fed, in order."""
        if not self._held and chunk.endswith(END):
            self._last = chunk
            return chunk
        data = self._held + chunk
        cut = data.rfind(END) + len(END)
        if cut < len(END):
            cut = len(data) if len(data) > MAX_HELD_BYTES else 0
        self._held = data[cut:]
        if cut:
            self._last = data[:cut]
        return data[:cut]

    def commit(self) -> None:
        """Nothing is kept of a stream that cannot go on elsewhere."""

    def end(self) -> tuple[bytes, bool]:
        """The rest to send on at the end of the stream, and whether the stream was complete.

        A stream is complete when it closed with `[DONE]`, with the pod's own error event, or with the event that
        carries the whole of a response (/v1/responses).
        """
        if self._held and _closes(self._held):
            return self._held, True
        return b"", not self._held and _closes(self._last)


class LiveRelay:
    """Of a live stream (`live_stream` in the contract): a group of events goes on once its record is there."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._held = b""
        self._records: list[bytes] = []
        self._complete = False

    def feed(self, chunk: bytes) -> bytes:
        """The events that may go on now. Once they are about to, `commit`."""
        *blocks, rest = (self._held + chunk).split(END)
        ready: list[bytes] = []
        group: list[bytes] = []
        for block in blocks:
            if block.startswith(b":"):
                ready += group
                group.clear()
                self._complete = block + END == live_stream.END
                self._journal.ended = self._complete
                if not self._complete:
                    self._records.append(block[1:])
            else:
                group.append(block + END)
        if len(rest) + sum(map(len, group)) > MAX_HELD_BYTES:
            self._journal.give_up()
        if self._journal.lost:
            ready += group
            group.clear()
        self._held = b"".join(group) + rest
        return b"".join(ready)

    def commit(self) -> None:
        """What `feed` returned is on its way."""
        for record in self._records:
            self._journal.add(record)
        self._records.clear()

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
