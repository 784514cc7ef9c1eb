"""Handoff control messages over a caller that speaks HTTP (the API process) on the engine's behalf."""

from __future__ import annotations

import hmac
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from tandem_runtime.engine.messages import ControlCall, ControlReply

Message = TypeVar("Message")
OnReply = Callable[[int, bytes], None]
"""Called with the HTTP status (0: not reached in time) and the body."""


class ControlPlane:
    """Outgoing calls by id, so that replies find their way back. Used on the engine's thread only."""

    def __init__(self, publish: Callable[[ControlCall | ControlReply], None]) -> None:
        self._publish = publish
        self._ids = itertools.count(1)
        self._waiting: dict[int, OnReply] = {}

    def post(
        self, url: str, path: str, message: Any, on_reply: OnReply | None = None, *, timeout_s: float = 5.0
    ) -> None:
        call_id = next(self._ids)
        if on_reply is not None:
            self._waiting[call_id] = on_reply
        body = msgspec.json.encode(message)
        self._publish(ControlCall(call_id=call_id, path=path, body=body, url=url, timeout_s=timeout_s))

    def on_reply(self, reply: ControlReply) -> None:
        if waiting := self._waiting.pop(reply.call_id, None):
            waiting(reply.status, reply.body)

    def answer(self, call: ControlCall, status: int, message: Any = None) -> None:
        body = b"{}" if message is None else msgspec.json.encode(message)
        self._publish(ControlReply(call_id=call.call_id, status=status, body=body))


def same_secret(given: str, known: str) -> bool:
    """In constant time; `given` may be anything a peer sends."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), known.encode())


def decode(body: bytes, cls: type[Message]) -> Message:
    """Raises `msgspec.DecodeError`, and nothing else whatever the bytes are; it names the path of the bad field."""
    try:
        return msgspec.json.decode(body, type=cls)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"{cls.__name__}: {error}") from error
