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

    @property
    def is_direct(self) -> bool:
        return self._response is not None

    def readinto(self, buffer: memoryview) -> int:
        """Bytes read; 0 at the end, which comes early where the server closes the connection."""
        source = self._body if self._response is None else self._response
        count: int = source.readinto(buffer)
        return count

    def close(self) -> None:
        """Keeps the connection for the next request if the body was read to its end, else closes it."""
        if self._response is not None and self._response.length == 0:
            self._raw.release_conn()
        self._body.close()
