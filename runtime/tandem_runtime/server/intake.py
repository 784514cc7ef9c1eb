"""What every handler does with a request before its own work: the body, the request id, the tickets."""

from __future__ import annotations

import re
import uuid

import orjson
from aiohttp import web
from tandem_contract import headers

from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.errors import ContentTypeError

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(given: str | None) -> str:
    """The caller's own id where it is fit for headers and log lines, else a new one."""
    return given if given and _SANE_REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


async def read_json(request: web.Request) -> object:
    """Raises `RequestError`; aiohttp raises `HTTPRequestEntityTooLarge`."""
    if request.content_type != "application/json":
        raise ContentTypeError(f"the content type must be application/json, not {request.content_type}")
    try:
        raw = await request.read()
    except (web.RequestPayloadError, ConnectionError) as error:
        raise RequestError(f"the body cannot be read: {error}") from error
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"invalid JSON: {error}") from error


def wants_trace(request: web.Request) -> bool:
    return request.headers.get(headers.TIMING) == "1"
