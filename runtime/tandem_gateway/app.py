"""The HTTP face: routes, and what every request goes through (id, key, limits, log line, metrics)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from tandem_contract import headers
from tandem_contract.api_keys import ApiKeys
from tandem_contract.reloading import ReloadingFile
from tandem_http.body import BodyTooSlow, Pace, read_body
from tandem_tracing.http import begin_request, end_request
from tandem_tracing.spans import Span, Tracing

from tandem_gateway import errors, forwarding, tracing
from tandem_gateway.cors import Cors
from tandem_gateway.delivery import Call
from tandem_gateway.fleet import Fleet
from tandem_gateway.metrics import GatewayMetrics
from tandem_gateway.prompt import Prompt, parse
from tandem_gateway.proxy import Proxy
from tandem_gateway.ui.routes import Page

log = logging.getLogger("tandem_gateway.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GENERATE_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
TEXT_ROUTES = ("/v1/embeddings", "/tokenize", "/detokenize")
PROBES = ("/livez", "/readyz")
NO_KEY_ROUTES = (*PROBES, "/openapi.json")
CLIENT_CLOSED = 499
"""nginx's code, in metrics and logs only: the client left before the answer."""


@dataclass(slots=True)
class Trace:
    """One request, for its log line, metrics and span."""

    request_id: str
    span: Span
    started: float = field(default_factory=time.perf_counter)
    first_byte: float | None = None
    prompt: Prompt = field(default_factory=Prompt)

    def begin(self) -> None:
        self.first_byte = time.perf_counter()


TRACE = web.RequestKey("trace", Trace)


