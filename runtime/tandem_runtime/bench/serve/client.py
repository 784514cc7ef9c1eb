"""The HTTP side of one server: its models, its tokenizer endpoint, streamed requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from tandem_runtime.bench.errors import ServerUnusable
from tandem_runtime.bench.serve.metrics import RequestRecord
from tandem_runtime.bench.serve.options import Endpoint
from tandem_runtime.bench.serve.sse import SseParser
from tandem_runtime.bench.serve.timeline import StreamTimeline, error_message

_PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_CONNECT_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request ready to send; built before the clock runs."""

    index: int
    body: bytes
    expected_output: int | None
    """Tokens the answer must have, None where the model may stop early."""


class Client:
    """One server, one connection pool. `on_text` hears how many chunks with text came (progress only)."""

    def __init__(
        self,
        base_url: str,
        *,
        endpoint: Endpoint,
        api_key: str | None,
        timeout: float,
        on_text: Callable[[int], None],
    ) -> None:
        self._root = base_url.rstrip("/").removesuffix("/v1")
        self._url = self._root + _PATHS[endpoint]
        self._endpoint = endpoint
        self._on_text = on_text
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_TIMEOUT),
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def first_model(self) -> str:
        """Raises `ServerUnusable`."""
        body = await self._json("GET", "/v1/models")
        models = body.get("data") or []
        if not models:
            raise ServerUnusable(f"{self._root}/v1/models lists no model; name one with --model")
        return str(models[0]["id"])

    async def count_tokens(self, model: str, text: str) -> int:
        """By the server's `/tokenize`, chat template included. Raises `ServerUnusable`."""
        ask: dict[str, Any] = {"model": model}
        if self._endpoint == "chat":
            ask |= {"messages": [{"role": "user", "content": text}], "add_generation_prompt": True}
        else:
            ask["prompt"] = text
        body = await self._json("POST", "/tokenize", data=orjson.dumps(ask))
        return int(body["count"]) if "count" in body else len(body["tokens"])

    async def send(self, request: Request, *, start: float, clock: Callable[[], float]) -> RequestRecord:
        """Streams one answer to its end. Never raises for what the server does: that is the record's `error`."""
        timeline = StreamTimeline()
        try:
            async with self._http.post(self._url, data=request.body) as response:
                if response.status == 200:
                    await self._read(response, timeline, clock)
                else:
                    timeline.fail(f"HTTP {response.status}: {_explain(await response.read())}")
        except TimeoutError as error:
            timeline.fail(str(error) or "timed out (--timeout)")
        except (aiohttp.ClientError, OSError) as error:
            timeline.fail(f"{type(error).__name__}: {error}")
        return timeline.record(request.index, start=start, end=clock(), expected_output=request.expected_output)

    async def _read(
        self, response: aiohttp.ClientResponse, timeline: StreamTimeline, clock: Callable[[], float]
    ) -> None:
        parser = SseParser()
        async for data in response.content.iter_any():
            now = clock()
            before = timeline.chunks
            for event in parser.feed(data):
                timeline.on_event(event, now)
            self._on_text(timeline.chunks - before)

    async def _json(self, method: str, path: str, data: bytes | None = None) -> dict[str, Any]:
        url = self._root + path
        try:
            async with self._http.request(method, url, data=data) as response:
                raw = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerUnusable(f"{url}: {error or 'timed out'}") from error
        if response.status != 200:
            raise ServerUnusable(f"{url}: HTTP {response.status}: {_explain(raw)}")
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise ServerUnusable(f"{url}: the answer is not JSON") from error
        if not isinstance(body, dict):
            raise ServerUnusable(f"{url}: the answer is not a JSON object")
        return body


def _explain(raw: bytes) -> str:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw[:200].decode(errors="replace")
    return error_message(body) if isinstance(body, dict) else str(body)[:200]
