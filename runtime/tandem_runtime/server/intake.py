"""What every handler does with a request before its own work: the body, the request id, the tickets."""

from __future__ import annotations

import logging
import re
import uuid

import orjson
from aiohttp import web
from tandem_contract import headers
from tandem_contract.live_stream import MAX_RECORD_BYTES, verify_stream
from tandem_contract.ticket import TicketError
from tandem_http.body import BodyTooSlow, read_body

from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.errors import BodyTimeoutError, ContentTypeError, UnauthorizedError
from tandem_runtime.server.keys import POD
from tandem_runtime.server.live import Past, open_envelope
from tandem_runtime.server.pod import Pod

logger = logging.getLogger(__name__)

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(given: str | None) -> str:
    """The caller's own id where it is fit for headers and log lines, else a new one."""
    return given if given and _SANE_REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


async def read_json(request: web.Request) -> object:
    """Raises `RequestError`; aiohttp raises `HTTPRequestEntityTooLarge`."""
    return _decode(await _read(request))


async def read_generation(request: web.Request, pod: Pod) -> tuple[object, Past]:
    """The client's body, and what became of the request so far.

    Raises as `read_json`, and `UnauthorizedError`: only a gateway may say what a stream's past is. A live stream that
    no gateway asked for is a usual one.
    """
    mode = request.headers.get(headers.STREAM)
    signature = request.headers.get(headers.SIGNATURE, "")
    if mode == "resume":
        raw = await _read(request.clone(client_max_size=request.client_max_size + MAX_RECORD_BYTES))
        try:
            verify_stream("resume", signature, raw, pod.tickets.keys)
        except TicketError as error:
            raise UnauthorizedError(f"only a gateway may resume a stream: {error}") from error
        return open_envelope(_decode(raw), pod.new_seed())
    raw = await _read(request)
    live = False
    if mode == "live":
        try:
            verify_stream("live", signature, raw, pod.tickets.keys)
            live = True
        except TicketError as error:
            logger.warning("this stream will not survive its pod: %s", error)
    return _decode(raw), Past.none(pod.new_seed(), live=live)


def wants_trace(request: web.Request) -> bool:
    return request.headers.get(headers.TIMING) == "1"


async def _read(request: web.Request) -> bytes:
    if request.content_type != "application/json":
        raise ContentTypeError(f"the content type must be application/json, not {request.content_type}")
    try:
        return await read_body(request, request.app[POD].pace)
    except BodyTooSlow as error:
        raise BodyTimeoutError(str(error)) from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise RequestError(f"the body cannot be read: {error}") from error


def _decode(raw: bytes) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"invalid JSON: {error}") from error
