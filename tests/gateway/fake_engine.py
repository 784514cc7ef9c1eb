"""An engine pod without an engine: real sockets, the contract's status, answers made of numbered words.

In process (`async with FakeEngine() as pod`) a test sets its fields at will; as a process
(`python -m gateway.fake_engine --port-file FILE`) it can be stopped and killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiohttp import web
from gateway.eventually import eventually
from tandem_contract.status import STATUS_PATH, PodStatus, Role


def status(name: str = "pod", role: Role = "decode", **changes: Any) -> PodStatus:
    base = PodStatus(
        name=name,
        role=role,
        incarnation="1",
        models=("m",),
        fingerprint="f",
        max_model_len=4096,
        page_size=16,
        handoff_port=8100,
        running=0,
        waiting=0,
        waiting_tokens=0,
        max_waiting=64,
        kv_pages_total=100_000,
        kv_pages_used=0,
        ready=True,
        draining=False,
        continuation="c",
    )
    return replace(base, **changes)


def word(index: int) -> bytes:
    chunk = {
        "id": "x",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": f" w{index}"}}],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def stream_bytes(words: int) -> bytes:
    """The whole stream of an answer of so many words."""
    return b"".join(word(index) for index in range(words)) + b"data: [DONE]\n\n"


@dataclass
class Seen:
    path: str
    headers: Mapping[str, str]
    body: bytes
    peer: object
    """Address of the connection's other end."""


@dataclass
class FakeEngine:
    status: PodStatus = field(default_factory=status)
    status_body: bytes | None = None
    """Instead of `status`."""
    hold_status: asyncio.Event | None = None
    """Polls wait for it."""
    words: int = 5
    interval: float = 0.0
    """Seconds between two words."""
    answer: web.Response | None = None
    """Instead of the usual answer; made anew for each request from status, body and headers."""
    die_after: int | None = None
    """Words after which the connection is cut, without a word to the client."""
    omit_done: bool = False
    hold: asyncio.Event | None = None
    """Answers wait for it before their first byte."""
    hold_after_first: asyncio.Event | None = None
    """Streams wait for it after their first word."""
    polls: int = 0
    """Times its status was asked for."""
    seen: list[Seen] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client left before its answer's end."""
    url: str = ""

    async def __aenter__(self) -> FakeEngine:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get(STATUS_PATH, self._status)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=2048).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        await self._runner.cleanup()

    @property
    def key(self) -> str:
        return self.url.removeprefix("http://")

    @property
    def name(self) -> str:
        """Of its own, where the status names none."""
        return f"pod-{self.url.rpartition(':')[2]}" if self.status.name == "pod" else self.status.name

    def posts(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.path.startswith(("/v1/", "/tokenize", "/detokenize"))]

    async def posted(self, times: int) -> bool:
        return len(self.posts()) >= times

    async def polled(self, times: int) -> None:
        """So many times from now on."""
        until = self.polls + times

        async def enough() -> bool:
            return self.polls >= until

        await eventually(enough)

    async def _status(self, request: web.Request) -> web.Response:
        self.polls += 1
        if self.hold_status is not None:
            await self.hold_status.wait()
        if self.status_body is not None:
            return web.Response(body=self.status_body, content_type="application/json")
        return web.json_response(self.status.to_json() | {"name": self.name})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        assert request.transport is not None
        self.seen.append(Seen(request.path_qs, request.headers, body, request.transport.get_extra_info("peername")))
        self.arrived.set()
        try:
            if self.hold is not None:
                await self.hold.wait()
            if self.answer is not None:
                return web.Response(status=self.answer.status, body=self.answer.body, headers=self.answer.headers)
            if request.method == "POST" and self._streams(request, json.loads(body)):
                return await self._stream(request)
            if self.die_after is not None:
                assert request.transport is not None
                request.transport.abort()
            return web.json_response({"path": request.path, "words": self.words})
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def _streams(self, request: web.Request, body: Any) -> bool:
        return bool(body.get("stream"))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Engine": "fake"})
        await response.prepare(request)
        for index in range(self.words):
            if index == self.die_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(word(index))
            if index == 0 and self.hold_after_first is not None:
                await self.hold_after_first.wait()
            if self.interval:
                await asyncio.sleep(self.interval)
        if not self.omit_done:
            await response.write(b"data: [DONE]\n\n")
        return response


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port-file", required=True, help="the URL is written here once it listens")
    parser.add_argument("--words", type=int, default=5)
    parser.add_argument("--interval", type=float, default=0.0)
    args = parser.parse_args()
    async with FakeEngine(words=args.words, interval=args.interval) as engine:
        Path(args.port_file).write_text(engine.url + "\n")  # noqa: ASYNC240
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
