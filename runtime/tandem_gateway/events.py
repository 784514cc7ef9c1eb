"""Server-sent events as the relay sees them: whole events go on at once, half an event waits for its end.

So whenever a pod dies, what the client has is whole events, and another event can follow.
"""

from __future__ import annotations

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

    def end(self) -> tuple[bytes, bool]:
        """The rest to send on at the end of the stream, and whether the stream was complete.

        A stream is complete when it closed with `[DONE]`, with the pod's own error event, or with the event that
        carries the whole of a response (/v1/responses).
        """
        if self._held and _closes(self._held):
            return self._held, True
        return b"", not self._held and _closes(self._last)


_LAST_EVENTS = (
    *(b'data: {"error"', b'data:{"error"'),
    *(b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n"),
)


def _closes(data: bytes) -> bool:
    event = data.rstrip().rpartition(END)[2].lstrip()
    return event in (b"data: [DONE]", b"data:[DONE]") or event.startswith(_LAST_EVENTS)
