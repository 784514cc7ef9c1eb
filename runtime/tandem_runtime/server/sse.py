"""Server-sent events (WHATWG HTML 9.2), as OpenAI's streams spell them."""

from __future__ import annotations

import msgspec

from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.errors import encode_error

DONE = b"data: [DONE]\n\n"


def event(data: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def named_event(name: str, data: msgspec.Struct) -> bytes:
    return b"event: " + name.encode() + b"\n" + event(data)


def error_event(error: RequestError) -> bytes:
    return b"data: " + encode_error(error) + b"\n\n"
