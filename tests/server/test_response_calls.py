"""Function calls of /v1/responses, over a real socket; every event as the official client's own types define it."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import openai
import pytest
from openai.types.responses import Response
from server.response_events import events_of
from support.api_server import Server
from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.responses import ResponsesRequest

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
NOW: dict[str, Any] = {"type": "function", "name": "now"}
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CLOCK = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
ANSWER = f"<think>\nHm.\n</think>\n\nLet me see.\n\n{PARIS}\n{CLOCK}"


@pytest.fixture
def server(server: Server) -> Server:
    server.engine.resize(max_model_len=4096)
    server.say(ANSWER)
    return server


async def whole(http: aiohttp.ClientSession, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "input": "Say hello.", "tools": [WEATHER, NOW], **fields}
    async with http.post("/v1/responses", json=body) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        Response.model_validate(answer)
        return answer


def outline(items: list[dict[str, Any]]) -> list[Any]:
    return [
        (item["name"], item["arguments"]) if item["type"] == "function_call" else item["content"][0]["text"]
        for item in items
    ]


def nameless(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ids are each answer's own."""
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in items]


async def test_calls_are_items(http: aiohttp.ClientSession, server: Server) -> None:
    answer = await whole(http)
    assert outline(answer["output"]) == ["Hm.", "Let me see.", ("weather", '{"city": "Paris"}'), ("now", "{}")]
    assert {item["status"] for item in answer["output"]} == {"completed"}
    assert (answer["status"], answer["tool_choice"], answer["parallel_tool_calls"]) == ("completed", "auto", True)
    assert answer["tools"][0] == WEATHER
    assert answer["tools"][1] == NOW | {"description": None, "parameters": None, "strict": None}
    ids = [item["call_id"] for item in answer["output"][2:]] + [item["id"] for item in answer["output"]]
    assert len(set(ids)) == 6
    assert answer["usage"]["output_tokens"] == len(server.engine.reply(server.engine.requests[-1]))


async def test_events_of_calls(http: aiohttp.ClientSession) -> None:
    events = await events_of(http, tools=[WEATHER, NOW])
    of_call = [event for event in events if event.get("output_index") == 2]
    kinds = [event["type"].removeprefix("response.") for event in of_call]
    arguments = [event["delta"] for event in of_call if "delta" in event]
    assert kinds == [
        "output_item.added",
        *["function_call_arguments.delta"] * len(arguments),
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert len(arguments) > 3
    assert all(arguments)
    assert "".join(arguments) == of_call[-2]["arguments"] == '{"city": "Paris"}'
    first, last = of_call[0]["item"], of_call[-1]["item"]
    assert first == last | {"arguments": "", "status": "in_progress"}
    assert {event["item_id"] for event in of_call[1:-1]} == {last["id"]}
    # What came before is done before it begins, and it is done before what follows.
    indices = [event["output_index"] for event in events if "output_index" in event]
    assert indices == sorted(indices)
    assert set(indices) == {0, 1, 2, 3}
    assert events[-1]["type"] == "response.completed"


@pytest.mark.parametrize("text", [ANSWER, f"One.\n{PARIS}\nTwo.\n{CLOCK}\nThree.", PARIS + "\nST", "<tool_call>{}"])
@pytest.mark.parametrize("stop", [None, "STOP"])
async def test_a_stream_ends_in_what_the_whole_answer_is(
    http: aiohttp.ClientSession, server: Server, text: str, stop: str | None
) -> None:
    server.say(text)
    asked = {"tools": [WEATHER, NOW], "stop": stop, "include": ["message.output_text.logprobs"]}
    final = (await events_of(http, **asked))[-1]["response"]
    answer = await whole(http, **asked)
    assert nameless(final["output"]) == nameless(answer["output"])
    if text.startswith("One"):
        assert outline(answer["output"])[::2] == ["One.", "\nTwo.", "\nThree."]


async def test_logprobs_are_those_of_text(http: aiohttp.ClientSession, server: Server) -> None:
    server.say(f"One.\n{PARIS}\nTwo.")
    answer = await whole(http, include=["message.output_text.logprobs"])
    for item in answer["output"][::2]:
        [part] = item["content"]
        assert "".join(one["token"] for one in part["logprobs"]).strip() == part["text"].strip()


async def test_a_stop_string_is_not_looked_for_across_calls(http: aiohttp.ClientSession, server: Server) -> None:
    """Text that may begin a stop string is held back: it must not come after a call that follows it."""
    server.say(f"ST{PARIS}OP.")
    assert outline((await whole(http, stop="STOP"))["output"]) == ["ST", ("weather", '{"city": "Paris"}'), "OP."]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_cut_short_is_incomplete(http: aiohttp.ClientSession, server: Server, stream: bool) -> None:
    half = PARIS[: PARIS.index("Paris")]
    server.say(half, eos=False)
    if stream:
        events = await events_of(http, tools=[WEATHER])
        assert events[-1]["type"] == "response.incomplete"
        answer = events[-1]["response"]
    else:
        answer = await whole(http)
    [call] = answer["output"]
    assert (answer["status"], call["status"], call["arguments"]) == ("incomplete", "incomplete", '{"city": "')


async def test_a_stream_that_breaks_in_a_call(http: aiohttp.ClientSession, server: Server) -> None:
    server.engine.break_after = len(server.tokenizer.encode(ANSWER[: ANSWER.index("Paris")], add_special_tokens=False))
    failed = (await events_of(http, tools=[WEATHER]))[-1]
    assert failed["type"] == "response.failed"
    assert outline(failed["response"]["output"])[1:] == ["Let me see.", ("weather", '{"city": "')]
    assert failed["response"]["output"][-1]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("fields", "grammar", "described"),
    [
        ({"tools": [NOW]}, False, True),
        ({"tools": [WEATHER]}, True, True),  # strict
        ({"tools": [NOW], "tool_choice": "required"}, True, True),
        ({"tools": [NOW], "tool_choice": {"type": "function", "name": "now"}}, True, True),
        ({"tools": [WEATHER], "tool_choice": "none"}, False, False),
    ],
)
async def test_what_the_engine_is_asked(
    http: aiohttp.ClientSession, server: Server, fields: dict[str, Any], grammar: bool, described: bool
) -> None:
    answer = await whole(http, **fields)
    sampling = server.engine.requests[-1].sampling
    assert (bool(sampling.grammar), sampling.grammar_param) == (grammar, "tools" if grammar else None)
    prompt = server.tokenizer.decode(server.engine.requests[-1].prompt_token_ids)
    assert ("<|im_start|>tools" in prompt) == described
    assert answer["tool_choice"] == fields.get("tool_choice", "auto")
    if fields.get("tool_choice") == "none":
        assert outline(answer["output"]) == ["Hm.", f"Let me see.\n\n{PARIS}\n{CLOCK}"]


