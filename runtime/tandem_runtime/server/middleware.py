"""Around every handler: request id, API key, errors in OpenAI's shape, one log line."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from tandem_contract import headers
from tandem_tracing.http import begin_request, end_request
from tandem_tracing.spans import Span

from tandem_runtime.core import logs
from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.errors import (
    BodyTooLargeError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    encode_error,
)
from tandem_runtime.server.intake import request_id
from tandem_runtime.server.keys import POD, REQUEST_ID, SPAN
from tandem_runtime.server.tracing import fail

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PROTECTED = ("/v1/", "/tokenize", "/detokenize")
_QUIET = frozenset({"/livez", "/readyz", "/metrics", "/internal/v1/status"})
"""Polled all the time; not worth a log line at the usual level."""
_CLIENT_CLOSED = 499


@web.middleware
async def frame(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[REQUEST_ID] = request_id(request.headers.get(headers.REQUEST_ID))
    request[SPAN] = _begin_span(request)
    token = logs.request_id.set(request[REQUEST_ID])
    started = time.perf_counter()
    status = _CLIENT_CLOSED
    try:
        response = await _guarded(request, handler)
        status = response.status
        return response
    finally:
        level = logging.DEBUG if request.path in _QUIET else logging.INFO
        seconds = time.perf_counter() - started
        logger.log(level, "%s %s %d %.3f s", request.method, request.path, status, seconds)
        logs.request_id.reset(token)
        end_request(request[SPAN], None if status == _CLIENT_CLOSED else status)


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """An `on_response_prepare` signal: streams have no other moment for headers."""
    # None where the request was refused before `frame` saw it.
    if (number := request.get(REQUEST_ID)) is not None:
        response.headers[headers.REQUEST_ID] = number


def _begin_span(request: web.Request) -> Span:
    resource = request.match_info.route.resource
    return begin_request(
        request.app[POD].tracing,
        method=request.method,
        route=resource.canonical if resource is not None else None,
        path=request.path,
        headers=request.headers,
        request_id=request[REQUEST_ID],
    )


async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        if request.path.startswith(_PROTECTED):
            request.app[POD].clients.check(request.headers.get(hdrs.AUTHORIZATION))
        return await handler(request)
    except RequestError as error:
        if error.status >= 500:
            fail(request[SPAN], error)
        return _response(error)
    except web.HTTPException as error:
        return _response(_refusal_of(error, request), allow=error.headers.get(hdrs.ALLOW))
    except (asyncio.CancelledError, ConnectionResetError):
        raise
    # The last line of defence: a bug of ours must not show its traceback, nor close the connection.
    except Exception:
        logger.exception("unexpected error")
        return _response(InternalError())


def _refusal_of(error: web.HTTPException, request: web.Request) -> RequestError:
    match error.status:
        case 404:
            return NotFoundError(f"there is no {request.path}")
        case 405:
            return MethodNotAllowedError(f"{request.path} does not take {request.method}")
        case 413:
            return BodyTooLargeError("the body exceeds the limit of this server")
        case _:
            refusal = RequestError(error.reason)
            refusal.status = error.status
            return refusal


def _response(error: RequestError, *, allow: str | None = None) -> web.Response:
    response = web.Response(status=error.status, body=encode_error(error), content_type="application/json")
    if error.status == 503:
        response.headers[hdrs.RETRY_AFTER] = "1"
    if allow is not None:
        response.headers[hdrs.ALLOW] = allow
    return response
