"""Server-sent events, incrementally (WHATWG HTML, 9.2.6): only `data`, all that OpenAI streams use."""

from __future__ import annotations


class SseParser:
    """Feed it bytes as they come, cut anywhere; it returns the data of every event that is complete."""

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._ended_in_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        if self._ended_in_cr and chunk:
            # The CR already ended its line: waiting for its LF would delay the event.
            self._ended_in_cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._ended_in_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                self._data.append(b"")
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
