"""One attempt at an answer: the request to the picked pod, and the pod's answer to the client."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time

import aiohttp
import orjson
from aiohttp import web
from multidict import CIMultiDict
from tandem_contract import headers
from tandem_contract.live_stream import Mode, sign_stream
from tandem_contract.reloading import ReloadingFile
from tandem_contract.ticket import DEFAULT_TTL_S, Ticket, new_nonce, sign
from tandem_tracing.spans import Span
from yarl import URL

from tandem_gateway import forwarding, tracing
from tandem_gateway.deadline import Deadline, Expired
from tandem_gateway.delivery import (
    ENGINE_DEAD,
    AttemptFailed,
    Call,
    Delivery,
    Interrupted,
    Limits,
    Lost,
    cause_of,
)
from tandem_gateway.errors import RETRY_AFTER_S, ApiError, BadUpstream, ClientTooSlow, NoPodAvailable
from tandem_gateway.events import EventRelay, LiveRelay
from tandem_gateway.fleet import Fleet, Picked
from tandem_gateway.metrics import GatewayMetrics
from tandem_gateway.pod import Pod, is_gone
from tandem_gateway.relay import ClientStream, relay

TicketKeys = ReloadingFile[tuple[bytes, ...]]
log = logging.getLogger(__name__)

_LARGE_BODY_BYTES = 1024 * 1024


class Attempts:
    def __init__(self, fleet: Fleet, tickets: TicketKeys | None, limits: Limits, metrics: GatewayMetrics) -> None:
        self._fleet = fleet
        self._tickets = tickets
        self._limits = limits
        self._metrics = metrics
        self._running: set[Deadline] = set()

    def cut_off(self, error: ApiError) -> None:
        """Ends those that run, streams with an error event."""
        for deadline in self._running:
            deadline.expire(error)

    async def make(self, delivery: Delivery, picked: Picked) -> web.StreamResponse:
        """Raises `AttemptFailed`, `Interrupted` and `Lost`; and `ApiError` as long as nothing was sent."""
        with tracing.attempt_span(delivery, picked) as span:
            delivery.attempts += 1
            return await self._make(delivery, picked, span)

    async def _make(self, delivery: Delivery, picked: Picked, span: Span) -> web.StreamResponse:
        pod = picked.decode
        deadline = Deadline(end=delivery.end, stall=self._limits.stall_timeout)
        self._running.add(deadline)
        pod.await_answer(deadline)
        try:
            async with deadline:
                with contextlib.ExitStack() as stack:
                    stack.enter_context(self._fleet.occupied(pod))
                    if delivery.wants_live:
                        stack.enter_context(pod.movable(deadline, lambda: self._may_move(delivery)))
                    upstream = await self._send(delivery, picked, span)
                    try:
                        tracing.answered(span, upstream.status)
                        return await self._answered(delivery, picked, upstream, deadline)
                    finally:
                        upstream.close()
        except Expired as expired:
            if isinstance(expired.error, ClientTooSlow):
                raise Lost("slow_client", expired.error) from expired
            cause = cause_of(expired.error)
            if delivery.begun:
                if cause is not None and delivery.resumable:
                    raise Interrupted(cause, pod.key, expired.error) from expired
                assert delivery.client is not None
                await delivery.client.fail(expired.error)
                return delivery.client.response
            if cause in ("pod_down", "leaving"):
                raise AttemptFailed(cause, expired.error) from expired
            raise expired.error from expired
        finally:
            pod.answered(deadline)
            self._running.discard(deadline)

    def _may_move(self, delivery: Delivery) -> bool:
        return not delivery.begun or (delivery.resumable and delivery.resumes < self._limits.max_resumes)

    async def _answered(
        self, delivery: Delivery, picked: Picked, upstream: aiohttp.ClientResponse, deadline: Deadline
    ) -> web.StreamResponse:
        pod = picked.decode
        live = delivery.wants_live and upstream.headers.get(headers.STREAM) == "live"
        if delivery.begun and not live:
            raise AttemptFailed("refused", _broken())
        answer_headers = forwarding.to_client(upstream.headers, pods=_pods_header(picked))
        if upstream.content_type != "text/event-stream":
            answer = await _buffered(upstream, answer_headers)
            delivery.call.on_begin()
            return answer
        if delivery.begun and delivery.cause is not None:
            pod.answered(deadline)  # its headers come with the next events
            self._metrics.resumes.labels(delivery.cause).inc()
            log.info("stream resumed", extra={"fields": _resumed(delivery, pod)})
        client = delivery.client
        if client is None or not client.begun:
            response = web.StreamResponse(status=upstream.status, headers=answer_headers)
            client = ClientStream(delivery.request, response, lambda: self._begin(delivery.call, pod, deadline))
            delivery.client = client
            delivery.continuation = pod.status.continuation if live and pod.status is not None else ""
        events = LiveRelay(delivery.journal) if live else EventRelay()
        if not await relay(upstream.content, client, deadline, events):
            if not client.begun:
                raise AttemptFailed("broken", _broken())
            if delivery.resumable:
                raise Interrupted("broken", pod.key, _broken())
            await client.fail(_broken())
        return client.response

    async def _send(self, delivery: Delivery, picked: Picked, span: Span) -> aiohttp.ClientResponse:
        call, pod = delivery.call, picked.decode
        raw, stream = self._body(delivery)
        tickets = self._sign(call, picked)
        sent = forwarding.to_pod(
            call.headers, request_id=call.request_id, tickets=tickets, stream=stream, trace=span.headers
        )
        # aiohttp writes bytes in one go, which for large ones would hold up every other stream.
        body = io.BytesIO(raw) if len(raw) > _LARGE_BODY_BYTES else raw
        try:
            upstream = await pod.session.request(
                call.method,
                pod.url.join(URL(call.path, encoded=True)),
                headers=sent,
                data=body or None,
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                pod.avoid(f"connect: {error}")
            elif is_gone(error):
                pod.went_down(f"connect: {error}")
            raise AttemptFailed("connect", NoPodAvailable("The picked pod could not be reached.")) from error
        except aiohttp.ClientError as error:
            raise AttemptFailed("broken", _broken()) from error
        if upstream.status == 503:
            span.set({"http.response.status_code": 503})
            refusal = await _buffered(upstream, forwarding.to_client(upstream.headers, pods=_pods_header(picked)))
            if _error_code(refusal) == ENGINE_DEAD:
                pod.avoid("its engine is dead")
                raise AttemptFailed(ENGINE_DEAD, refusal)
            refusal.headers.setdefault("Retry-After", str(RETRY_AFTER_S))
            raise AttemptFailed("busy", refusal)
        return upstream

    def _begin(self, call: Call, pod: Pod, deadline: Deadline) -> None:
        pod.answered(deadline)
        call.on_begin()

    def _body(self, delivery: Delivery) -> tuple[bytes, dict[str, str]]:
        """What to post, and the headers that say so."""
        body = delivery.call.body
        if not delivery.wants_live:
            return body, {}
        mode: Mode = "live"
        if delivery.begun:
            mode = "resume"
            elapsed_s = asyncio.get_running_loop().time() - delivery.started
            body = delivery.journal.envelope(body, elapsed_s=elapsed_s)
        assert self._tickets is not None
        return body, {headers.STREAM: mode, headers.SIGNATURE: sign_stream(mode, body, self._tickets.get()[0])}

    def _sign(self, call: Call, picked: Picked) -> list[str]:
        """A ticket for each prefill pod that the decode pod may ask, in order."""
        if self._tickets is None:
            return []
        key = self._tickets.get()[0]
        return [
            sign(
                Ticket(
                    request_id=call.request_id,
                    prefill_host=prefill.url.host or "",
                    prefill_port=prefill.status.handoff_port,
                    prefill_incarnation=prefill.status.incarnation,
                    nonce=new_nonce(),
                    expires_at=time.time() + DEFAULT_TTL_S,
                ),
                key,
            )
            for prefill in (picked.prefill, picked.spare)
            if prefill is not None and prefill.status is not None
        ]


async def _buffered(upstream: aiohttp.ClientResponse, answer_headers: CIMultiDict[str]) -> web.Response:
    try:
        body = await upstream.read()
    except aiohttp.ClientError as error:
        raise AttemptFailed("broken", _broken()) from error
    return web.Response(status=upstream.status, headers=answer_headers, body=body)


def _error_code(answer: web.Response) -> object:
    """`code` of an error in OpenAI's shape; None for anything else."""
    try:
        error = orjson.loads(answer.body)["error"]  # type: ignore[arg-type]
        return error["code"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _broken() -> ApiError:
    return BadUpstream("The pod that computed this answer failed.")


def _resumed(delivery: Delivery, pod: Pod) -> dict[str, object]:
    return {
        "request_id": delivery.call.request_id,
        "pod": pod.key,
        "cause": delivery.cause,
        "records": delivery.journal.length,
    }


def _pods_header(picked: Picked) -> str:
    pods = f"decode={picked.decode.key}"
    return pods + (f"; prefill={picked.prefill.key}" if picked.prefill else "")
