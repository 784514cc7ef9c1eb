"""Function calls and thinking budgets through a gateway, a prefill and a decode process, with a model of noise."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageToolCall
from pydantic import BaseModel
from support.qwen3_model import build_tiny_qwen3
from support.service import Service, serving
from support.serving import Fleet

pytestmark = pytest.mark.processes

THINK, CLOSE_THINK, TOOL_CALL = "151667", "151668", "151657"
PLAIN = {"enable_thinking": False}


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome"]
    days: list[Literal[1, 2]]


WEATHER: Any = openai.pydantic_function_tool(Weather, name="get_weather")
NOW: Any = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "additionalProperties": False}},
}
MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Paris, and what time is it there?"}]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = build_tiny_qwen3(tmp_path_factory.mktemp("qwen3"))
    with Fleet(folder, tmp_path_factory.mktemp("fleet")) as fleet, serving(fleet) as made:
        yield made


@pytest.fixture
async def client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=service.base_url, api_key="none", max_retries=0, timeout=100) as client:
        yield client


async def answer(client: openai.AsyncOpenAI, **more: Any) -> Any:
    body: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 700, "extra_body": PLAIN} | more
    return (await client.chat.completions.create(**body)).choices[0]


async def streamed(client: openai.AsyncOpenAI, **more: Any) -> dict[str, Any]:
    """The deltas, put together as OpenAI's documentation tells clients to."""
    body: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 700, "extra_body": PLAIN} | more
    whole: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish": None}
    async for chunk in await client.chat.completions.create(**body, stream=True):
        [choice] = chunk.choices
        whole["content"] += choice.delta.content or ""
        whole["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
        for piece in choice.delta.tool_calls or []:
            if piece.id is not None:
                assert piece.index == len(whole["calls"])
                whole["calls"].append([piece.id, piece.function.name, ""])
            whole["calls"][piece.index][2] += piece.function.arguments
        whole["finish"] = choice.finish_reason or whole["finish"]
    return whole


def check(call: ChatCompletionMessageToolCall) -> None:
    schema = {"get_weather": WEATHER, "now": NOW}[call.function.name]["function"]["parameters"]
    jsonschema.validate(json.loads(call.function.arguments), schema)
    assert call.id.startswith("call_")


@pytest.mark.parametrize("seed", range(3))
async def test_a_named_function_is_called_once(client: openai.AsyncOpenAI, seed: int) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    asked: Any = {"tools": [WEATHER, NOW], "tool_choice": named, "seed": seed}
    one = await answer(client, **asked)
    assert (one.finish_reason, one.message.content) == ("tool_calls", None)
    [call] = one.message.tool_calls
    check(call)
    parts = await streamed(client, **asked)
    [[call_id, name, arguments]] = parts["calls"]
    assert call_id.startswith("call_")
    assert (name, arguments) == (call.function.name, call.function.arguments)
    assert (parts["content"], parts["finish"]) == ("", "tool_calls")


async def test_required_and_parallel_calls(client: openai.AsyncOpenAI) -> None:
    most = 0
    for seed in range(3):
        asked: Any = {"tools": [WEATHER, NOW], "tool_choice": "required", "seed": seed}
        one = await answer(client, **asked, parallel_tool_calls=False)
        assert one.finish_reason == "tool_calls"
        [call] = one.message.tool_calls
        check(call)
        many = await answer(client, **asked)
        whole = many.message.tool_calls[: None if many.finish_reason == "tool_calls" else -1]
        for call in whole:
            check(call)
        most = max(most, len(whole))
    assert most > 1, "the model may call several at once, and noise does"


async def test_strict_functions_are_exact_in_auto(client: openai.AsyncOpenAI) -> None:
    """The model is pushed to open a call; what follows is up to noise, and to the grammar of strict functions."""
    pushed: Any = {"tool_choice": "auto", "logit_bias": {TOOL_CALL: 100}, "parallel_tool_calls": False}
    for seed in range(3):
        one = await answer(client, tools=[WEATHER], seed=seed, **pushed)
        [call] = one.message.tool_calls
        check(call)
    loose = {"type": "function", "function": WEATHER["function"] | {"strict": False}}
    free = await answer(client, tools=[loose], seed=0, max_tokens=60, **pushed)
    assert not free.message.tool_calls, "noise alone writes no call"


async def test_a_call_after_a_thought_is_parsed(client: openai.AsyncOpenAI) -> None:
    budget = {"thinking_budget": 12}
    asked: Any = {"tools": [NOW], "tool_choice": "required", "parallel_tool_calls": False, "logit_bias": {THINK: 100}}
    one = await answer(client, **asked, extra_body=budget, seed=1)
    assert one.message.reasoning_content
    check(one.message.tool_calls[0])
    parts = await streamed(client, **asked, extra_body=budget, seed=1)
    assert parts["reasoning"] == one.message.reasoning_content
    assert [call[1:] for call in parts["calls"]] == [["now", one.message.tool_calls[0].function.arguments]]


async def test_malformed_calls_are_content(client: openai.AsyncOpenAI) -> None:
    one = await answer(client, tools=[NOW], logit_bias={TOOL_CALL: 100}, max_tokens=20, seed=3)
    assert one.message.content.startswith("<tool_call>")
    assert not one.message.tool_calls
    assert one.finish_reason == "length"


async def test_none_means_no_calls(client: openai.AsyncOpenAI) -> None:
    """Neither asked for in the prompt, nor found in an answer: the grammar makes the model write one word for word."""
    written = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    says_it: Any = {"extra_body": PLAIN | {"structured_outputs": {"choice": [written]}}}
    one = await answer(client, tools=[NOW], tool_choice="none", **says_it)
    assert (one.message.content, one.finish_reason) == (written, "stop")
    assert not one.message.tool_calls
    parts = await streamed(client, tools=[NOW], tool_choice="none", **says_it)
    assert (parts["content"], parts["calls"]) == (written, [])

    async def prompt_tokens(**more: Any) -> int:
        whole = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=1, extra_body=PLAIN, **more
        )
        assert whole.usage is not None
        return whole.usage.prompt_tokens

    without = await prompt_tokens()
    assert await prompt_tokens(tools=[NOW], tool_choice="none") == without
    assert await prompt_tokens(tools=[NOW]) > without


