"""Which HTTP headers go on: to the pods, and back to the client."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence

from multidict import CIMultiDict, CIMultiDictProxy
from tandem_contract import headers

_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)
"""RFC 9110, section 7.6.1."""
_NOT_TO_POD = _HOP_BY_HOP | {"host", "content-length", "expect", "accept-encoding", "cookie", "origin", "x-request-id"}
"""Content-Length is written anew; a compressed stream would hide its events."""
_NOT_TO_CLIENT = _HOP_BY_HOP | {"content-length", "date", "server", "set-cookie", "x-request-id"}
_TRACE_HEADERS = ("traceparent", "tracestate")
"""W3C Trace Context. They pass through where this gateway makes no spans: then the pods' belong to the client's."""
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(given: str | None) -> str:
    """The client's own id where it is fit for headers and log lines, else a new one."""
    return given if given and _SANE_REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"


def to_pod(
    client: CIMultiDictProxy[str],
    *,
    request_id: str,
    tickets: Sequence[str],
    stream: Mapping[str, str],
    trace: Mapping[str, str],
) -> CIMultiDict[str]:
    """A client's headers with our prefix never reach a pod, so what a pod sees of them is the gateway's own.

    `stream`: headers of a live stream; `trace`: where in a trace the pod's work belongs, instead of the client's word.
    """
    sent = _passed_on(client, _NOT_TO_POD, headers.TIMING.lower())
    sent[headers.REQUEST_ID] = request_id
    if tickets:
        sent[headers.TICKET] = ",".join(tickets)
    sent.update(stream)
    if trace:
        for name in _TRACE_HEADERS:
            sent.popall(name, None)
        sent.update(trace)
    return sent


def to_client(pod: CIMultiDictProxy[str], *, pods: str) -> CIMultiDict[str]:
    """`pods`: names, as `headers.PODS` has them."""
    sent = _passed_on(pod, _NOT_TO_CLIENT)
    sent[headers.PODS] = pods
    return sent


def _passed_on(given: CIMultiDictProxy[str], dropped: frozenset[str], *allowed: str) -> CIMultiDict[str]:
    """Without `dropped`, what a `Connection` header names (there may be several), and our own, but for `allowed`."""
    of_this_hop = {name.strip().lower() for line in given.getall("Connection", ()) for name in line.split(",")}
    return CIMultiDict(
        (name, value)
        for name, value in given.items()
        if (lower := name.lower()) in allowed
        or not (lower in dropped or lower in of_this_hop or lower.startswith(headers.INTERNAL_PREFIX))
    )
