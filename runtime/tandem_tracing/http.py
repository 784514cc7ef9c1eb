"""The span of a request that an HTTP server answers, by OpenTelemetry's conventions for HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from tandem_tracing.spans import NO_SPAN, Span, Tracing


def begin_request(
    tracing: Tracing, *, method: str, route: str | None, path: str, headers: Mapping[str, str], request_id: str
) -> Span:
    """`route`: None for an unknown path. What is not posted (probes, pages) is not worth a span."""
    if method != "POST" or route is None:
        return NO_SPAN
    attributes = {
        "http.request.method": method,
        "http.route": route,
        "url.path": path,
        "tandem.request_id": request_id,
    }
    return tracing.receive(f"{method} {route}", headers, attributes)


def end_request(span: Span, status: int | None) -> None:
    """`status`: None where the client left before the end. What the client did wrong is no failure of the server."""
    if status is None:
        span.fail("client_closed")
    else:
        span.set({"http.response.status_code": status})
        if status >= 500:
            span.fail(str(status))
    span.end()
