"""Chat completions through the official client, over a real socket."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from typing import Any

import aiohttp
import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from support.api_server import Server
from support.scripted_engine import TRACE

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]


async def chunks_of(client: openai.AsyncOpenAI, **options: Any) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, **options)
    return [chunk async for chunk in stream]


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index)


async def test_whole_answer(server: Server, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=QUESTION)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Hello, world.", "stop")
    assert choice.message.tool_calls is None  # absent, as OpenAI has it
    assert choice.message.role == "assistant"
    num_tokens = len(server.tokenizer.encode("Hello, world.", add_special_tokens=False)) + 1
    prompt = server.tokenizer.decode(server.engine.requests[0].prompt_token_ids)
    assert prompt == "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.engine.requests[0].prompt_token_ids)
    assert answer.usage.completion_tokens == num_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_stream(server: Server, client: openai.AsyncOpenAI) -> None:
    chunks = await chunks_of(client)
    assert text_of(chunks) == "Hello, world."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_stream_with_usage(server: Server, client: openai.AsyncOpenAI) -> None:
    chunks = await chunks_of(client, stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(server.engine.reply(server.engine.requests[0]))
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_stream_with_continuous_usage(server: Server, client: openai.AsyncOpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await chunks_of(client, stream_options=options)
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    total = len(server.engine.reply(server.engine.requests[0]))
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert (counts[0], counts[-2:]) == (1, [total, total])


def test_sync_client(server_in_thread: Server) -> None:
    with openai.OpenAI(base_url=f"{server_in_thread.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="tiny", messages=QUESTION)
        assert answer.choices[0].message.content == "Hello, world."
        with client.chat.completions.create(model="tiny", messages=QUESTION, stream=True) as stream:
            assert text_of(list(stream)) == "Hello, world."
        with client.chat.completions.stream(model="tiny", messages=QUESTION) as helper:
            assert helper.get_final_completion().choices[0].message.content == "Hello, world."


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning(server: Server, client: openai.AsyncOpenAI, stream: bool) -> None:
    server.say("<think>\nHm, easy.\n</think>\n\nHello.")
    if stream:
        chunks = await chunks_of(client, stream_options={"include_usage": True})
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        content, usage = text_of(chunks), chunks[-1].usage
    else:
        answer = await client.chat.completions.create(model="tiny", messages=QUESTION)
        message = answer.choices[0].message
        assert message.model_extra is not None
        reasoning, content, usage = message.model_extra["reasoning_content"], message.content or "", answer.usage
    assert (reasoning, content) == ("Hm, easy.", "Hello.")
    assert usage is not None
    assert usage.completion_tokens_details is not None
    thought = server.tokenizer.encode("<think>\nHm, easy.\n</think>", add_special_tokens=False)
    assert usage.completion_tokens_details.reasoning_tokens == len(thought)


async def test_an_answer_that_ends_in_its_thoughts_has_no_content(server: Server, client: openai.AsyncOpenAI) -> None:
    server.say("<think>Hm", eos=False)
    answer = await client.chat.completions.create(model="tiny", messages=QUESTION)
    assert answer.choices[0].message.content is None
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("extra", [{"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}])
async def test_thinking_switched_off(server: Server, client: openai.AsyncOpenAI, extra: dict[str, Any]) -> None:
    await client.chat.completions.create(model="tiny", messages=QUESTION, extra_body=extra)
    prompt = server.tokenizer.decode(server.engine.requests[0].prompt_token_ids)
    assert prompt.endswith("<think>\n\n</think>\n\n")


async def test_several_choices_are_interleaved(server: Server, client: openai.AsyncOpenAI) -> None:
    server.engine.reply = lambda request: server.tokenizer.encode(
        f"answer {request.sampling.seed}", add_special_tokens=False
    )
    chunks = await chunks_of(client, n=3, seed=5)
    assert [text_of(chunks, index) for index in range(3)] == ["answer 5", "answer 6", "answer 7"]
    order = [chunk.choices[0].index for chunk in chunks]
    assert order != sorted(order)
    answer = await client.chat.completions.create(model="tiny", messages=QUESTION, n=3, seed=5)
    assert [choice.message.content for choice in answer.choices] == ["answer 5", "answer 6", "answer 7"]


async def test_a_stop_string_ends_the_engines_work(server: Server, client: openai.AsyncOpenAI) -> None:
    server.say("one, two, three and so on", eos=False)
    answer = await client.chat.completions.create(model="tiny", messages=QUESTION, stop=[", thr", "zzz"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one, two", "stop")
    assert await server.engine.aborted.get() == server.engine.requests[0].request_id


async def test_logprobs(server: Server, client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=QUESTION, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(entry.bytes or []) for entry in logprobs.content) == b"Hello, world."
    assert {len(entry.top_logprobs) for entry in logprobs.content} == {2}
    chunks = await chunks_of(client, logprobs=True)
    streamed = [entry for chunk in chunks if (lp := chunk.choices[0].logprobs) for entry in lp.content or []]
    assert "".join(entry.token for entry in streamed) == "Hello, world."


async def test_history_with_everything_is_accepted(server: Server, client: openai.AsyncOpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    first = await client.chat.completions.create(model="tiny", messages=QUESTION)
    messages: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "u"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        first.choices[0].message.model_dump(),
        {"role": "user", "content": "go on"},
    ]
    await client.chat.completions.create(model="tiny", messages=messages)
    prompt = server.tokenizer.decode(server.engine.requests[1].prompt_token_ids)
    assert prompt.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n")


async def test_timing_header_adds_the_trace(server: Server, client: openai.AsyncOpenAI) -> None:
    headers = {"X-Tandem-Timing": "1"}
    answer = await client.chat.completions.create(model="tiny", messages=QUESTION, extra_headers=headers)
    assert answer.model_extra is not None
    assert answer.model_extra["tandem"] == asdict(TRACE)
    for options in ({}, {"stream_options": {"include_usage": True}}):
        chunks = await chunks_of(client, extra_headers=headers, **options)
        traced = [chunk for chunk in chunks if (chunk.model_extra or {}).get("tandem")]
        assert traced == [chunks[-1]]
    plain = await client.chat.completions.create(model="tiny", messages=QUESTION)
    assert "tandem" not in (plain.model_extra or {})


async def test_an_answer_that_a_stop_string_ends_is_traced_too(server: Server, client: openai.AsyncOpenAI) -> None:
    """Symptom: no trace, and its queue time in no histogram: the engine's last output, which has them, never came."""
    headers = {"X-Tandem-Timing": "1"}
    answer = await client.chat.completions.create(model="tiny", messages=QUESTION, stop="wor", extra_headers=headers)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello, ", "stop")
    assert answer.model_extra is not None
    assert answer.model_extra["tandem"]["queue_seconds"] == TRACE.queue_seconds
    chunks = await chunks_of(client, stop="wor", extra_headers=headers)
    assert (chunks[-1].model_extra or {})["tandem"]["prefill_pod"] == TRACE.prefill_pod
    queued = server.pod.metrics.registry.get_sample_value("tandem_queue_seconds_count")
    assert queued == 2


