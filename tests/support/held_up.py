"""Clients that read nothing for a while, and telling when a server in the test's own process waits for one."""

from __future__ import annotations

import asyncio
import gc
import socket

import aiohttp
from aiohttp.web_protocol import RequestHandler


def narrow_connector() -> aiohttp.TCPConnector:
    """Connections whose receive buffer does not grow, so that a few megabytes fill all that are on the way."""

    def narrow(address: aiohttp.AddrInfoType) -> socket.socket:
        made = socket.socket(*address[:3])
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        return made

    return aiohttp.TCPConnector(socket_factory=narrow)


async def held_up(port: int) -> None:
    """Waits until the server at `port` has filled every buffer up to one of the clients it has now."""
    # `isinstance` would ask every object for its `__class__`, which some answer with a warning.
    handlers = [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), RequestHandler)
        and thing.transport is not None
        and thing.transport.get_extra_info("sockname")[1] == port
    ]
    async with asyncio.timeout(20):
        while not any(handler.writing_paused for handler in handlers):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