async def test_one_call_where_parallel_ones_are_not_wanted(http: aiohttp.ClientSession) -> None:
    answer = await whole(http, parallel_tool_calls=False)
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call"]
    assert answer["parallel_tool_calls"] is False


async def test_calls_and_their_outputs_go_back(server: Server, client: openai.AsyncOpenAI) -> None:
    """A client appends `response.output` and the outputs of its functions to the conversation."""
    tools: Any = [WEATHER, NOW]
    first = await client.responses.create(model="tiny", input="Say hello.", tools=tools)
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": f"{item.name}: fine"}
        for item in first.output
        if item.type == "function_call"
    ]
    conversation: list[Any] = [{"role": "user", "content": "Say hello."}, *first.output, *outputs]
    await client.responses.create(model="tiny", input=conversation, tools=tools)
    prompt = server.tokenizer.decode(server.engine.requests[-1].prompt_token_ids)
    calls = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
    assert f"assistant\nLet me see.{calls}<tool_call>" in prompt
    assert "<|im_start|>tool\nweather: fine<|im_end|>\n<|im_start|>tool\nnow: fine<|im_end|>" in prompt


async def test_the_clients_own_accumulation(client: openai.AsyncOpenAI) -> None:
    tools: Any = [WEATHER, NOW]
    async with client.responses.stream(model="tiny", input="Hi", tools=tools) as stream:
        done = [event async for event in stream if event.type == "response.function_call_arguments.done"]
        final = await stream.get_final_response()
    assert [(event.name, json.loads(event.arguments)) for event in done] == [
        ("weather", {"city": "Paris"}),
        ("now", {}),
    ]
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    weather: Any = final.output[2]
    assert weather.parsed_arguments == {"city": "Paris"}


def call(call_id: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "now", "arguments": "{}"}


def output(call_id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": "noon"}


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([call("a"), output("a"), call("a")], "input[2]"),
        ([call("a"), call("a"), output("a")], "input[1].call_id"),
        ([output("a"), call("a"), output("a")], "input[0].call_id"),
    ],
)
def test_an_id_may_come_again_once_its_call_is_answered(items: list[Any], param: str) -> None:
    """Symptom: the last call of some that all had one id was taken to be answered by the output of the first."""
    parse(
        ResponsesRequest, {"model": "tiny", "input": [call("a"), output("a"), call("a"), call("b"), *map(output, "ba")]}
    )
    with pytest.raises(RequestError) as refusal:
        parse(ResponsesRequest, {"model": "tiny", "input": items})
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [NOW | {"parameters": {"type": "array"}}], "tool_choice": "required"}, "tools[0].parameters"),
        ({"tools": [NOW | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [NOW | {"allowed_callers": ["programmatic"]}]}, "tools[0].allowed_callers"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [NOW], "tool_choice": "perhaps"}, "tool_choice"),
    ],
)
async def test_refusals_name_the_field(client: openai.AsyncOpenAI, fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.post("/responses", cast_to=object, body={"model": "tiny", "input": "Hi", **fields})
    assert refusal.value.param == param