async def test_request_id_is_kept_or_made(server: Server, http: aiohttp.ClientSession) -> None:
    body = {"model": "tiny", "messages": QUESTION}
    for stream in (False, True):
        headers = {"X-Request-Id": "mine-1"}
        async with http.post("/v1/chat/completions", json=body | {"stream": stream}, headers=headers) as response:
            assert response.headers["X-Request-Id"] == "mine-1"
    assert [request.request_id.startswith("mine-1-") for request in server.engine.requests] == [True, True]
    assert len({request.request_id for request in server.engine.requests}) == 2
    async with http.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "no good"}) as response:
        assert response.headers["X-Request-Id"].startswith("req-")


async def test_ids_of_answers_are_unique_though_those_of_requests_are_not(
    server: Server, http: aiohttp.ClientSession
) -> None:
    """Symptom: a client that repeats its X-Request-Id got answers, and calls, of equal ids. Cause: they were
    made of it."""
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": QUESTION},
        "/v1/completions": {"prompt": "Say"},
        "/v1/responses": {"input": "Say"},
    }
    for path, body in bodies.items():
        ids = []
        for stream in (False, True, False, True):
            request = http.post(path, json={"model": "tiny", "stream": stream} | body, headers={"X-Request-Id": "mine"})
            async with request as response:
                raw = await response.text()
                assert response.headers["X-Request-Id"] == "mine"
            assert "mine" not in raw
            answer_ids = set(re.findall(r'"id":"((?:chatcmpl-|cmpl-|resp_)[^"]+)"', raw))
            assert len(answer_ids) == 1
            ids += answer_ids
        assert len(set(ids)) == 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_client_that_leaves_ends_the_engines_work(server: Server, stream: bool, n: int) -> None:
    server.engine.gate = asyncio.Event()
    body = {"model": "tiny", "messages": QUESTION, "stream": stream, "n": n}
    async with aiohttp.ClientSession(server.url) as session:
        if stream:
            response = await session.post("/v1/chat/completions", json=body)
            await response.content.readany()
            response.close()
        else:
            asking = asyncio.create_task(session.post("/v1/chat/completions", json=body))
            await server.engine.began.get()
            asking.cancel()
        aborted = {await asyncio.wait_for(server.engine.aborted.get(), 5) for _ in range(n)}
    assert aborted == {request.request_id for request in server.engine.requests}


async def test_a_slow_client_gets_everything(server: Server) -> None:
    """The answer is larger than the socket's buffers; the handler waits instead of collecting it in memory."""
    token_ids = server.tokenizer.encode("x", add_special_tokens=False) * 60_000
    server.engine.resize(max_model_len=100_000)
    server.say_tokens(token_ids)
    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(server.url, connector=connector, read_bufsize=1024) as session:
        body = {"model": "tiny", "messages": QUESTION, "stream": True}
        async with session.post("/v1/chat/completions", json=body) as response:
            await server.engine.began.get()
            seen = -1
            while seen != server.engine.yielded:  # until the handler waits for the socket
                seen = server.engine.yielded
                await asyncio.sleep(0.1)
            assert server.engine.yielded < len(token_ids)
            raw = await response.read()
    assert raw.count(b'"content":"x"') == len(token_ids)
    assert raw.endswith(b"data: [DONE]\n\n")
