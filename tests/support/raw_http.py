"""Clients that speak no HTTP, or not all of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable

Said = tuple[int, bytes]
"""Status and body of an answer."""


async def no_http(host: str, port: int) -> Said:
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.closing(writer):
        writer.write(b"hello\r\n\r\n")
        return await _answer(reader)


@contextlib.asynccontextmanager
async def half_a_body(host: str, port: int, path: str) -> AsyncIterator[Awaitable[Said]]:
    """A client that stays and sends nothing more; yields what it is answered."""
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.closing(writer):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
        writer.write(head.encode() + b'{"model":')
        yield _answer(reader)


async def reset_within_the_answer(host: str, port: int, path: str, body: bytes) -> None:
    """A client that closes its connection with bytes unread, as one does that is killed while it is streamed to."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await loop.sock_connect(client, (host, port))
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        await loop.sock_sendall(client, head.encode() + body)
        await loop.sock_recv(client, 100)


async def _answer(reader: asyncio.StreamReader) -> Said:
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split()[0]
        return int(head.split()[1]), await reader.readexactly(int(length))
