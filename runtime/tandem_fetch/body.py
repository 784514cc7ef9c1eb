"""A response's body, received straight into the caller's buffer.

`readinto` of botocore's body, and of urllib3's response in it, reads bytes objects and copies them: each byte is moved
four times more than by http.client below them, which hands the buffer to the socket.
"""

from __future__ import annotations

from http.client import HTTPResponse
from typing import Any


class Body:
    """Wraps botocore's `StreamingBody`. Where the layers below are not the known ones, it reads through them."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self._raw: Any = getattr(body, "_raw_stream", None)
        response = getattr(self._raw, "_fp", None)
        known = isinstance(response, HTTPResponse) and response.length is not None
        self._response: HTTPResponse | None = response if known else None
        self._broken: OSError | None = None

    @property
    def is_direct(self) -> bool:
        return self._response is not None

    def readinto(self, buffer: memoryview) -> int:
        """Bytes read; 0 at the end, which comes early where the server closes the connection.

        Where the connection breaks, what had arrived is returned first, and the error is raised by the next call.
        """
        if self._response is None:
            count: int = self._body.readinto(buffer)
            return count
        if self._broken is not None:
            raise self._broken
        return self._receive(self._response, buffer[: self._response.length])

    def close(self) -> None:
        """Keeps the connection for the next request if the body was read to its end, else closes it."""
        if self._response is not None and self._response.length == 0:
            self._response.close()
            self._raw.release_conn()
        self._body.close()

    def _receive(self, response: Any, buffer: memoryview) -> int:
        """Fills the buffer by single receives: `HTTPResponse.readinto` forgets what came before an error."""
        filled = 0
        try:
            while filled < len(buffer) and (count := response.fp.readinto1(buffer[filled:])):
                filled += count
        except OSError as error:
            if not filled:
                raise
            self._broken = error
        response.length -= filled
        return filled
