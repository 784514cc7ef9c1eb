"""A request's way through the gateway: pick pods, send, try another pod, relay the answer."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import orjson
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from tandem_contract.reloading import ReloadingFile
from tandem_contract.ticket import DEFAULT_TTL_S, Ticket, new_nonce, sign
from yarl import URL

from tandem_gateway import forwarding
from tandem_gateway.deadline import Deadline, Expired
from tandem_gateway.errors import RETRY_AFTER_S, ApiError, BadUpstream, ModelNotFound, NoPodAvailable, ShuttingDown
from tandem_gateway.fleet import Fleet, Picked
from tandem_gateway.metrics import GatewayMetrics
from tandem_gateway.pod import Pod
from tandem_gateway.prompt import Prompt
from tandem_gateway.relay import ClientStream, relay
from tandem_gateway.retry import RetryBudget

TicketKeys = ReloadingFile[tuple[bytes, ...]]
_LARGE_BODY_BYTES = 1024 * 1024
_ENGINE_DEAD = "engine_dead"
"""Error code of a pod whose engine process has ended, and of such an attempt."""
_POD_MAY_HAVE_DIED_OF_IT = frozenset({_ENGINE_DEAD, "broken", "pod_down"})
_MAX_DEATHS = 2
"""After so many such ends the request is given up: one may be chance, but a poison request must not take the fleet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A client's request, read and checked."""

    request_id: str
    method: str
    path: str
    """With the query, as the client sent it."""
    headers: CIMultiDictProxy[str]
    body: bytes
    prompt: Prompt
    wants_prefill: bool
    on_begin: Callable[[], None]
    """Called once, when the first byte of the answer is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds, but for `max_attempts`."""

    request_timeout: float
    stall_timeout: float
    max_attempts: int


class AttemptFailed(Exception):
    """Nothing was sent to the client yet, so another pod may answer; `answer` is what is left if none can."""

    def __init__(self, reason: str, answer: ApiError | web.Response) -> None:
        super().__init__(reason)
        self.reason = reason
        self.answer = answer


class Proxy:
    def __init__(self, fleet: Fleet, tickets: TicketKeys | None, limits: Limits, metrics: GatewayMetrics) -> None:
        self._fleet = fleet
        self._tickets = tickets
        self._limits = limits
        self._metrics = metrics
        self._budget = RetryBudget(time.monotonic())
        self._running: set[Deadline] = set()

    def cut_off(self) -> None:
        """Ends every answer in flight, streams with an error event."""
        for deadline in self._running:
            deadline.expire(ShuttingDown("The gateway is shutting down."))

    async def answer(self, call: Call, request: web.Request) -> web.StreamResponse:
        """Tries pods until one answers. Raises `ApiError` when none does."""
        self._budget.deposit()
        end = asyncio.get_running_loop().time() + self._limits.request_timeout
        tried: frozenset[str] = frozenset()
        failure: AttemptFailed | None = None
        deaths = 0
        for _ in range(self._limits.max_attempts):
            if failure is not None and not self._budget.withdraw(time.monotonic()):
                break
            picked = self._pick(call, tried, failure)
            if picked is None:
                break
            if failure is not None:
                self._metrics.retries.labels(failure.reason).inc()
            try:
                return await self._attempt(call, picked, request, end)
            except AttemptFailed as error:
                failure = error
                tried |= {picked.decode.key}
                deaths += error.reason in _POD_MAY_HAVE_DIED_OF_IT
                if deaths == _MAX_DEATHS:
                    break
        if failure is None:
            raise self._nobody(call.prompt)
        if isinstance(failure.answer, ApiError):
            raise failure.answer
        return failure.answer

    def _pick(self, call: Call, tried: frozenset[str], failure: AttemptFailed | None) -> Picked | None:
        wants_prefill = call.wants_prefill and self._tickets is not None
        picked = self._fleet.pick(call.prompt, wants_prefill=wants_prefill, exclude=tried)
        if picked is None and failure is not None and failure.reason in ("broken", "pod_down"):
            # The pod had just closed a kept-alive connection, or restarted: it may well answer on a new one.
            picked = self._fleet.pick(call.prompt, wants_prefill=wants_prefill)
        return picked

    def _nobody(self, prompt: Prompt) -> ApiError:
        known = self._fleet.models()
        if prompt.model is not None and known and prompt.model not in known:
            return ModelNotFound(f"The model {prompt.model!r} does not exist.", param="model")
        return NoPodAvailable("No pod can take the request just now.")

    async def _attempt(self, call: Call, picked: Picked, request: web.Request, end: float) -> web.StreamResponse:
        pod = picked.decode
        deadline = Deadline(end=end, stall=self._limits.stall_timeout)
        client: ClientStream | None = None
        self._running.add(deadline)
        pod.await_answer(deadline)
        try:
            async with deadline:
                with self._fleet.occupied(pod):
                    upstream = await self._send(call, picked)
                    try:
                        answer_headers = forwarding.to_client(upstream.headers, pods=_pods_header(picked))
                        if upstream.content_type != "text/event-stream":
                            answer = await _buffered(upstream, answer_headers)
                            call.on_begin()
                            return answer
                        response = web.StreamResponse(status=upstream.status, headers=answer_headers)
                        client = ClientStream(request, response, lambda: self._begin(call, pod, deadline))
                        if not await relay(upstream.content, client, deadline):
                            await self._broken_off(client)
                        return response
                    finally:
                        upstream.close()
        except Expired as expired:
            if client is not None and client.begun:
                await client.fail(expired.error)
                return client.response
            if isinstance(expired.error, BadUpstream):
                raise AttemptFailed("pod_down", expired.error) from expired
            raise expired.error from expired
        finally:
            pod.answered(deadline)
            self._running.discard(deadline)

    async def _send(self, call: Call, picked: Picked) -> aiohttp.ClientResponse:
        pod = picked.decode
        sent = forwarding.to_pod(call.headers, request_id=call.request_id, tickets=self._sign(call, picked))
        # aiohttp writes bytes in one go, which for large ones would hold up every other stream.
        body = io.BytesIO(call.body) if len(call.body) > _LARGE_BODY_BYTES else call.body
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
            else:
                pod.went_down(f"connect: {error}")
            raise AttemptFailed("connect", NoPodAvailable("The picked pod could not be reached.")) from error
        except aiohttp.ClientError as error:
            raise AttemptFailed("broken", _broken()) from error
        if upstream.status == 503:
            refusal = await _buffered(upstream, forwarding.to_client(upstream.headers, pods=_pods_header(picked)))
            if _error_code(refusal) == _ENGINE_DEAD:
                pod.avoid("its engine is dead")
                raise AttemptFailed(_ENGINE_DEAD, refusal)
            refusal.headers.setdefault("Retry-After", str(RETRY_AFTER_S))
            raise AttemptFailed("busy", refusal)
        return upstream

    def _begin(self, call: Call, pod: Pod, deadline: Deadline) -> None:
        pod.answered(deadline)
        call.on_begin()

    async def _broken_off(self, client: ClientStream) -> None:
        """Where a later resume on another pod takes over; without it the client is told."""
        if not client.begun:
            raise AttemptFailed("broken", _broken())
        await client.fail(_broken())

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


def _pods_header(picked: Picked) -> str:
    pods = f"decode={picked.decode.key}"
    return pods + (f"; prefill={picked.prefill.key}" if picked.prefill else "")
