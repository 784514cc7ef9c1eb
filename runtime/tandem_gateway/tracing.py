"""What the gateway's spans say: that of the request, and one below it for each attempt at a pod.

Names follow OpenTelemetry's conventions for HTTP and generative AI where those have one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tandem_tracing.spans import Attributes, Span

from tandem_gateway.delivery import AttemptFailed, Delivery, Interrupted, Lost
from tandem_gateway.errors import ApiError
from tandem_gateway.fleet import Picked
from tandem_gateway.prompt import Prompt


def describe(span: Span, prompt: Prompt, *, first_byte_s: float | None) -> None:
    """`first_byte_s`: seconds from the request to the beginning of its answer."""
    if prompt.model is not None:
        span.set({"gen_ai.request.model": prompt.model})
    if prompt.stream and first_byte_s is not None:
        span.set({"gen_ai.response.time_to_first_chunk": first_byte_s})


@contextmanager
def attempt_span(delivery: Delivery, picked: Picked) -> Iterator[Span]:
    """Around one attempt, or one going on with a stream. How the block ends is how the span ends."""
    span = delivery.call.span.child("resume" if delivery.begun else "attempt", _attributes(delivery, picked))
    try:
        yield span
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
    except (asyncio.CancelledError, ConnectionResetError):
        span.fail("client_closed")
        raise
    except Exception as error:
        span.fail(type(error).__name__, str(error))
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
