"""One attempt at an answer: the request to the picked pod, and the pod's answer to the client."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import Awaitable, Callable

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
    Source,
    cause_of,
)
from tandem_gateway.errors import RETRY_AFTER_S, ApiError, BadUpstream, ClientTooSlow, NoPodAvailable, ShuttingDown
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

    async def make(self, delivery: Delivery, picked: Picked, *, within: float | None = None) -> web.StreamResponse:
        """`within`: seconds until the pod's answer must have begun.

        Raises `AttemptFailed`, `Interrupted` and `Lost`; and `ApiError` as long as nothing was sent.
        """
        delivery.source = None
        with tracing.attempt_span(delivery, picked) as span, contextlib.ExitStack() as held:
            delivery.attempts += 1
            held.enter_context(self._fleet.occupied(picked.decode))

            async def attempt(deadline: Deadline) -> web.StreamResponse:
                upstream = await self._send(delivery, picked, span, within)
                held.callback(upstream.close)
                tracing.answered(span, upstream.status)
                return await self._answered(delivery, picked, upstream, deadline, held)

            return await self._watched(delivery, picked.decode, attempt)

    async def go_back(self, delivery: Delivery) -> web.StreamResponse:
        """To the parked answer. Raises `Interrupted` and `Lost`."""
        source = delivery.unpark()

        async def pass_on(deadline: Deadline) -> web.StreamResponse:
            source.pod.answered(deadline)
            deadline.touch()
            return await self._pass_on(delivery, source, deadline)

        with tracing.attempt_span(delivery, Picked(source.pod, None, None)), source.held:
            return await self._watched(delivery, source.pod, pass_on)

    async def _watched(
        self, delivery: Delivery, pod: Pod, work: Callable[[Deadline], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """`work` under a deadline, which silence, time, and whatever becomes of `pod` may end."""
        deadline = Deadline(end=delivery.end, stall=self._limits.stall_timeout)
        self._running.add(deadline)
        pod.await_answer(deadline)
        try:
            with pod.movable(deadline, lambda: self._may_move(delivery)):
                async with deadline:
                    return await work(deadline)
        except Expired as expired:
            return self._cut_off(delivery, pod, expired)
        finally:
            pod.answered(deadline)
            self._running.discard(deadline)

    def _may_move(self, delivery: Delivery) -> bool:
        """A request of which nothing was answered yet stays where it is: a pod that leaves still answers it."""
        now = asyncio.get_running_loop().time()
        left = delivery.resumes < self._limits.max_resumes
        return delivery.begun and delivery.resumable and left and now >= delivery.stays_until

    def _cut_off(self, delivery: Delivery, pod: Pod, expired: Expired) -> web.StreamResponse:
        """What an attempt ends with that was cut off. Raises all that `make` does."""
        error = expired.error
        cause = cause_of(error)
        if not delivery.begun:
            if cause == "pod_down":
                raise AttemptFailed(cause, error) from expired
            raise error from expired
        assert delivery.client is not None
        if isinstance(error, ClientTooSlow):
            raise Lost("slow_client", error) from expired
        if delivery.journal.ended:
            return delivery.client.response
        if cause is None:
            raise Lost("shutdown" if isinstance(error, ShuttingDown) else "timeout", error) from expired
        if cause == "leaving" and delivery.source is not None:
            delivery.park()
        raise Interrupted(cause, pod.key, error) from expired

    async def _answered(
        self,
        delivery: Delivery,
        picked: Picked,
        upstream: aiohttp.ClientResponse,
        deadline: Deadline,
        held: contextlib.ExitStack,
    ) -> web.StreamResponse:
        pod = picked.decode
        answer_headers = forwarding.to_client(upstream.headers, pods=_pods_header(picked))
        live = delivery.wants_live and upstream.headers.get(headers.STREAM) == "live"
        if delivery.begun and not live:
            answer = await _buffered(upstream, answer_headers)
            log.warning("a pod would not go on with a stream", extra={"fields": _refused(delivery, pod, answer)})
            raise AttemptFailed("refused", _broken())
        if upstream.content_type != "text/event-stream":
            answer = await _buffered(upstream, answer_headers)
            delivery.call.on_begin()
            return answer
        client = delivery.client
        if client is not None and client.begun:
            pod.answered(deadline)  # its headers come with the next events
            delivery.let_go()
            delivery.resumes += 1
            self._metrics.resumes.labels(delivery.cause).inc()
            log.info("stream resumed", extra={"fields": _resumed(delivery, pod)})
        else:
            response = web.StreamResponse(status=upstream.status, headers=answer_headers)
            client = ClientStream(delivery.request, response, lambda: self._begin(delivery.call, pod, deadline))
            delivery.client = client
            delivery.continuation = pod.status.continuation if live and pod.status is not None else ""
        events = LiveRelay(delivery.journal) if live else EventRelay()
        return await self._pass_on(delivery, Source(pod, upstream.content, events, held), deadline)

    async def _pass_on(self, delivery: Delivery, source: Source, deadline: Deadline) -> web.StreamResponse:
        delivery.source = source
        client = delivery.client
        assert client is not None
        if not await relay(source.content, client, deadline, source.events):
            if not client.begun:
                raise AttemptFailed("broken", _broken())
            raise Interrupted("broken", source.pod.key, _broken())
        return client.response

    async def _send(
        self, delivery: Delivery, picked: Picked, span: Span, within: float | None
    ) -> aiohttp.ClientResponse:
        call, pod = delivery.call, picked.decode
        raw, stream = self._body(delivery)
        tickets = self._sign(call, picked)
        sent = forwarding.to_pod(
            call.headers, request_id=call.request_id, tickets=tickets, stream=stream, trace=span.headers
        )
        # aiohttp writes bytes in one go, which for large ones would hold up every other stream.
        body = io.BytesIO(raw) if len(raw) > _LARGE_BODY_BYTES else raw
        try:
            async with asyncio.timeout(within):
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
        except TimeoutError as error:
            raise AttemptFailed("slow", NoPodAvailable("The picked pod has no room yet.")) from error
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


def _refused(delivery: Delivery, pod: Pod, answer: web.Response) -> dict[str, object]:
    said = bytes(answer.body)[:500].decode(errors="replace") if answer.body else ""  # type: ignore[arg-type]
    return {"request_id": delivery.call.request_id, "pod": pod.key, "status": answer.status, "answer": said}


def _pods_header(picked: Picked) -> str:
    pods = f"decode={picked.decode.name}"
    return pods + (f"; prefill={picked.prefill.name}" if picked.prefill else "")
