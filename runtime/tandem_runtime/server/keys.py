"""Where handlers find what belongs to the application and to the request."""

from __future__ import annotations

from aiohttp import web
from tandem_tracing.spans import Span

from tandem_runtime.server.pod import Pod

POD = web.AppKey("pod", Pod)
REQUEST_ID = web.RequestKey("request_id", str)
SPAN = web.RequestKey[Span]("span", Span)
