"""A server for an aiohttp application that answers what is no request as an API does, and waits for nobody for ever."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

log = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 75.0
"""For the head of the next request to be there, from the end of the answer before it; nginx's default. Clients here let
go of their connections earlier (30 s), and so should a load balancer that keeps them."""
TAKE_TIMEOUT_S = 120.0
"""For a client that takes nothing of what was written to it. The kernel sees to it (TCP_USER_TIMEOUT), so that it holds
behind a handler's end too, when the answer or its last 64 KiB wait in buffers."""
LINGER_S = 2.0
"""For the rest of what is refused to come in, and be dropped: closing with bytes unread would reset the connection, and
the client would not see why."""
_MAX_LOGGED = 200


@contextlib.asynccontextmanager
async def listening(
    app: web.Application,
    *,
    backlog: int,
    auto_decompress: bool = True,
    idle_timeout: float = IDLE_TIMEOUT_S,
    take_timeout: float = TAKE_TIMEOUT_S,
    **where: Any,
) -> AsyncIterator[int]:
    """Serves until the block ends; yields the port. `where`: `host` and `port`, or `sock`. Raises `OSError`.

    Handlers are cancelled when their client goes away, and with them the work they wait for.
    """
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    manager = runner.server
    assert manager is not None

    options: dict[str, Any] = {
        "keepalive_timeout": idle_timeout,
        "auto_decompress": auto_decompress,
        "access_log": None,
    }
    try:
        server = await loop.create_server(lambda: Connection(manager, loop=loop, **options), backlog=backlog, **where)
        try:
            if None in server.sockets:  # what uvloop makes of it when another process listened first at a shared port
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            for listener in server.sockets:  # the connections inherit it
                milliseconds = min(int(1000 * take_timeout), 2**31 - 1)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
    finally:
        await runner.cleanup()


class Connection(web.RequestHandler):
    """aiohttp's, but for its answer to what it cannot parse: text, a traceback in the log, and often a reset. It also
    leaves a traceback of every client that resets its connection within an answer."""

    _refused = False

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):
            raise exc  # the client has left; aiohttp closes the connection
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        # What comes after the first line is a drawing of where in the bytes it went wrong.
        reason = ascii(exc.message.partition("\n")[0].rstrip(":"))[1:-1][:_MAX_LOGGED]
        log.info("no request, from %s: %s", request.remote, reason)
        if isinstance(exc, LineTooLong) or reason.startswith("Too many headers"):
            status = 431
            text = (
                f"The request line and each header may have {self.max_line_size} bytes, "
                f"and a request {self.max_headers} headers."
            )
            code = "headers_too_large"
        else:
            text = f"This is no HTTP request: {reason}."
            code = "malformed_request"
        return self._refusal(request, status, text, code)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Expectations are looked at before any middleware is asked, which would shape and number the refusal."""
        if isinstance(resp, web.HTTPExpectationFailed):
            text = "The only expectation that is met is 100-continue."
            resp = self._refusal(request, 417, text, "expectation_failed")
        return await super().finish_response(request, resp, start_time)

    def _refusal(self, request: web.BaseRequest, status: int, text: str, code: str) -> web.Response:
        error = {"message": text, "type": "invalid_request_error", "param": None, "code": code}
        self._refused = True
        response = _Refusal(status=status, body=json.dumps({"error": error}).encode(), content_type="application/json")
        response.transport = request.transport
        response.force_close()
        return response


class _Refusal(web.Response):
    """Ends the conversation at once, and the connection when the client has closed it too, or soon."""

    transport: asyncio.Transport | None = None

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write_eof()
            await asyncio.sleep(LINGER_S)