class GatewayApp:
    """Handlers and their state; `api` and `probes` make the two aiohttp applications."""

    def __init__(
        self,
        fleet: Fleet,
        proxy: Proxy,
        metrics: GatewayMetrics,
        tracing: Tracing,
        *,
        keys: ReloadingFile[ApiKeys] | None,
        cors: Cors,
        page: Page | None,
        max_body_bytes: int,
        max_in_flight: int,
        pace: Pace,
    ) -> None:
        self._fleet = fleet
        self._proxy = proxy
        self._metrics = metrics
        self._tracing = tracing
        self._keys = keys
        self._cors = cors
        self._page = page
        self._no_key_routes = NO_KEY_ROUTES + (page.open_paths if page else ())
        self._max_body_bytes = max_body_bytes
        self._max_in_flight = max_in_flight
        self._pace = pace
        self._started = int(time.time())
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.draining = False

    def api(self) -> web.Application:
        app = web.Application(middlewares=[self._observe, self._admit], client_max_size=self._max_body_bytes)
        for path in GENERATE_ROUTES + TEXT_ROUTES:
            app.router.add_post(path, self._forward)
        app.router.add_get("/openapi.json", self._forward, allow_head=False)
        app.router.add_get("/v1/models", self._models, allow_head=False)
        app.router.add_get("/v1/models/{model:.+}", self._model, allow_head=False)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        if self._page is not None:
            self._page.add_to(app.router)
        if self._cors.origins:
            for path in (*GENERATE_ROUTES, *TEXT_ROUTES, "/v1/models", "/v1/models/{model:.+}", "/openapi.json"):
                app.router.add_options(path, self._cors.preflight)
        app.on_response_prepare.append(self._stamp)
        return app

    def probes(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/metrics", self._expose)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        return app

    def drain(self) -> None:
        """Takes nothing new from now on."""
        self.draining = True
        self._fleet.settle()

    @web.middleware
    async def _observe(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = forwarding.request_id(request.headers.get(headers.REQUEST_ID))
        trace = request[TRACE] = Trace(request_id, self._begin_span(request, request_id))
        status = CLIENT_CLOSED
        try:
            response = await self._shaped(request, handler)
            status = response.status
            return response
        finally:
            self._record(request, trace, status)

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in PROBES or request.method == "OPTIONS":
            return await handler(request)
        if request.path not in self._no_key_routes:
            self._check_key(request)
        if self.draining:
            raise errors.ShuttingDown()
        if self.in_flight >= self._max_in_flight:
            raise errors.TooManyRequests("Too many requests are in flight.")
        self.in_flight += 1
        self.idle.clear()
        try:
            return await handler(request)
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self.idle.set()

    async def _shaped(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error in OpenAI's shape."""
        try:
            return await handler(request)
        except errors.ApiError as error:
            if error.status >= 500:
                tracing.fail(request[TRACE].span, error)
            return _answer(error)
        except web.HTTPRequestEntityTooLarge:
            return _answer(errors.BodyTooLarge(f"The body is larger than {self._max_body_bytes} bytes."))
        except web.HTTPNotFound:
            return _answer(errors.NotFound(f"Unknown path {request.path}."))
        except web.HTTPMethodNotAllowed as refusal:
            response = _answer(errors.MethodNotAllowed(f"{request.path} does not take {request.method}."))
            response.headers["Allow"] = ", ".join(sorted(refusal.allowed_methods))
            return response
        except ConnectionResetError:
            raise  # the client has left: of the pods' connections such an error goes by other names
        except Exception:
            log.exception("request failed", extra={"fields": {"request_id": request[TRACE].request_id}})
            return _answer(errors.ApiError("The gateway failed; its log tells why."))

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        trace = request[TRACE]
        body = await self._read(request)
        if request.method == "POST":
            trace.prompt = parse(request.path, body)
        call = Call(
            request_id=trace.request_id,
            method=request.method,
            path=request.path_qs,
            headers=request.headers,
            body=body,
            prompt=trace.prompt,
            wants_prefill=request.path in GENERATE_ROUTES,
            span=trace.span,
            on_begin=trace.begin,
        )
        return await self._proxy.answer(call, request)

    async def _read(self, request: web.Request) -> bytes:
        if request.method == "POST" and request.content_type != "application/json":
            raise errors.UnsupportedMediaType(f"The content type must be application/json, not {request.content_type}.")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise errors.UnsupportedEncoding("The body must not be compressed.")
        if (request.content_length or 0) > self._max_body_bytes:
            raise errors.BodyTooLarge(f"The body is larger than {self._max_body_bytes} bytes.")
        try:
            return await read_body(request, self._pace)
        except BodyTooSlow as slow:
            raise errors.BodyTimeout(str(slow)) from slow
        except web.RequestPayloadError as broken:
            raise errors.BadRequest(f"The body is broken: {broken}") from broken

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._card(name) for name in self._fleet.models()]})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name not in self._fleet.models():
            raise errors.ModelNotFound(f"The model {name!r} does not exist.", param="model")
        return web.json_response(self._card(name))

    def _card(self, name: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "tandem"}

    async def _livez(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self.draining:
            return web.Response(status=503, text="draining\n")
        if not self._fleet.can_answer:
            return web.Response(status=503, text="no decode pod is ready\n")
        return web.Response(text="ok\n")

    async def _expose(self, request: web.Request) -> web.Response:
        self._metrics.in_flight.set(self.in_flight)
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    def _check_key(self, request: web.Request) -> None:
        if self._keys is not None and not self._keys.get().accept(request.headers.get("Authorization")):
            raise errors.Unauthorized("The API key is missing or wrong (Authorization: Bearer ...).")

    async def _stamp(self, request: web.Request, response: web.StreamResponse) -> None:
        if trace := request.get(TRACE):
            response.headers[headers.REQUEST_ID] = trace.request_id
        self._cors.stamp(request, response)
        if self.draining:
            response.force_close()

    def _begin_span(self, request: web.Request, request_id: str) -> Span:
        return begin_request(
            self._tracing,
            method=request.method,
            route=_route(request),
            path=request.path,
            headers=request.headers,
            request_id=request_id,
        )

    def _record(self, request: web.Request, trace: Trace, status: int) -> None:
        seconds = time.perf_counter() - trace.started
        first_byte = None if trace.first_byte is None else trace.first_byte - trace.started
        tracing.describe(trace.span, trace.prompt, first_byte_s=first_byte)
        end_request(trace.span, None if status == CLIENT_CLOSED else status)
        route = _route(request) or "other"
        self._metrics.requests.labels(route, status).inc()
        if route in PROBES:
            return
        self._metrics.seconds.observe(seconds)
        if first_byte is not None:
            self._metrics.ttfb.observe(first_byte)
        if log.isEnabledFor(logging.INFO):
            fields = {
                "request_id": trace.request_id,
                "method": request.method,
                "route": route,
                "status": status,
                "seconds": round(seconds, 4),
                "model": trace.prompt.model,
            }
            if trace.span.context is not None:
                fields["trace_id"] = trace.span.context.trace_id
            log.info("request", extra={"fields": fields})


def _route(request: web.Request) -> str | None:
    """As it was registered; None for an unknown path."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else None


def _answer(error: errors.ApiError) -> web.Response:
    return web.Response(
        status=error.status, body=error.body(), headers={"Content-Type": "application/json", **error.headers}
    )
