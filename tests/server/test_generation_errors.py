"""What a client sees when the engine refuses, fails or is too slow."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from support.api_server import Server
from tandem_runtime.core.errors import DeadlineExceededError, EngineDeadError, OverloadedError, RequestError
from tandem_runtime.server.exchange import TIMEOUT_GRACE_S

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (OverloadedError("the queue is full"), 503, "engine_overloaded"),
        (EngineDeadError("the engine has stopped"), 503, "engine_dead"),
        (DeadlineExceededError("too slow"), 504, "deadline_exceeded"),
    ],
)
async def test_before_the_first_token_the_status_is_honest(
    server: Server, http: aiohttp.ClientSession, refusal: RequestError, status: int, code: str, stream: bool, n: int
) -> None:
    server.engine.refuse = refusal
    async with http.post(CHAT, json=BODY | {"stream": stream, "n": n}) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == code
        assert ("Retry-After" in response.headers) == (status == 503)


@pytest.mark.parametrize("n", [1, 2])
async def test_in_a_stream_an_error_event_ends_it(server: Server, client: openai.AsyncOpenAI, n: int) -> None:
    server.engine.break_after = 3
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
    stream = await client.chat.completions.create(model="tiny", messages=messages, stream=True, n=n)
    with pytest.raises(openai.APIError) as failure:
        _ = [chunk async for chunk in stream]
    assert failure.value.message == "page lost"
    assert failure.value.code == "generation_failed"


async def test_after_an_error_event_nothing_claims_success(server: Server, http: aiohttp.ClientSession) -> None:
    server.engine.break_after = 1
    async with http.post(CHAT, json=BODY | {"stream": True}) as response:
        raw = await response.text()
    assert "[DONE]" not in raw
    assert raw.rstrip().splitlines()[-1].startswith('data: {"error":')


async def test_a_failure_of_a_whole_answer_is_a_500(server: Server, client: openai.AsyncOpenAI) -> None:
    server.engine.break_after = 2
    with pytest.raises(openai.InternalServerError, match="page lost"):
        await client.completions.create(model="tiny", prompt="a")


@pytest.mark.parametrize("n", [1, 2])
async def test_a_bug_in_a_stream_ends_it_with_an_error_event(
    server: Server, http: aiohttp.ClientSession, n: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A second set of headers inside the stream would be the result of answering with a fresh response."""
    server.engine.bug = ZeroDivisionError("secret")
    async with http.post(CHAT, json=BODY | {"stream": True, "n": n}) as response:
        raw = await response.text()
    assert '"internal_error"' in raw.rstrip().splitlines()[-1]
    assert "HTTP/1.1" not in raw
    assert "secret" not in raw
    assert "ZeroDivisionError" in caplog.text


async def test_a_bug_is_a_plain_500(server: Server, http: aiohttp.ClientSession) -> None:
    server.engine.bug = ZeroDivisionError("secret")
    async with http.post(CHAT, json=BODY) as response:
        assert response.status == 500
        assert (await response.json())["error"]["code"] == "internal_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_hangs_is_a_504(server: Server, http: aiohttp.ClientSession, stream: bool) -> None:
    server.pod.flags = replace(server.pod.flags, request_timeout=0.05 - TIMEOUT_GRACE_S)
    server.engine.hang = asyncio.Event()
    async with http.post(CHAT, json=BODY | {"stream": stream}) as response:
        assert response.status == 504
    assert server.engine.aborted.qsize() == 1
