"""The streaming loop: a pod's events to the client, byte for byte, and how the stream ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import aiohttp
from aiohttp import web
from tandem_http.shielded_write import shielded_write

from tandem_gateway.deadline import Deadline
from tandem_gateway.errors import ApiError
from tandem_gateway.events import EventRelay, LiveRelay

FAREWELL_TIMEOUT_S = 1.0


class ClientStream:
    """The client's side. Headers go out with the first bytes; until then another pod can still answer."""

    def __init__(self, request: web.Request, response: web.StreamResponse, on_begin: Callable[[], None]) -> None:
        self._request = request
        self.response = response
        self._on_begin = on_begin
        self.begun = False

    async def begin(self) -> None:
        if not self.begun:
            self.begun = True
            self._on_begin()
        if not self.response.prepared:  # a call for each chunk, else
            await self.response.prepare(self._request)

    def send(self, data: bytes) -> Coroutine[object, object, None]:
        """After `begin`. A cancelled `send` has sent the bytes all the same, and others may follow."""
        return shielded_write(self._request.transport, self.response.write, data)

    async def fail(self, error: ApiError) -> None:
        """Ends a stream that has begun with an error event; a client that takes no bytes is dropped."""
        try:
            async with asyncio.timeout(FAREWELL_TIMEOUT_S):
                await self.send(error.event())
                await self.response.write_eof()
        except (TimeoutError, ConnectionError):
            if self._request.transport is not None:
                self._request.transport.abort()


async def relay(
    source: aiohttp.StreamReader, client: ClientStream, deadline: Deadline, events: EventRelay | LiveRelay
) -> bool:
    """True when the stream was complete, whatever became of its pod then; False when the pod broke it off.

    Where it was cancelled it can be called again with the same `source` and `events`, and goes on.
    """
    chunk = b""
    while True:
        if whole := events.feed(chunk):
            await client.begin()
            events.commit()
            await deadline.clients_turn(client.send(whole))
        try:
            chunk = await source.readany()
        except aiohttp.ClientError:
            break
        if not chunk:
            break
        deadline.touch()
    rest, complete = events.end()
    if rest:
        await client.begin()
        await deadline.clients_turn(client.send(rest))
    return complete