async def test_history_with_calls_and_results(client: openai.AsyncOpenAI) -> None:
    """Both are in the next prompt, where the template puts them."""
    named: Any = {"type": "function", "function": {"name": "now"}}
    first = await answer(client, tools=[NOW], tool_choice=named)
    said = first.message.model_dump(exclude_none=True)
    [call] = said["tool_calls"]

    async def prompt_tokens(*history: Any) -> int:
        whole = await client.chat.completions.create(
            model="tiny", messages=[*MESSAGES, *history], tools=[NOW], max_tokens=1, extra_body=PLAIN
        )
        assert whole.usage is not None
        return whole.usage.prompt_tokens

    counts = [
        await prompt_tokens(*history)
        for history in (
            [],
            [{"role": "assistant", "content": ""}],
            [said, {"role": "tool", "tool_call_id": call["id"], "content": "12:00"}],
            [said, {"role": "tool", "tool_call_id": call["id"], "content": "12:00, half past twelve elsewhere"}],
        )
    ]
    assert sorted(set(counts)) == counts


async def test_the_budget_closes_the_thought_and_usage_counts_it(client: openai.AsyncOpenAI) -> None:
    for fields, most in (({"thinking_budget": 20}, 20), ({"chat_template_kwargs": {"thinking_budget": 7}}, 7)):
        whole = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=60, seed=2, extra_body=fields,
            logit_bias={THINK: 100, CLOSE_THINK: -100},
        )  # fmt: skip
        assert whole.usage is not None
        assert whole.usage.completion_tokens_details is not None
        assert whole.usage.completion_tokens_details.reasoning_tokens == most + 2  # the tags
        assert whole.choices[0].message.content


async def test_effort(client: openai.AsyncOpenAI) -> None:
    one = await answer(client, reasoning_effort="none", max_tokens=5, extra_body={}, logit_bias={THINK: 100})
    assert not one.message.reasoning_content  # the template closed the thought before the model could open one
    with pytest.raises(openai.BadRequestError, match="give one"):
        await answer(client, reasoning_effort="low", extra_body={"thinking_budget": 5})
