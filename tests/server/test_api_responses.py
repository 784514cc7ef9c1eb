"""/v1/responses through the official client, over a real socket; every event as the client's own types define it."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import aiohttp
import openai
import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from server.response_events import events_of
from support.api_server import Server
from support.scripted_engine import TRACE
from tandem_runtime.server.protocol.response_output import EVENTS

CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "a", "output": "x"}
THOUGHT = "<think>\nHm, easy.\n</think>\n\nHello."


def prompt_of(server: Server) -> str:
    return server.tokenizer.decode(server.engine.requests[-1].prompt_token_ids)


async def test_whole_answer(server: Server, client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(
        model="tiny", input="Say hello.", instructions="Be brief.", metadata={"k": "v"}, temperature=0.5, store=False
    )
    Response.model_validate(answer.model_dump())
    assert (answer.output_text, answer.status, answer.error) == ("Hello, world.", "completed", None)
    assert (answer.metadata, answer.temperature, answer.instructions) == ({"k": "v"}, 0.5, "Be brief.")
    assert prompt_of(server) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert answer.usage is not None
    assert answer.usage.input_tokens == len(server.engine.requests[0].prompt_token_ids)
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


async def test_reasoning_is_an_item_of_its_own(server: Server, client: openai.AsyncOpenAI) -> None:
    server.say(THOUGHT)
    answer = await client.responses.create(model="tiny", input="Say hello.", include=["reasoning.encrypted_content"])
    reasoning, message = answer.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert [part.text for part in reasoning.content] == ["Hm, easy."]
    assert message.type == "message"
    assert answer.output_text == "Hello."
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens > 0


@pytest.mark.parametrize(
    ("fields", "begins", "budget"),
    [
        ({}, True, None),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, True, 2048),
        ({"reasoning": {"effort": "max"}}, True, None),
        ({"thinking_budget": 7}, True, 7),
        ({"reasoning": {"effort": "none"}}, False, None),
    ],
)
async def test_effort(
    server: Server, client: openai.AsyncOpenAI, fields: dict[str, Any], begins: bool, budget: int | None
) -> None:
    """As `reasoning_effort` of chat completions."""
    answer = await client.responses.create(model="tiny", input="Hi", extra_body=fields)
    thinking = server.engine.requests[-1].sampling.thinking
    assert (thinking is not None, thinking.budget if thinking is not None else None) == (begins, budget)
    assert answer.reasoning is not None
    assert answer.reasoning.effort == fields.get("reasoning", {}).get("effort")


async def test_an_answer_goes_back_as_input(server: Server, client: openai.AsyncOpenAI) -> None:
    """Clients append `response.output` to their list, as objects of the client's types."""
    server.say(THOUGHT)
    first = await client.responses.create(model="tiny", input="Say hello.")
    conversation: list[Any] = [{"role": "user", "content": "Say hello."}, *first.output]
    conversation += [{"role": "user", "content": [{"type": "input_text", "text": "Again."}]}]
    await client.responses.create(model="tiny", input=conversation)
    assert prompt_of(server) == (
        "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_events_of_a_stream(server: Server, http: aiohttp.ClientSession) -> None:
    server.say(THOUGHT)
    events = await events_of(http)
    kinds = [event["type"].removeprefix("response.") for event in events]
    order = list(dict.fromkeys(kinds))
    assert order[:6] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.done"),
    ]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds.count("output_item.added") == kinds.count("output_item.done") == 2
    for channel, index, text in (("reasoning_text", 0, "Hm, easy."), ("output_text", 1, "Hello.")):
        deltas = [event for event in events if event["type"] == f"response.{channel}.delta"]
        assert "".join(event["delta"] for event in deltas) == text
        assert {event["output_index"] for event in deltas} == {index}
        [done] = [event for event in events if event["type"] == f"response.{channel}.done"]
        assert done["text"] == text
    added = next(event for event in events if event["type"] == "response.output_item.added")
    assert added["item"]["content"] == []
    assert added["item"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    final = events[-1]["response"]
    assert [item["status"] for item in final["output"]] == ["completed", "completed"]
    assert final["usage"]["output_tokens"] == len(server.engine.reply(server.engine.requests[0]))


async def test_the_clients_own_accumulation_of_a_stream(server: Server, client: openai.AsyncOpenAI) -> None:
    server.say(THOUGHT)
    async with client.responses.stream(model="tiny", input="Say hello.") as stream:
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        final = await stream.get_final_response()
    assert text == final.output_text == "Hello."
    assert final.status == "completed"


def test_sync_client(server_in_thread: Server) -> None:
    with openai.OpenAI(base_url=f"{server_in_thread.url}/v1", api_key="none", max_retries=0) as client:
        assert client.responses.create(model="tiny", input="Hi").output_text == "Hello, world."
        with client.responses.create(model="tiny", input="Hi", stream=True) as stream:
            assert list(stream)[-1].type == "response.completed"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_answer_is_incomplete(server: Server, http: aiohttp.ClientSession, stream: bool) -> None:
    if stream:
        answer = (await events_of(http, max_output_tokens=2))[-1]
        assert answer["type"] == "response.incomplete"
        answer = answer["response"]
    else:
        body = {"model": "tiny", "input": "Say hello.", "max_output_tokens": 2}
        async with http.post("/v1/responses", json=body) as response:
            answer = await response.json()
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in answer["output"]] == ["incomplete"]


