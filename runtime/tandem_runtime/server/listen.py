"""Listening sockets of a pod. They are bound before the model loads, so that a busy port is known at once."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack

from aiohttp import web
from tandem_http.listening import TAKE_TIMEOUT_S, listening

from tandem_runtime.core.errors import StartupError

BACKLOG = 1024


def bind(host: str, port: int, *, flag: str) -> socket.socket:
    """Binds without listening yet. Raises `StartupError` that names `flag`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartupError(f"--host {host}: {error.strerror or error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise StartupError(f"{flag} {port}: cannot listen on {host}: {error.strerror or error}") from error
    return bound


async def listen(
    app: web.Application, bound: socket.socket, stack: AsyncExitStack, *, take_timeout: float = TAKE_TIMEOUT_S
) -> None:
    """Until `stack` is closed. Raises `StartupError` where another process came to listen there since `bind`."""
    host, port = bound.getsockname()[:2]
    try:
        await stack.enter_async_context(listening(app, sock=bound, backlog=BACKLOG, take_timeout=take_timeout))
    except OSError as error:
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
