"""The span of an API request at an engine pod, kept in memory; the engine is scripted, the sockets real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from support.api_server import Server
from support.scripted_engine import TRACE
from support.spans import CALLER, TRACE_ID, TRACEPARENT, Recorder
from tandem_runtime.core.errors import OverloadedError
from tandem_tracing.context import TraceContext

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "a secret"}]}
TRACED = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}


@asynccontextmanager
async def traced(server: Server, recorder: Recorder) -> AsyncIterator[None]:
    async with recorder.tracing("d") as tracing:
        server.pod.tracing = tracing
        yield
        await server.stop()  # handlers have ended


async def ask(http: aiohttp.ClientSession, body: dict[str, Any], path: str = CHAT, **headers: str) -> tuple[int, str]:
    async with http.post(path, json=body, headers=TRACED | headers) as answer:
        return answer.status, await answer.text()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_is_told_as_the_conventions_have_it(
    server: Server, http: aiohttp.ClientSession, stream: bool
) -> None:
    recorder = Recorder()
    async with traced(server, recorder):
        body = BODY | {"stream": stream, "temperature": 0.5, "max_tokens": 9, "seed": 3, "n": 2}
        assert (await ask(http, body, **{"X-Request-Id": "r-1"}))[0] == 200
    [span] = recorder.spans.seen
    assert (span.name, span.kind, span.parent_id, span.state, span.error) == (
        "chat tiny", "server", CALLER, "vendor=1", None,
    )  # fmt: skip
    [first, second] = server.engine.requests
    assert first.trace == second.trace == TraceContext(TRACE_ID, span.span_id, "vendor=1")
    said = len(server.tokenizer.encode("Hello, world.", add_special_tokens=False)) + 1
    told = {
        "http.route": CHAT,
        "http.response.status_code": 200,
        "tandem.request_id": "r-1",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.stream": stream,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.request.choice.count": 2,
        "gen_ai.usage.input_tokens": len(first.prompt_token_ids),
        "gen_ai.usage.output_tokens": 2 * min(9, said),
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.server.time_to_first_token": TRACE.ttft_seconds,
        "gen_ai.server.time_per_output_token": TRACE.tpot_seconds,
        "tandem.prefill.pod": "p-0",
    }
    assert {name: span.attributes.get(name) for name in told} == told
    assert set(span.attributes["gen_ai.response.finish_reasons"]) <= {"stop", "length"}
    assert "gen_ai.request.top_p" not in span.attributes, "the client left it open"
    assert "secret" not in str(span.attributes)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/completions", {"model": "alias", "prompt": ["one", "two"]}, "text_completion alias"),
        ("/v1/responses", {"model": "tiny", "input": "hi"}, "chat tiny"),
        ("/tokenize", {"model": "tiny", "prompt": "hi"}, "POST /tokenize"),
    ],
)
async def test_the_other_routes(
    server: Server, http: aiohttp.ClientSession, path: str, body: dict[str, Any], name: str
) -> None:
    recorder = Recorder()
    async with traced(server, recorder):
        assert (await ask(http, body, path))[0] == 200
        async with http.get("/v1/models") as answer:
            assert answer.status == 200
    assert recorder.spans.names() == [f"d/{name}"]


async def test_what_is_not_sampled_costs_the_engine_nothing(server: Server, http: aiohttp.ClientSession) -> None:
    recorder = Recorder()
    async with traced(server, recorder):
        status, _ = await ask(http, BODY, traceparent=f"00-{TRACE_ID}-{CALLER}-00")
        assert status == 200
    assert server.engine.requests[0].trace is None
    assert recorder.spans.seen == []


async def test_a_stream_that_breaks_after_its_200_has_failed(server: Server, http: aiohttp.ClientSession) -> None:
    server.engine.break_after = 2
    recorder = Recorder()
    async with traced(server, recorder):
        status, text = await ask(http, BODY | {"stream": True})
        assert status == 200
        assert "page lost" in text
    [span] = recorder.spans.seen
    assert (span.error, span.message) == ("generation_failed", "page lost")
    assert span.attributes["gen_ai.usage.output_tokens"] == 2, "what was sampled until then"


async def test_refusals_are_failures_where_they_are_ours(server: Server, http: aiohttp.ClientSession) -> None:
    recorder = Recorder()
    async with traced(server, recorder):
        assert (await ask(http, BODY | {"temperature": 9}))[0] == 400
        assert (await ask(http, BODY | {"model": "other"}))[0] == 404
        server.engine.refuse = OverloadedError("full")
        assert (await ask(http, BODY))[0] == 503
        server.engine.refuse = None
        server.engine.bug = ValueError("a bug")
        assert (await ask(http, BODY))[0] == 500
    told = [(span.attributes["http.response.status_code"], span.error) for span in recorder.spans.seen]
    assert told == [(400, None), (404, None), (503, "engine_overloaded"), (500, "500")]


async def test_a_client_that_leaves_is_named(server: Server, http: aiohttp.ClientSession) -> None:
    server.engine.hang = asyncio.Event()
    recorder = Recorder()
    async with traced(server, recorder):
        asking = asyncio.create_task(ask(http, BODY))
        while not server.engine.requests:  # noqa: ASYNC110
            await asyncio.sleep(0)
        asking.cancel()
        await server.engine.aborted.get()
    assert [span.error for span in recorder.spans.seen] == ["client_closed"]
