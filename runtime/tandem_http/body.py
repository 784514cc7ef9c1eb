"""Reading a request's body from a client that may be slow, but not for ever."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Pace:
    """How slowly a body may come."""

    pause_s: float = 30.0
    """Longest silence; also what a client has before `bytes_per_s` counts."""
    bytes_per_s: int = 16 * 1024
    """On average. One byte in every pause would hold a place among the requests in flight for years."""


PACE = Pace()


class BodyTooSlow(Exception):
    """Its text is for the client."""


async def read_body(request: web.Request, pace: Pace = PACE) -> bytes:
    """As `request.read`. Raises `BodyTooSlow`, and what aiohttp raises: `HTTPRequestEntityTooLarge`,
    `RequestPayloadError`, `ConnectionError`."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    body = bytearray()
    try:
        async with asyncio.timeout(pace.pause_s) as limit:
            async for chunk in request.content.iter_any():
                body += chunk
                if request.client_max_size and len(body) > request.client_max_size:
                    raise web.HTTPRequestEntityTooLarge(request.client_max_size, len(body))
                earned = started + len(body) / pace.bytes_per_s
                limit.reschedule(min(earned, loop.time()) + pace.pause_s)
    except TimeoutError:
        raise BodyTooSlow(
            f"The body came too slowly: {len(body)} bytes in {loop.time() - started:.0f} seconds."
        ) from None
    return bytes(body)
