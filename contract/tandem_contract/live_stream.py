"""Streams that survive their decode pod: what a gateway asks for, what pods add to a stream, how it goes on elsewhere.

A gateway asks for a live stream with the header `STREAM: live`, signed with the ticket keys (`SIGNATURE`). A pod that
agrees repeats the header. It follows each group of events with a comment (server-sent events, WHATWG HTML 9.2.5), its
*record*, and closes the last group with the comment `END`. The gateway passes a group on, without the comment, once its
record is there: so what the client has and what the gateway has recorded never differ. Records are JSON that only pods
read.

To go on, the gateway posts to the same path at another pod, with `STREAM: resume`, an envelope of the client's body and
the records so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tandem_contract.ticket import sign_message, verify_message

Mode = Literal["live", "resume"]

END = b":end\n\n"
MAX_RECORD_BYTES = 8 * 1024 * 1024
"""Of all records of one stream, about 250,000 tokens; a longer stream goes on without a net."""


def comment(record: bytes) -> bytes:
    """`record`: JSON on one line."""
    return b":" + record + b"\n\n"


def envelope(body: bytes, records: bytes, *, elapsed_s: float) -> bytes:
    """`body`: a valid JSON document, `records`: the records in order, comma-separated."""
    return b'{"request":' + body + b',"elapsed_s":' + repr(elapsed_s).encode() + b',"records":[' + records + b"]}"


def sign_stream(mode: Mode, body: bytes, key: bytes) -> str:
    """For the `SIGNATURE` header of a request with the header `STREAM: mode`."""
    return sign_message(f"stream/{mode}", body, key)


def verify_stream(mode: Mode, signature: str, body: bytes, keys: Sequence[bytes]) -> None:
    """Raises `TicketError` unless a gateway that holds one of `keys` signed it lately."""
    verify_message(signature, f"stream/{mode}", body, keys)
