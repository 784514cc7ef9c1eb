"""What the gateway's spans say: one for the request, one below it for each attempt at a pod.

Names follow OpenTelemetry's conventions for HTTP and generative AI where those have one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from tandem_tracing.spans import NO_SPAN, Attributes, Span, Tracing

from tandem_gateway.delivery import AttemptFailed, Delivery, Interrupted, Lost
from tandem_gateway.errors import ApiError
from tandem_gateway.fleet import Picked
from tandem_gateway.prompt import Prompt

CLIENT_CLOSED = 499
"""nginx's code, in metrics, logs and spans only: the client left before the end of its answer."""


def request_span(tracing: Tracing, request: web.Request, request_id: str) -> Span:
    """Probes and pages are not worth one."""
    resource = request.match_info.route.resource
    if request.method != "POST" or resource is None:
        return NO_SPAN
    route = resource.canonical
    attributes: Attributes = {
        "http.request.method": request.method,
        "http.route": route,
        "url.path": request.path,
        "tandem.request_id": request_id,
    }
    return tracing.receive(f"{request.method} {route}", request.headers, attributes)


def end_request(span: Span, status: int, prompt: Prompt, *, first_byte_s: float | None) -> None:
    """`first_byte_s`: seconds from the request to the beginning of its answer."""
    if prompt.model is not None:
        span.set({"gen_ai.request.model": prompt.model})
    if prompt.stream and first_byte_s is not None:
        span.set({"gen_ai.response.time_to_first_chunk": first_byte_s})
    if status == CLIENT_CLOSED:
        span.fail("client_closed")
    else:
        span.set({"http.response.status_code": status})
        if status >= 500:
            span.fail(str(status))
    span.end()


@contextmanager
def attempt_span(delivery: Delivery, picked: Picked) -> Iterator[Span]:
    """Around one attempt, or one going on with a stream. How the block ends is how the span ends."""
    span = delivery.call.span.child("resume" if delivery.begun else "attempt", _attributes(delivery, picked))
    try:
        yield span
        if delivery.client is not None and delivery.client.failure is not None:
            fail(span, delivery.client.failure)
    except AttemptFailed as error:
        span.fail(error.reason)
        raise
    except Interrupted as cut:
        span.fail(cut.cause, cut.error.message)
        raise
    except ApiError as error:
        fail(span, error)
        raise
    except Lost as lost:
        fail(span, lost.error)
        raise
    except asyncio.CancelledError:
        span.fail("client_closed")
        raise
    finally:
        span.end()


def answered(span: Span, status: int) -> None:
    """The pod's status has come."""
    span.set({"http.response.status_code": status})
    if status >= 400:
        span.fail(str(status))


def fail(span: Span, error: ApiError) -> None:
    span.fail(error.code or error.type, error.message)


def _attributes(delivery: Delivery, picked: Picked) -> Attributes:
    attributes: dict[str, str | int] = {
        "http.request.method": delivery.call.method,
        "server.address": picked.decode.url.host or "",
        "server.port": picked.decode.url.port or 0,
    }
    if delivery.attempts:
        attributes["http.request.resend_count"] = delivery.attempts
    if picked.prefill is not None:
        attributes["tandem.prefill.address"] = picked.prefill.key
    if delivery.begun:
        attributes["tandem.resume.cause"] = delivery.cause or ""
        attributes["tandem.resume.records"] = delivery.journal.length
    return attributes
