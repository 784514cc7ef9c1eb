"""A fake OpenAI server on a real socket, with faults on request. Prompts are lists of ids or words of text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeOpenAI:
    tokens_per_chunk: int = 1
    delay: float = 0.0
    """Seconds before each chunk."""
    stops_after: int | None = None
    """Ends early by itself, as if `ignore_eos` were unknown."""
    breaks_after: int | None = None
    """Closes the connection after so many chunks."""
    error_event_after: int | None = None
    refuses: int = 0
    """Answers so many requests with 503."""
    hangs_from: int | None = None
    """Requests after so many never end; `hung` tells when the first does not."""
    usage: bool = True
    tokenize: bool = True
    api_key: str | None = None
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    hung: asyncio.Event = field(default_factory=asyncio.Event)
    in_flight: int = 0
    most_in_flight: int = 0

    async def models(self, request: web.Request) -> web.Response:
        self._authenticate(request)
        return web.json_response({"object": "list", "data": [{"id": "fake-model"}]})

    async def count(self, request: web.Request) -> web.Response:
        if not self.tokenize:
            raise web.HTTPNotFound
        body = await request.json()
        return web.json_response({"count": count_tokens(body)})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self._authenticate(request)
        body = await request.json()
        self.requests.append(body)
        if self.refuses:
            self.refuses -= 1
            return web.json_response({"error": {"message": "queue is full"}}, status=503)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._stream(request, body)
        finally:
            self.in_flight -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        chat = "messages" in body
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(event: dict[str, Any] | str) -> None:
            text = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {text}\n\n".encode())

        if self.hangs_from is not None and len(self.requests) > self.hangs_from:
            self.hung.set()
            await asyncio.Event().wait()
        if chat:
            await send({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        total = body["max_tokens"] if self.stops_after is None else self.stops_after
        chunks = -(-total // self.tokens_per_chunk)
        for chunk in range(chunks):
            await asyncio.sleep(self.delay)
            if chunk == self.breaks_after:
                assert request.transport is not None
                request.transport.close()
                return response
            if chunk == self.error_event_after:
                await send({"error": {"message": "engine is dead"}})
                return response
            await send({"choices": [{"index": 0, "delta": {"content": "x "}} if chat else {"index": 0, "text": "x "}]})
        await send({"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "length"}]})
        if self.usage and body.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": count_tokens(body), "completion_tokens": total}
            await send({"choices": [], "usage": usage})
        await send("[DONE]")
        return response

    def _authenticate(self, request: web.Request) -> None:
        if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            raise web.HTTPUnauthorized(text=json.dumps({"error": {"message": "no such key"}}))


def count_tokens(body: dict[str, Any]) -> int:
    """Ids count themselves; a word counts a token for every five letters begun; a chat template adds seven."""
    if "messages" in body:
        return 7 + sum(_words(message["content"]) for message in body["messages"])
    prompt = body["prompt"]
    return _words(prompt) if isinstance(prompt, str) else len(prompt)


def _words(text: str) -> int:
    return sum(-(-len(word) // 5) for word in text.split())


@asynccontextmanager
async def serving(fake: FakeOpenAI) -> AsyncIterator[FakeOpenAI]:
    app = web.Application()
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/tokenize", fake.count)
    app.router.add_post("/v1/completions", fake.complete)
    app.router.add_post("/v1/chat/completions", fake.complete)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()