@pytest.mark.parametrize("text", ["", "<think>\nHm"])
async def test_answers_without_text(server: Server, http: aiohttp.ClientSession, text: str) -> None:
    server.say(text)
    final = (await events_of(http))[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["reasoning" if text else "message"]


async def test_logprobs_are_those_of_the_text(server: Server, client: openai.AsyncOpenAI) -> None:
    server.say(THOUGHT)
    include: Any = ["message.output_text.logprobs"]
    answer = await client.responses.create(model="tiny", input="Hi", include=include, top_logprobs=2)
    message: Any = answer.output[-1]
    assert "".join(one.token for one in message.content[0].logprobs).strip() == "Hello."
    assert all(len(one.top_logprobs) == 2 for one in message.content[0].logprobs)
    deltas: list[Any] = []
    stream: Any = await client.responses.create(model="tiny", input="Hi", include=include, top_logprobs=2, stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            deltas += event.logprobs
    assert [one.token for one in deltas] == [one.token for one in message.content[0].logprobs]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"n": 2}, "n"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 1000}, "max_output_tokens"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"stream_options": {"include_usage": True}, "stream": True}, "stream_options.include_usage"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [OUTPUT]}, "input[0].call_id"),
        ({"input": [OUTPUT, CALL]}, "input[0].call_id"),
        ({"input": [OUTPUT | {"call_id": "b"}, CALL, OUTPUT]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": "x"}, CALL]}, "input[1]"),
        ({"input": "x" * 2000}, "input"),
        ({"chat_template_kwargs": {"mood": 1}}, "chat_template_kwargs.mood"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
        ({"reasoning": {"effort": "low"}, "thinking_budget": 5}, "reasoning.effort"),
    ],
)
async def test_refusals_name_the_field(client: openai.AsyncOpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.post("/responses", cast_to=object, body={"model": "tiny", "input": "Hi", **fields})
    assert refusal.value.param == param


async def test_a_schema_reaches_the_engine(server: Server, client: openai.AsyncOpenAI) -> None:
    schema: Any = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    text: Any = {"format": {"type": "json_schema", "name": "one", "schema": schema, "strict": True}}
    answer = await client.responses.create(model="tiny", input="Hi", text=text)
    assert '"required"' in server.engine.requests[-1].sampling.grammar
    assert answer.text is not None
    assert answer.text.model_dump()["format"]["name"] == "one"
    assert server.engine.requests[-1].sampling.grammar_param == "text.format"
    text["format"]["schema"] = {"type": "integer", "minimum": 2**60}
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.responses.create(model="tiny", input="Hi", text=text)
    assert refusal.value.param == "text.format"


async def test_a_broken_stream_ends_as_failed(server: Server, http: aiohttp.ClientSession) -> None:
    server.engine.break_after = 3
    events = await events_of(http)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert "page lost" in events[-1]["response"]["error"]["message"]


async def test_a_leaving_client_aborts(server: Server, client: openai.AsyncOpenAI) -> None:
    server.engine.gate = asyncio.Event()
    stream = await client.responses.create(model="tiny", input="Hi", stream=True)
    await anext(stream)
    await stream.close()
    await asyncio.wait_for(server.engine.aborted.get(), timeout=10)


async def test_the_trace_comes_last(http: aiohttp.ClientSession) -> None:
    body = {"model": "tiny", "input": "Hi", "stream": True}
    async with http.post("/v1/responses", json=body, headers={"X-Tandem-Timing": "1"}) as response:
        last = orjson.loads((await response.read()).rpartition(b"data: ")[2])
    assert last["response"]["tandem"]["prefill_pod"] == TRACE.prefill_pod


async def test_embeddings_are_refused_with_a_remedy(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Qwen3-Embedding") as refusal:
        await client.embeddings.create(model="tiny", input="Hi")
    assert refusal.value.code == "embeddings_not_supported"


def test_every_event_is_one_that_clients_know() -> None:
    known = {member.model_fields["type"].annotation for member in get_args(get_args(ResponseStreamEvent)[0])}
    assert {event.__struct_config__.tag for event in EVENTS} <= {get_args(kind)[0] for kind in known}
