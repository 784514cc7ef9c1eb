"""The handoff control endpoint of a pod (port 8100): speaks HTTP for the engine, which owns all handoff state.

Every message is signed with the ticket keys, which all pods of a service share; that, and a job's ticket, are verified
here, before the engine sees anything. The rest passes through as bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import aiohttp
import msgspec
from aiohttp import web
from tandem_contract import handoff
from tandem_contract.headers import SIGNATURE
from tandem_contract.ticket import NonceLedger, TicketError, sign_message, verify, verify_message
from tandem_http.body import BodyTooSlow, read_body

from tandem_runtime.engine.client import EngineClient
from tandem_runtime.engine.messages import ControlCall

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024 * 1024
"""A million token ids fit."""


class _Ticketed(msgspec.Struct):
    """The fields of a `PrefillJob` that are looked at here; the others are skipped."""

    ticket: str
    request_id: str


class TicketGate:
    """Honours a ticket once, for the request and the pod it names."""

    def __init__(self, keys: Callable[[], tuple[bytes, ...]], incarnation: Callable[[], str]) -> None:
        self._keys = keys
        self._incarnation = incarnation
        self._spent = NonceLedger()

    def check_message(self, path: str, body: bytes, signature: str) -> None:
        """Whether another pod of this service sent it. Raises `TicketError`."""
        verify_message(signature, path, body, self._keys())

    def check_job(self, body: bytes) -> None:
        """Raises `TicketError`."""
        try:
            job = msgspec.json.decode(body, type=_Ticketed)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TicketError(f"the job's ticket cannot be read: {error}", reason="malformed") from error
        ticket = verify(job.ticket, self._keys())
        # n > 1 and retries add a suffix to the id the gateway signed.
        if job.request_id != ticket.request_id and not job.request_id.startswith(ticket.request_id + "-"):
            raise TicketError("ticket is for another request", reason="misdirected")
        if ticket.prefill_incarnation != self._incarnation():
            raise TicketError("ticket is for another pod, or for this one before it restarted", reason="misdirected")
        self._spent.spend(ticket)


def build_handoff_app(engine: EngineClient, gate: TicketGate) -> web.Application:
    async def receive(request: web.Request) -> web.Response:
        try:
            body = await read_body(request)
        except BodyTooSlow as error:
            return web.json_response({"error": str(error)}, status=408)
        try:
            gate.check_message(request.path, body, request.headers.get(SIGNATURE, ""))
            if request.path == handoff.PREFILL_PATH:
                gate.check_job(body)
        except TicketError as error:
            return web.json_response({"error": str(error)}, status=401)
        status, answer = await engine.control(request.path, body)
        return web.Response(status=status, body=answer, content_type="application/json")

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    for path in (
        handoff.PREFILL_PATH,
        handoff.RESERVE_PATH,
        handoff.FINISH_PATH,
        handoff.ACK_PATH,
        handoff.ALIVE_PATH,
    ):
        app.router.add_post(path, receive)
    return app


class HandoffCaller:
    """Posts the engine's outgoing messages. A frozen peer holds up only its own calls."""

    def __init__(self, keys: Callable[[], tuple[bytes, ...]]) -> None:
        self._keys = keys
        self._session: aiohttp.ClientSession | None = None

    async def post(self, call: ControlCall) -> tuple[int, bytes]:
        """Status 0 when the peer was not reached, or did not answer within the call's timeout."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        try:
            async with self._session.post(
                call.url + call.path,
                data=call.body,
                headers={
                    "Content-Type": "application/json",
                    SIGNATURE: sign_message(call.path, call.body, self._keys()[0]),
                },
                timeout=aiohttp.ClientTimeout(total=call.timeout_s),
                allow_redirects=False,
            ) as response:
                return response.status, await response.read()
        except Exception as error:  # whatever it is, the engine waits for an answer
            logger.warning("handoff call %s%s failed: %s", call.url, call.path, error or type(error).__name__)
            return 0, str(error).encode()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
