"""Writing to a client's connection so that cancelling the writer spares what is written after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

NEVER_WAITS_BYTES = 32 * 1024
"""So much in an empty buffer stays below the 64 KiB at which a transport makes its writers wait."""


async def shielded_write(
    transport: asyncio.WriteTransport | None, write: Callable[[bytes], Coroutine[object, object, None]], data: bytes
) -> None:
    """A cancelled call has sent the bytes all the same, and others may follow.

    aiohttp's writers wait for a full buffer in one future per connection, without a shield: cancelling one of them
    would end every later one with a CancelledError. So a write that may wait is a task of its own.
    """
    if transport is not None and not transport.get_write_buffer_size() and len(data) <= NEVER_WAITS_BYTES:
        await write(data)
        return
    writing = asyncio.create_task(write(data))
    writing.add_done_callback(_retrieve)
    await asyncio.shield(writing)


def _retrieve(writing: asyncio.Task[None]) -> None:
    """Whoever was cancelled no longer asks; a client that left meanwhile is then nobody's error."""
    if not writing.cancelled():
        writing.exception()
